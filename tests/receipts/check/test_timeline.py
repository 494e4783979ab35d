"""A run over time, from the receipts that docs/ publishes."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from receipts.check.run import ReceiptRun
from receipts.check.timeline import svg_timeline, text_timeline, timeline, timeline_shapes
from receipts.check.verify import verify
from receipts.format.opening import Replan
from receipts.format.statement import Statement

PUBLISHED = sorted((Path(__file__).parents[3] / "docs" / "receipts").glob("*.json"))


def read(path: Path) -> ReceiptRun:
    run = verify(path.read_bytes()).run
    assert run is not None
    return run


def recovered() -> ReceiptRun:
    return read(next(path for path in PUBLISHED if path.name == "recovered.json"))


def test_a_recovery_shows_both_rings_and_who_was_lost() -> None:
    line = timeline(recovered())
    first, second = line.rings
    assert first.end_us == second.begin_us and 0 < second.begin_us < second.end_us == line.elapsed_us
    assert (first.tokens, second.tokens) == ((35, 47), (47, 75)) and line.tokens == 40
    lost = dict(line.lanes)[first.lost[0]]
    assert [part.ring for part in lost] == [0] and lost[0].compute_us is None
    text = text_timeline(line, 100)
    lanes = [row for row in text.splitlines() if row.startswith("layers 10-19")]
    assert len(lanes) == 2 and "✗" in lanes[0] and lanes[1].split("·")[-1].count("━") > 30
    assert "lost 304245a2" in text and "no end" in text


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
@pytest.mark.parametrize("width", [24, 40, 60, 100])
def test_every_published_run_fits_and_its_picture_is_xml(path: Path, width: int) -> None:
    line = timeline(read(path))
    rows = text_timeline(line, width).splitlines()
    assert all(len(row) <= max(width, 50) for row in rows)
    root = ElementTree.fromstring(svg_timeline(line, "<a & b>"))
    boxes = [box for box in root.iter("{http://www.w3.org/2000/svg}rect")][1:]
    assert boxes and all(float(box.get("x", "0")) + float(box.get("width", "0")) <= 190 + 620 + 1 for box in boxes)


def test_a_long_reason_stands_whole_below_the_picture() -> None:
    line = timeline(recovered())
    reason = " ".join(f"word{number}" for number in range(60))
    rings = (replace(line.rings[0], reason=reason), *line.rings[1:])
    drawn, height = timeline_shapes(replace(line, rings=rings))
    rows = ["".join(ElementTree.fromstring(shape).itertext()) for shape in drawn if shape.startswith("<text")]
    assert reason in " ".join(rows) and max(map(len, rows)) <= 140
    lowest = max(float(ElementTree.fromstring(shape).get("y", "0")) for shape in drawn if shape.startswith("<text"))
    assert lowest < height


def test_a_clock_that_goes_back_is_held_still() -> None:
    run = recovered()
    early: list[Statement] = []
    for statement in run.statements:
        body = statement.body
        back = replace(body, time_us=run.order.time_us - 5) if isinstance(body, Replan) else body
        early.append(replace(statement, body=back))
    line = timeline(replace(run, statements=tuple(early)))
    assert [(ring.begin_us, ring.end_us) for ring in line.rings] == [(0, 0), (0, line.elapsed_us)]
    assert "✗" in text_timeline(line, 80) and svg_timeline(line, "x")

"""What people see: every claim, at any width, and never what a stranger wants their terminal to do."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from receipts.check.draw import COLOURS, RED, svg_report
from receipts.check.report import RTT_REMARK, text_report
from receipts.check.verdict import Level, Standing
from receipts.check.verify import Options, verify
from receipts.format.errors import Refusal

NAMES = ["plain", "recovered", "failed", "private", "own", "open"]
SVG = "{http://www.w3.org/2000/svg}"


def words(svg: str) -> str:
    return " ".join(element.text or "" for element in ET.fromstring(svg).iter(SVG + "text"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [24, 40, 55, 56, 80, 100, 200])
def test_lines_fit_the_terminal(rings: Any, name: str, width: int) -> None:
    for line in text_report(verify(rings(name).receipt), width).splitlines():
        assert len(line) <= width and line == line.rstrip()


def test_the_sections_of_an_honest_run(ring: Any) -> None:
    text = text_report(verify(ring.receipt), 120)
    heads = [line.split("  ")[0] for line in text.splitlines() if not line.startswith(" ")]
    assert heads == ["RING", "VERIFIED", "CO-SIGNED", "WITNESSED", "CLAIMED", "NOT CHECKED", "RESULT"]
    for part in (
        "signatures 19/19",
        "the plan covers layers 0-29 once",
        "both ends of 4/4 edges",
        "only --replay decodes",
        RTT_REMARK,
    ):
        assert part in " ".join(text.split())
    assert "51.2/51.3 ms" in text and text.endswith("RESULT       level 1: signed and consistent\n")


def test_a_recovered_run_names_the_node_that_was_lost(rings: Any) -> None:
    ring = rings("recovered")
    lost = ring.parties["node 1"].id[:8]
    verdict = verify(ring.receipt)
    for shown in (text_report(verdict), words(svg_report(verdict))):
        assert f"lost {lost}" in shown and "position 6" in shown


def test_a_refusal_names_the_claim_and_the_code(ring: Any) -> None:
    verdict = verify(ring.receipt, Options(trust=frozenset()))
    text = text_report(verdict)
    assert "REFUSED      untrusted: requester" in text and f"exit code {Refusal.UNTRUSTED.exit_code}" in text
    assert RED in svg_report(verdict)
    nothing = verify(b"")
    assert text_report(nothing).startswith("REFUSED      unreadable")
    assert "REFUSED" in words(svg_report(nothing))


def test_below_the_required_level_and_not_conclusive_say_so(ring: Any) -> None:
    below = verify(ring.receipt, Options(required=Level.SAMPLED))
    assert "level 3 was required" in text_report(below)


def test_the_json_form_has_every_claim(ring: Any) -> None:
    verdict = verify(ring.receipt)
    value = json.loads(json.dumps(verdict.as_json()))
    assert value["level"] == 1 and value["exit_code"] == 0 and value["refusal"] is None
    assert {claim["standing"] for claim in value["claims"]} == {standing.value for standing in Standing}
    assert len(value["claims"]) == len(verdict.claims)
    assert verify(b"{}").as_json()["level"] is None


@pytest.mark.parametrize("name", NAMES)
def test_the_drawing_is_whole(rings: Any, name: str) -> None:
    verdict = verify(rings(name).receipt)
    svg = svg_report(verdict)
    shown = words(svg)
    assert verdict.run is not None
    for stage in verdict.run.last.plan:
        assert f"layers {stage.first}-{stage.last - 1}" in shown and stage.node[:8] in shown
    for claim in verdict.claims:
        assert COLOURS[claim.standing] in svg and claim.standing.value.upper() in shown


@pytest.mark.parametrize("stages", [1, 2, 7, 15])
def test_boxes_of_the_drawing_do_not_overlap_and_stay_inside(make_ring: Any, stages: int) -> None:
    spans = [(index * 2, index * 2 + 2) for index in range(stages - 1)]
    spans.append((2 * (stages - 1), 30))
    root = ET.fromstring(svg_report(verify(make_ring(spans=spans).receipt)))
    whole, *rects = root.iter(SVG + "rect")
    boxes = [[float(rect.attrib[name]) for name in ("x", "y", "width", "height")] for rect in rects]
    assert len(boxes) == stages + 1
    for index, (x, y, wide, high) in enumerate(boxes):
        assert x >= 0 and y >= 0
        assert x + wide <= float(whole.attrib["width"]) and y + high <= float(whole.attrib["height"])
        for x2, y2, wide2, high2 in boxes[:index]:
            assert x >= x2 + wide2 or x2 >= x + wide or y >= y2 + high2 or y2 >= y + high


def test_no_box_is_drawn_as_proven_that_is_not(ring: Any) -> None:
    """Of a receipt alone nothing of what the boxes say is shown: who computed, and what the requester says came out."""
    frames = [
        element.attrib["stroke"]
        for element in ET.fromstring(svg_report(verify(ring.receipt))).iter(SVG + "rect")
        if "stroke" in element.attrib
    ]
    assert len(frames) == 4 and COLOURS[Standing.PROVEN] not in frames


def test_names_of_strangers_cannot_drive_the_terminal_or_the_drawing(ring: Any, resign: Any) -> None:
    evil = '\x1b[2J\x07\u202eCPU<script>alert("1")</script>&'

    def change(items: list[dict[str, Any]]) -> None:
        for item in items:
            if item["kind"] == "accept":
                item["body"]["hardware"]["device"] = evil
            if item["kind"] == "order":
                item["body"]["model"]["name"] = evil

    verdict = verify(resign(ring, change))
    assert verdict.refusal is None
    text, svg = text_report(verdict), svg_report(verdict)
    for shown in (text, svg):
        assert not set(shown) & {"\x1b", "\x07", "\u202e"}
    assert "<script" not in svg and "CPU<script>" in words(svg)

    refused = verify(b'{"format":"\\u001b[2J","version":1}')
    assert "\x1b" not in refused.line and "\x1b" not in text_report(refused)

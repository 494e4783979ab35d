"""What the requester keeps of a run's passes: it agrees with the receipt, and tells of a recovery."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from receipts.check.verify import verify
from swarm.base.errors import UsageError
from swarm.cli.main import main
from swarm.model.files.checkpoint import open_model
from swarm.model.files.store import ModelStore
from swarm.run.api import RunRequest
from swarm.run.recoveries import moved, recoveries
from swarm.run.trace import RunTrace, TracedLoss, disagreement, parse_trace, read_trace
from swarm.run.trace_shape import fates
from tests.ring.signed import signed_ring

SPANS = [(0, 2), (2, 4), (4, 6), (2, 4)]
PROMPT = tuple([5, 6, 7, 8, 9, 10] * 8)


@pytest.mark.parametrize("speculation", ["plain", "stream"])
async def test_a_recovery_is_told_pass_by_pass(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], speculation: Any
) -> None:
    checkpoint: Any = open_model(str(tiny_folder), ModelStore(tmp_path / "models"))
    async with signed_ring(checkpoint, SPANS, tmp_path) as ring:
        lost, other = (ring.nodes[number].identity.id.hex() for number in (1, 3))
        result = await ring.generate(RunRequest(PROMPT, max_tokens=40, speculation=speculation), drop_after=15)
    path = Path(str(result.receipt))
    verdict = verify(path.read_bytes())
    trace = read_trace(path)
    assert trace is not None and verdict.run is not None and result.recoveries == 1
    _agrees(trace, verdict.run.order_digest, dict(verdict.run.close.draft))
    assert trace.accepted == sum(result.depth_accepted) and trace.drafted == result.drafted_rows
    (healed,) = recoveries(trace)
    loss = healed.loss
    assert loss.nodes in ((lost,), ()) and loss.reason and not loss.leaving
    assert loss.again > 0 and healed.after is not None and loss.next_token_us is not None
    took = moved(healed.before.stages, healed.after.stages)
    assert [(part.first, part.last, part.old, part.new) for part in took] == [(2, 4, lost, other)]
    fresh = [healed.after.stages[number].node for number in healed.after.fresh]
    assert fresh == [other] and 0 < healed.after.kept
    assert healed.steps[0].at_us == loss.seen_us and healed.steps[-1].at_us == loss.next_token_us
    assert f"{other[:8]} takes layers 2-3 from {lost[:8]}" in " ".join(step.what for step in healed.steps)

    capsys.readouterr()
    assert main(["show", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "in flight" in shown and "recovery 1" in shown and f"{other[:8]} takes layers 2-3" in shown
    assert main(["show", str(path), "--svg", str(tmp_path / "run.svg")]) == 0
    drawn = (tmp_path / "run.svg").read_text()
    assert len(drawn) < 60_000 and "Passes" in drawn
    root = ElementTree.fromstring(drawn)
    assert "takes layers 2-3" in str(root.findtext("{http://www.w3.org/2000/svg}desc"))

    path.with_suffix(".trace.json").unlink()
    assert main(["show", str(path)]) == 0
    assert "not the times of single passes" in capsys.readouterr().out


def _agrees(trace: RunTrace, order: str, draft: dict[str, int]) -> None:
    """Sums are the receipt's, and what is told pass by pass sums up to them."""
    assert trace.left_out == 0 and disagreement(trace, order, draft) == ""
    assert draft["rows_sent"] == sum(one.certain + len(one.rows) for one in trace.passes)
    assert draft["drafted"] == len(fates(trace)) == sum(len(one.rows) for one in trace.passes)
    assert draft["accepted"] == sum(len(one.right) for one in trace.passes)
    assert trace.new_tokens == 40 == sum(one.tokens for one in trace.passes)
    assert {one.ring for one in trace.passes} == {ring.ring for ring in trace.rings} == {0, 1}
    assert parse_trace(trace.to_bytes()) == trace
    assert "another run" in disagreement(trace, "00" * 32, draft)
    assert "counts 7 for drafted" in disagreement(trace, order, {**draft, "drafted": 7})
    assert isinstance(trace.losses[0], TracedLoss)
    for broken in (b"{", b"[]", trace.to_bytes().replace(b'"version":1', b'"version":2')):
        with pytest.raises(UsageError, match="expected a trace"):
            parse_trace(broken)

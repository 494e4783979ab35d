"""Live rings whose parties keep transparency logs, and token scores of live runs."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from receipts.check.recompute import default_limit
from receipts.check.token_stats import HONEST, OTHER, TokenStats, token_stats
from receipts.check.verify import Options, verify
from receipts.format.document import document_untrusted
from swarm.base.events import silent
from swarm.cli.main import main
from swarm.model.files.checkpoint import Checkpoint
from swarm.model.sampler import Sampling
from swarm.recheck.replayer import ModelReplayer
from swarm.ring.signer import open_published
from swarm.run.api import RunRequest

from .signed import LIES, signed_ring
from .test_signed import PROMPT, SPANS, wide

__all__ = ["wide"]


async def test_what_ends_a_run_stands_in_its_nodes_logs(
    wide: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with signed_ring(wide, SPANS, tmp_path) as ring:
        for index, node in enumerate(ring.nodes):
            node.notary.published = open_published(tmp_path / f"log{index}", node.notary.log, node.identity, silent)  # type: ignore[arg-type]
        paths = []
        for _ in range(3):
            result = await ring.generate(RunRequest(PROMPT, 6, speculation="plain"))
            paths.append(Path(str(result.receipt)))
    for index, node in enumerate(ring.nodes):
        for number, path in enumerate(paths):
            proof = tmp_path / f"{index}.tlog-proof"
            log = ["--log", str(tmp_path / f"log{index}"), "--log-proof", str(proof)]
            assert await asyncio.to_thread(main, ["verify", str(path), *log]) == 0
            said = " ".join(capsys.readouterr().out.split())
            assert f"the end of {node.identity.id.hex()[:8]} is entry {number} of 3" in said, said
            assert await asyncio.to_thread(main, ["verify", str(path), "--log", str(proof)]) == 0
            other = paths[number - 1]
            assert await asyncio.to_thread(main, ["verify", str(other), "--log", str(proof)]) == 60
    stranger = Path("docs/receipts/three-cpu-stages.json").resolve()
    assert main(["verify", str(stranger), "--log", str(tmp_path / "log0")]) == 60
    assert main(["verify", str(stranger), "--log", str(tmp_path / "nothing")]) == 2
    assert main(["verify", str(stranger), "--log-proof", str(tmp_path / "proof")]) == 2


@pytest.mark.parametrize("temperature", [0.9, pytest.param(0.0, marks=pytest.mark.soak)])
async def test_scores_tell_honest_runs_from_others(wide: Checkpoint, tmp_path: Path, temperature: float) -> None:
    """A bfloat16 ring replayed in float32 scores low; fewer bits, another seed or temperature, high."""
    sampling = Sampling(temperature, seed=5)
    scores: dict[str, TokenStats] = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("int4", torch.bfloat16)):
        twists = {stage: LIES["int4"] for stage in range(3)} if name == "int4" else {}
        async with signed_ring(wide, SPANS, tmp_path / name, dtype=dtype, twists=twists) as ring:
            result = await ring.generate(RunRequest(PROMPT, 64, sampling, speculation="plain"))
        order = verify(Path(str(result.receipt)).read_bytes(), Options()).run.order  # type: ignore[union-attr]
        tokens, limit = list(result.token_ids), default_limit(order.dtype, order.wire)
        scores[name] = token_stats(ModelReplayer(wide).replay(order, PROMPT, tokens).gaps, limit)
        if name == "bfloat16":
            for what, changes in {
                "seed": {"seed": "00" * 8} if temperature else {"temperature_ppm": 1_000_000},
                "temperature": {"temperature_ppm": 1_500_000},
            }.items():
                other = replace(order, sampler=replace(order.sampler, **changes))  # type: ignore[arg-type]
                scores[what] = token_stats(ModelReplayer(wide).replay(other, PROMPT, tokens).gaps, limit)
    assert max(scores["float32"].score, scores["bfloat16"].score) <= HONEST, scores
    assert min(scores[name].score for name in ("int4", "seed", "temperature")) >= OTHER, scores


def test_published_receipts_are_still_read() -> None:
    """Receipts made before there were logs."""
    for path in Path("docs/receipts").glob("*.json"):
        assert verify(path.read_bytes()).exit_code == 0 and document_untrusted(path.read_bytes()).envelopes

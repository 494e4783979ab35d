"""A node that may not come in, or comes twice: its process ends with one clear line, and the swarm goes on."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from swarm.base.errors import RunError
from swarm.cli.main import main
from swarm.testbed.cluster import LocalRing, LocalSwarm, local_ring
from tests.bench.heal import make_model
from tests.warm import warm


async def join(ring: LocalRing, name: str, *words: str) -> None:
    """A further `swarm join`, which is to end by itself."""
    state = ring.swarm.state / name
    common = ("--no-lan", "--listen", "127.0.0.1:0", "--state", str(state), *ring.swarm.arguments)
    await ring.run("join", *common, *words, timeout=60.0)


async def test_who_may_not_come_in_is_told_why_in_one_line(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    other = tmp_path / "other"
    shutil.copytree(model, other)
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert (other / "config.json").read_text() != config
    state = tmp_path / "swarm"
    state.mkdir()
    words = ("--cpu", "--threads", "1", "--dtype", "float32", "--models", str(tmp_path / "models"))
    async with local_ring(
        LocalSwarm(state, model=str(model), arguments=words, command=warm()), [(0, 6), (6, 12)]
    ) as ring:
        first = state / ring.nodes[0].name
        given = (await ring.run("invite", "--state", str(first)))["invite"]
        assert await asyncio.to_thread(main, ["revoke", given, "--state", str(first), "--no-lan"]) == 0

        with pytest.raises(RunError, match=r"swarm: the invite was revoked; ask a member .*cause: revoked"):
            await join(ring, "late", "--swarm", given, "--model", str(model))
        with pytest.raises(
            RunError, match="swarm: the invite is for the model .* found .*; join with --model .*cause: model"
        ):
            await join(ring, "astray", "--swarm", ring.invite, "--model", str(other))

        twin = state / "twin"
        twin.mkdir()
        shutil.copy(state / ring.nodes[1].name / "identity.key", twin)
        with pytest.raises(RunError, match="two nodes use the key of .*; the other is at 127.0.0.1:.* another --state"):
            await join(ring, "twin", "--swarm", ring.invite, "--model", str(model), "--layers", "0:2")
        assert all(node.child.running for node in ring.nodes)
        out = await ring.generate("Hello", "--max-tokens", "3", "--models", str(tmp_path / "models"), "--draft", "none")
        assert out["new_tokens"] == 3

"""A node exchanges its block: beside the old one where memory allows, else instead of it where nobody needs that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import swarm.node.block_manager
from swarm.base.config import JoinConfig, MemberConfig
from swarm.base.errors import ModelError, RunError
from swarm.base.events import silent
from swarm.model.files.store import ModelStore
from swarm.node.block_manager import BlockManager
from swarm.node.host import Host, Hosting
from swarm.planner.api import BlockChoice
from swarm.stage.server import StageServer
from tests.ring.conftest import tiny_folder  # noqa: F401  a fixture
from tests.swarm.mesh.field import Ended, Field, Node, invite_of, until

THERE = BlockChoice(3, 6, 0, "fills layers 3-5, held by nobody")


class Fails(Host):
    """Layers that cannot be had."""

    def load(self, ref: str, layers: tuple[int, int]) -> Hosting:
        if layers in FAILING:
            raise ModelError(f"no {layers}")
        return super().load(ref, layers)


FAILING: set[tuple[int, int]] = set()


@dataclass
class House:
    """A node that serves layers 0 to 2 of a model of 6. `room`: free memory; None: only while it holds nothing."""

    node: Node
    other: Node
    tenant: BlockManager
    server: StageServer
    digest: bytes
    stop: asyncio.Event
    fatal: list[str] = field(default_factory=list)
    room: int | None = 1 << 30

    def told(self) -> Any:
        return self.node.gossip.member(self.node.board.id).record


@pytest.fixture
async def house(tiny_folder: Path, tmp_path: Path) -> AsyncIterator[House]:  # noqa: F811
    FAILING.clear()
    async with AsyncExitStack() as stack:
        swarm_ = Field(stack)
        node = await swarm_.first()
        other = await swarm_.join(invite_of(node))
        await until(lambda: len(node.up()) == 2, node)
        store = ModelStore(tmp_path / "models")
        manifest = store.open(str(tiny_folder), (0, 1), silent).manifest
        made: list[House] = []

        class Full(Fails):
            def free(self, device: torch.device) -> int:
                room = made[0].room if made else 1 << 30
                return room if room is not None else (1 << 30) * (made[0].server.hosted is None)

        config = JoinConfig(MemberConfig(tmp_path, tmp_path / "models"))
        host = Full(config, store, node.board.id, torch.device("cpu"), torch.float32, 1, silent)
        life = Ended()
        stop = asyncio.Event()
        tenant = BlockManager(host, node.board, node.gossip, manifest, str(tiny_folder), False, stop, life)
        hosting = await tenant.load((0, 3))
        assert hosting is not None
        server = StageServer(hosting.hosted, node.board, hosting.limits)
        digest = bytes.fromhex(manifest.digest)
        node.gossip.publish(model=digest)
        tenant.take(hosting)
        made.append(House(node, other, tenant, server, digest, stop, life.reasons))
        yield made[0]


async def test_the_new_block_is_loaded_beside_the_old_one(house: House) -> None:
    assert house.told().layers == (0, 3) and house.told().state == "serving"
    assert await house.tenant.move(house.server, THERE)
    assert house.server.hosted.block.first == 3
    assert (house.told().layers, house.told().claim, house.told().state) == ((3, 6), None, "serving")
    assert house.tenant.hosting.layers == (3, 6) and house.told().speed_us[0] > 0


async def test_the_old_block_goes_first_where_both_have_no_room(house: House) -> None:
    house.room = None
    seen: list[tuple[str, Any]] = []
    publish = house.node.gossip.publish
    house.node.gossip.publish = lambda **changes: (
        seen.append((changes["state"], changes["claim"])),
        publish(**changes),
    )  # type: ignore[method-assign]
    assert await house.tenant.move(house.server, THERE)
    assert seen == [("joining", (3, 6)), ("serving", None)]
    assert house.told().layers == (3, 6) and house.server.hosted.block.first == 3


async def test_it_stays_where_requests_would_miss_it(house: House) -> None:
    house.room = None
    house.other.gossip.publish(state="serving", layers=(3, 6), model=house.digest)
    await until(lambda: house.node.gossip.member(house.other.board.id).record.layers == (3, 6), house.node)
    assert not await house.tenant.move(house.server, THERE)
    assert house.told().layers == (0, 3) and house.server.hosted.block.first == 0


@pytest.mark.parametrize("room", [None, 1 << 30])
async def test_what_cannot_be_had_leaves_the_old_block_in_place(house: House, room: int | None) -> None:
    house.room = room
    FAILING.add((3, 6))
    with pytest.raises(ModelError, match=r"no \(3, 6\)"):
        await house.tenant.move(house.server, THERE)
    assert house.told().layers == (0, 3) and house.told().state == "serving"
    assert house.server.hosted.block.first == 0 and not house.fatal


async def test_a_node_that_gets_neither_block_ends_in_words(house: House) -> None:
    house.room = None
    FAILING.update({(3, 6), (0, 3)})
    with pytest.raises(RunError, match=r"neither the new layers \(no \(3, 6\)\) nor layers 0-2 again"):
        await house.tenant.move(house.server, THERE)
    assert len(house.fatal) == 1


async def test_a_run_that_began_meanwhile_is_waited_for_and_not_cut(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swarm.node.block_manager, "QUIET_WAIT_S", 0.4)
    house.server.sessions[b"run"] = SimpleNamespace(kept_until=0.0)  # type: ignore[assignment]
    assert not await house.tenant.move(house.server, THERE)
    assert house.told().layers == (0, 3) and house.server.hosted.block.first == 0
    house.server.sessions.clear()


@pytest.mark.parametrize("room", [None, 1 << 30])
async def test_a_node_that_is_told_to_leave_does_not_move(house: House, room: int | None) -> None:
    house.room = room
    house.stop.set()
    assert not await house.tenant.move(house.server, THERE)
    assert house.told().layers == (0, 3)

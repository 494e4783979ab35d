"""Whose a session is: nobody goes on with, copies from, or pays for what is another's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from swarm.base.errors import BusyError, PeerError
from swarm.model.files.checkpoint import open_model
from swarm.model.files.store import ModelStore
from swarm.net.identity import Identity
from swarm.ring.opening import OpenRun
from swarm.run.api import Finished, Recovering, RingOpened, RunRequest
from swarm.stage.admission import StageLimits, admit
from tests.ring.conftest import Stage, TestRing
from tests.ring.signed import signed_ring
from tests.ring.test_ring import generate

BLOCKS = [(0, 3), (3, 6)]
OTHER = Identity.generate().id


def taken(stage: Stage, opening: OpenRun, peer: bytes, limits: StageLimits | None = None) -> bool:
    """Whether the stage takes the opening from that peer with a KV that is empty. Raises what it refuses with."""
    hosted = stage.server.hosted
    assert hosted is not None
    sender: Any = SimpleNamespace(id=peer)
    session, fresh = admit(stage.server.sessions, hosted, limits or StageLimits(), opening, sender, False)
    stage.server.sessions.enter(session)
    return fresh


async def held(ring: TestRing) -> OpenRun:
    """What the head was told of a run that is over and that it still holds."""
    await generate(ring, RunRequest(tuple(range(1, 60)), max_tokens=4))
    (session,) = ring.stages[0].server.sessions.values()
    assert session.kept_until and session.held >= 50
    return session.opening


async def test_a_run_of_another_requester_is_not_taken_over(make_ring: Callable[..., Any]) -> None:
    async with make_ring(BLOCKS, keep_s=60.0) as ring:
        opening = replace(await held(ring), epoch=1, keep=50)
        with pytest.raises(PeerError, match="that run belongs to another requester"):
            taken(ring.stages[0], replace(opening, requester=OTHER), OTHER)
        assert not taken(ring.stages[0], opening, opening.requester)


async def test_another_requesters_keys_and_values_are_no_base(make_ring: Callable[..., Any]) -> None:
    async with make_ring(BLOCKS, keep_s=60.0) as ring:
        old = await held(ring)
        opening = replace(old, run=b"n" * 16, base=old.run, keep=50)
        assert taken(ring.stages[0], replace(opening, requester=OTHER), OTHER)
        assert not taken(ring.stages[0], replace(opening, run=b"m" * 16), old.requester)


async def test_behind_the_head_an_unsigned_run_is_paid_for_by_the_node_before(make_ring: Callable[..., Any]) -> None:
    """A head that names a requester of its choice spends its own share, and not that requester's."""
    async with make_ring(BLOCKS, keep_s=60.0) as ring:
        head, tail = ring.stages
        victim = await held(ring)
        limits = StageLimits(sessions_per_peer=3)
        named = replace(victim, index=1, run=b"1" * 16)
        (session,) = tail.server.sessions.values()
        assert session.owner.node == head.plan.node and not session.owner.signed
        for number in range(2):
            assert taken(tail, replace(named, run=bytes([number]) * 16, requester=OTHER), head.plan.node, limits)
        session.kept_until = 0.0
        with pytest.raises(BusyError, match="3 of them yours"):
            taken(tail, replace(named, run=b"2" * 16, requester=OTHER), head.plan.node, limits)
        assert taken(head, replace(victim, run=b"3" * 16), victim.requester, limits)


async def test_an_order_binds_the_session_to_its_signer(tiny_folder: Path, tmp_path: Path) -> None:
    checkpoint = open_model(str(tiny_folder), ModelStore(tmp_path / "models"))
    async with signed_ring(checkpoint, BLOCKS, tmp_path) as ring:
        async with aclosing(ring.desk.run(RunRequest((1, 2, 3), max_tokens=200, speculation="plain"))) as events:
            async for event in events:
                if isinstance(event, RingOpened):
                    break
            server = ring.nodes[1].server
            assert server is not None and server.hosted is not None
            (session,) = server.sessions.values()
            assert session.owner.node == ring.board.id and session.owner.signed
            opening, head = session.opening, ring.nodes[0].identity.id
            peer: Any = SimpleNamespace(id=head)

            def admitted(opened: OpenRun) -> Any:
                return admit(server.sessions, server.hosted, StageLimits(), opened, peer, False)  # type: ignore[arg-type]

            with pytest.raises(PeerError, match="signed by its requester, found another's signature"):
                admitted(replace(opening, run=b"x" * 16, requester=OTHER))
            with pytest.raises(PeerError, match="that run belongs to another requester"):
                admitted(replace(opening, epoch=1, record=None))


async def test_a_session_that_makes_room_for_one_that_is_refused_is_over(tiny_folder: Path, tmp_path: Path) -> None:
    """What it kept can be opened, and nobody who waits for the last session waits for it."""
    checkpoint = open_model(str(tiny_folder), ModelStore(tmp_path / "models"))
    async with signed_ring(checkpoint, BLOCKS, tmp_path) as ring:
        async with aclosing(ring.desk.run(RunRequest((1, 2, 3), max_tokens=200, speculation="plain"))) as events:
            async for event in events:
                if isinstance(event, RingOpened):
                    break
            server = ring.nodes[1].server
            assert server is not None and server.hosted is not None
            (session,) = server.sessions.values()
            assert session.account is not None and session.account.rows is not None
            assert not await server.sessions.empty_within(0.0)
            opening, peer = replace(session.opening, epoch=1, keep=0), SimpleNamespace(id=ring.nodes[0].identity.id)
            with pytest.raises(BusyError, match="this node is leaving"):
                admit(server.sessions, server.hosted, StageLimits(), opening, peer, True)  # type: ignore[arg-type]
            assert session.closed and session.account.rows is None
            assert await server.sessions.empty_within(1.0)


async def test_output_that_is_not_finite_is_not_passed_on(
    make_ring: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with make_ring([*BLOCKS, (0, 3)]) as ring:
        hosted = ring.stages[0].server.hosted
        assert hosted is not None
        view, passed = hosted.block.view, list[Any]()

        def broken(first: int, last: int) -> Any:
            block = view(first, last)
            forward = block.forward
            monkeypatch.setattr(block, "forward", lambda jobs: [out * torch.nan for out in forward(jobs)])
            return block

        monkeypatch.setattr(hosted.block, "view", broken)
        take = ring.stages[1].server._take_frame

        def watched(peer: Any, message: Any) -> None:
            if peer.id == ring.stages[0].plan.node:
                passed.append(message)
            take(peer, message)

        monkeypatch.setattr(ring.stages[1].server, "_take_frame", watched)
        reasons: list[str] = []
        async with aclosing(ring.desk.run(RunRequest((1, 2, 3), max_tokens=4))) as events:
            async for event in events:
                if isinstance(event, Recovering):
                    reasons.append(event.reason)
                if isinstance(event, Finished):
                    assert [info.node for info in event.result.ring][0] == ring.stages[2].plan.node.hex()
        assert len(reasons) == 1 and "not finite" in reasons[0]
        assert not passed

"""From the mesh to the planner, with real nodes in one process: they choose blocks, die, leave, and stay covered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import pytest

from swarm.base.clock import SystemTime
from swarm.base.errors import CoverageError
from swarm.base.nodeid import id_text
from swarm.discovery.planner_view import member_of, members_of, rtts_of, speed_of, speed_us
from swarm.discovery.rtt_probing import scout_ends, scout_hops, scout_planned
from swarm.mesh.record import NOWHERE
from swarm.mesh.view import MemberView
from swarm.node.rebalancer import Rebalancer
from swarm.planner.api import Ask, BlockChoice, Room, choose_block, plan_route
from swarm.planner.fleet import ModelShape, Speed, gaps, holders
from swarm.terminal.status import look_now, status_json
from tests.swarm.mesh.field import MODEL, Field, Node, invite_of, kill, until
from tests.swarm.mesh.make import ANN, record

SHAPE = ModelShape("m", (1000,) * 30, hidden_size=64, kv_bytes=1)


@pytest.fixture
async def field_() -> AsyncIterator[Field]:
    async with AsyncExitStack() as stack:
        yield Field(stack)


def view(standing: str = "up", **changes: object) -> MemberView:
    return MemberView(record(ANN, **changes), standing, 12.0, 1.0, True)


def test_a_member_is_told_to_the_planner_in_its_units() -> None:
    member = member_of(view())
    assert (member.node, member.first, member.last, member.state) == (id_text(ANN.id), 0, 10, "serving")
    assert member.speed == Speed(1.0, 1.2, 3.0) and member.overflow == 2 and member.claim == (10, 20)
    assert (member.up_mbps, member.down_mbps, member.queue_ms) == (40.0, 250.0, 0.12)
    assert speed_us(member.speed) == (1000, 1200, 3000) and speed_of((0, 0, 0)) is None and speed_us(None) == (0, 0, 0)


def test_what_is_unknown_stays_unknown() -> None:
    member = member_of(view(speed_us=(0, 0, 0), up_kbps=0, down_kbps=0, kv_capacity=0, kv_free=0))
    assert (member.speed, member.up_mbps, member.down_mbps, member.kv_free_bytes) == (None, None, None, None)
    assert member_of(view(kv_free=0)).kv_free_bytes == 0


@pytest.mark.parametrize(
    ("standing", "state", "expected"),
    [
        *(("up", "serving", "serving"), ("suspect", "serving", "suspect"), ("suspect", "joining", "joining")),
        *(("down", "serving", "left"), ("expired", "serving", "left"), ("up", "draining", "draining")),
    ],
)
def test_standings_become_states(standing: str, state: str, expected: str) -> None:
    assert member_of(view(standing, state=state)).state == expected


async def take_block(node: Node, capacity: int) -> None:
    """What a node does between joining and serving, with an instant load."""
    me = node.board.id
    room = Room(id_text(me), capacity * 1000, speed=Speed(1, 1, 1))
    claim: tuple[int, int] | None = None
    for _ in range(12):
        block = choose_block(SHAPE, room, members_of(node.gossip), rtts_of(node.gossip, me))
        if claim == (block.first, block.last):
            break
        claim = block.first, block.last
        node.gossip.publish(state="joining", claim=claim)
        await asyncio.sleep(0.4)  # what the claim needs to reach everybody: time itself is the protocol here
    node.gossip.publish(state="serving", layers=claim, claim=None, speed_us=(1000, 1000, 1000), model=MODEL)


def missing(node: Node) -> tuple[tuple[int, int], ...]:
    return gaps(holders(members_of(node.gossip), 30))


async def test_eight_unequal_nodes_cover_the_model_through_joins_a_leave_and_a_kill(field_: Field) -> None:
    first = await field_.first()
    nodes = [first]
    await take_block(first, 12)
    for capacity in (5, 9, 7, 12, 6):
        nodes.append(await field_.join(invite_of(first)))
        await until(lambda: len(nodes[-1].up()) == len(nodes), nodes[-1])
        await take_block(nodes[-1], capacity)
    two = [await field_.join(invite_of(nodes[1])), await field_.join(invite_of(nodes[2]))]
    nodes += two
    await until(lambda: all(len(n.up()) == 8 for n in nodes), *nodes)
    await asyncio.gather(take_block(two[0], 10), take_block(two[1], 10))
    await until(lambda: all(not missing(n) for n in nodes), *nodes)
    held = {n.board.id: n.gossip.member(n.board.id).record.layers for n in nodes}
    assert NOWHERE not in held.values()

    # The one whose loss hurts least leaves, then one dies; a newcomer fills what that opened. Survivors keep theirs.
    leaver = next(n for n in nodes if not gaps(holders(without(n, n), 30)))
    await leaver.gossip.leave()
    await leaver.board.aclose()
    rest = [n for n in nodes if n is not leaver]
    await until(lambda: all(leaver.board.id not in n.up() for n in rest), *rest)
    kill(rest[-1])
    rest.pop()
    await until(lambda: all(len(n.up()) == 6 for n in rest), *rest)
    newcomer = await field_.join(invite_of(rest[0]))
    rest.append(newcomer)
    await until(lambda: len(newcomer.up()) == 7, newcomer)
    await take_block(newcomer, 12)
    await until(lambda: all(not missing(n) for n in rest), *rest)
    assert all(n.gossip.member(n.board.id).record.layers == held[n.board.id] for n in rest if n is not newcomer)
    route = plan_route(SHAPE, members_of(newcomer.gossip), rtts_of(newcomer.gossip, newcomer.board.id), Ask("me"))
    assert route.stages[-1].last == 30


def without(viewer: Node, gone: Node) -> list[object]:
    return [m for m in members_of(viewer.gossip) if m.node != id_text(gone.board.id)]


async def test_scouts_measure_the_hops_of_routes_and_status_shows_all(field_: Field) -> None:
    a = await field_.first()
    b = await field_.join(invite_of(a))
    guest = await field_.join(invite_of(a), role="guest")
    for node, layers in ((a, (0, 15)), (b, (15, 30))):
        node.gossip.publish(layers=layers, model=MODEL, speed_us=(1000, 1100, 2000), device="a CPU")
    await until(lambda: all(len(members_of(n.gossip, MODEL)) == 2 for n in (a, b, guest)), a, b, guest)
    await scout_hops(a.gossip, a.board.id, MODEL, 30)
    await scout_ends(guest.gossip, guest.board.id, MODEL, 30)
    assert a.gossip.rtts.get(b.board.id, 0) is not None or a.gossip.member(b.board.id).rtt_ms is not None
    assert {v.record.node for v in guest.gossip.members() if v.rtt_ms is not None} == {a.board.id, b.board.id}
    data = status_json(look_now(guest.gossip, guest.board.id, MODEL, "tiny"))
    assert data["covered"] and data["missing"] is None and data["held"] == [1] * 30
    assert [s["layers"] for s in data["ring"]["stages"]] == [[0, 15], [15, 30]]
    assert {n["name"] for n in data["nodes"]} == {a.identity.short, b.identity.short}
    b.gossip.publish(layers=(15, 20))
    await until(lambda: missing(guest) == ((20, 30),), guest)
    data = status_json(look_now(guest.gossip, guest.board.id, MODEL, "tiny"))
    assert not data["covered"] and data["missing"] == "layers 20-29" and data["ring"] is None
    with pytest.raises(CoverageError, match="layers 20-29 are held by nobody; 2 nodes present"):
        rtts = rtts_of(guest.gossip, guest.board.id)
        plan_route(SHAPE, members_of(guest.gossip, MODEL), rtts, replace(Ask("x"), requester=guest.identity.text))


@dataclass
class Moves:
    """A node whose move is what it says."""

    node: Node
    idle: bool
    moves: list[tuple[bytes, tuple[int, int]]]

    async def move(self, block: BlockChoice) -> bool:
        self.moves.append((self.node.board.id, (block.first, block.last)))
        self.node.gossip.publish(layers=(block.first, block.last), claim=None)
        return True


class Hasty(SystemTime):
    """A thousand times too fast, so that nobody has to wait after a move."""

    def now(self) -> float:
        return super().now() * 1000


async def test_of_two_spare_nodes_exactly_one_fills_the_hole_that_a_death_opens(field_: Field) -> None:
    first = await field_.first()
    nodes = [first] + [await field_.join(invite_of(first)) for _ in range(3)]
    await until(lambda: all(len(n.up()) == 4 for n in nodes), *nodes)
    blocks = [(0, 15), (15, 30), (0, 15), (0, 15)]
    moves: list[tuple[bytes, tuple[int, int]]] = []
    busy = {nodes[0].board.id}
    for node, layers in zip(nodes, blocks, strict=True):
        node.gossip.publish(layers=layers, model=MODEL, speed_us=(1000, 1000, 1000))

        me = node.board.id
        mover = Rebalancer(
            node.gossip, me, MODEL, SHAPE, Room(id_text(me), 15_000, speed=Speed(1, 1, 1)), BlockChoice(*layers, 0, ""),
            Moves(node, me not in busy, moves), Hasty(), look_s=0.3, settle_s=0.6,
        )  # fmt: skip
        node.gossip._tasks.spawn(mover.keep_looking())
    await until(lambda: all(not missing(n) for n in nodes), *nodes)
    kill(nodes[1])
    rest = [nodes[0], *nodes[2:]]
    await until(lambda: all(not missing(n) for n in rest) and bool(moves), *rest)
    assert len(moves) == 1 and moves[0][1] == (15, 30) and moves[0][0] not in busy
    assert all(node.gossip.member(moves[0][0]).record.claim is None for node in rest)


async def test_the_ends_of_the_route_that_would_be_taken_are_measured(field_: Field) -> None:
    """And those of the next one, when what was measured changes it; then that is enough."""
    a = await field_.first()
    b = await field_.join(invite_of(a))
    c = await field_.join(invite_of(a))
    guest = await field_.join(invite_of(a), role="guest")
    await until(lambda: len(members_of(guest.gossip)) == 3, guest)
    nodes, asked = [n.board.id for n in (a, b, c)], []

    def planned() -> list[bytes]:
        asked.append([guest.gossip.member(node).rtt_ms is not None for node in nodes[1:]])
        return [nodes[1 + len(asked) // 2], nodes[0]]

    await scout_planned(guest.gossip, planned)
    assert asked == [[False, False], [True, False]]
    await scout_planned(guest.gossip, planned)
    assert asked[2:] == [[True, True]]

    def uncovered() -> list[bytes]:
        raise CoverageError("layers are missing")

    await scout_planned(guest.gossip, uncovered)

"""Block choice: what fits, what is covered, who moves and who stays."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.base.errors import UsageError
from swarm.planner.block_choice import (
    FILL_EVERY_S,
    MOVE_EVERY_S,
    BlockChoice,
    Room,
    choose_block,
    fit,
    reconsider,
    sliced,
    throughput,
    usual_speed,
)
from swarm.planner.fleet import KnownRtts, Member, ModelShape, Speed, gaps, holders, say_layers


def shape(layers: int, head: int = 0, tail: int = 0, each: int = 100) -> ModelShape:
    return ModelShape("m", (each,) * layers, 64, kv_bytes=1, head_bytes=head, tail_bytes=tail)


def held(members: list[Member], model: ModelShape) -> list[int]:
    return list(holders(members, model.n_layers))


def serving(room: Room, block: BlockChoice) -> Member:
    return Member(room.node, block.first, block.last, room.speed, block.overflow, room.overflow_speed)


speeds = st.none() | st.builds(lambda ms: Speed(ms, ms * 1.3, ms * 3), st.floats(0.1, 50))


@given(
    st.lists(st.integers(50, 400), min_size=1, max_size=12),
    st.integers(0, 500),
    st.integers(0, 500),
    st.integers(0, 4000),
    st.integers(0, 2000),
    st.integers(0, 50),
    st.none() | st.integers(1, 12),
    st.lists(st.tuples(st.integers(0, 11), st.integers(1, 12), speeds), max_size=5),
)
def test_a_block_always_fits_and_is_as_long_as_can_be(
    sizes: list[int],
    head: int,
    tail: int,
    memory: int,
    overflow: int,
    context: int,
    most: int | None,
    others: list[tuple[int, int, Speed | None]],
) -> None:
    model = ModelShape("m", tuple(sizes), 64, kv_bytes=2, head_bytes=head, tail_bytes=tail)
    room = Room("me", memory, context, most, None, overflow, Speed(9, 9, 9))
    members = [Member(f"n{i}", a, min(a + b, len(sizes)), s) for i, (a, b, s) in enumerate(others) if a < len(sizes)]
    try:
        block = choose_block(model, room, members)
    except UsageError:
        assert all(fit(model, room, a)[0] == 0 for a in range(len(sizes)))
        return
    cost = [size + context * 2 for size in sizes]
    cost[0] += head
    cost[-1] += tail
    inner = block.last - block.overflow
    if sliced(model, room, block.first) is not None:
        assert block.overflow == 0 and sum(cost[block.first : block.last]) <= memory + overflow
        return
    assert 0 <= block.first < block.last <= len(sizes) and block.first <= inner
    assert sum(cost[block.first : inner]) <= memory
    assert sum(cost[inner : block.last]) <= overflow
    assert most is None or block.layers <= most
    longest = max(fit(model, room, a)[0] for a in range(len(sizes)))
    at_an_end = block.first == 0 or block.last == len(sizes)
    assert block.layers == longest or at_an_end


def test_one_layer_that_does_not_fit_is_said_with_numbers() -> None:
    with pytest.raises(UsageError, match=r"needs 1\.00 GB, found 0\.50 GB free.*\(cause: memory\)"):
        choose_block(shape(4, each=10**9), Room("me", 5 * 10**8), [])


@given(st.integers(1, 40), st.lists(st.tuples(st.integers(1, 12), speeds), min_size=1, max_size=30))
def test_nodes_that_come_one_after_another_cover_what_they_can(
    layers: int, nodes: list[tuple[int, Speed | None]]
) -> None:
    model = shape(layers)
    members: list[Member] = []
    for i, (capacity, speed) in enumerate(nodes):
        room = Room(f"n{i:02}", capacity * 100, speed=speed)
        members.append(serving(room, choose_block(model, room, members)))
    enough = sum(capacity for capacity, _ in nodes) >= layers
    assert (gaps(held(members, model)) == ()) == enough or not enough
    covered = sum(1 for count in held(members, model) if count)
    assert covered == min(layers, sum(min(capacity, layers) for capacity, _ in nodes))


@settings(max_examples=40)
@given(st.integers(1, 30), st.lists(st.integers(1, 12), min_size=2, max_size=9), st.randoms(use_true_random=False))
def test_nodes_that_join_at_once_end_where_they_would_one_by_one(
    layers: int, capacities: list[int], draw: random.Random
) -> None:
    """Each sees some of the others' claims, late and in any order, as gossip gives them; all settle."""
    model = shape(layers)
    rooms = [Room(f"n{i:02}", capacity * 100) for i, capacity in enumerate(capacities)]
    claims: dict[str, Member] = {}
    seen: dict[str, dict[str, Member]] = {room.node: {} for room in rooms}
    for _ in range(len(rooms) + 2):
        for room in draw.sample(rooms, len(rooms)):
            block = choose_block(model, room, list(seen[room.node].values()))
            claims[room.node] = Member(room.node, state="joining", claim=(block.first, block.last))
            for other in rooms:
                if draw.random() < 0.5:
                    seen[other.node][room.node] = claims[room.node]
        for room in rooms:  # anti-entropy before the next look
            seen[room.node].update(claims)
    after = {room.node: choose_block(model, room, list(claims.values())) for room in rooms}
    assert {name: (b.first, b.last) for name, b in after.items()} == {name: m.claim for name, m in claims.items()}
    members = [serving(room, after[room.node]) for room in rooms]
    covered = sum(1 for count in held(members, model) if count)
    assert covered == min(layers, sum(min(c, layers) for c in capacities))


def test_a_hole_comes_before_a_weak_range_and_a_weak_range_before_a_strong_one() -> None:
    model = shape(12)
    fast, slow = Speed(1, 1, 1), Speed(50, 50, 50)
    members = [Member("a", 0, 4, slow), Member("b", 8, 12, fast)]
    assert choose_block(model, Room("me", 400), members).reason == "layers 4-7 held by nobody"
    members.append(Member("c", 4, 8, fast))
    block = choose_block(model, Room("me", 400), members)
    assert (block.first, block.last) == (0, 4) and block.reason.startswith("the weakest range")


def test_equally_weak_ranges_are_told_apart_by_nearness() -> None:
    model = shape(6)
    members = [Member(n, a, a + 2, Speed(1, 1, 1)) for n, a in (("a", 0), ("b", 2), ("c", 4))]
    near_c = KnownRtts({("me", "c"): 1.0}, default_ms=100.0)
    assert choose_block(model, Room("me", 200), members, near_c).first == 2
    near_ab = KnownRtts({("me", "b"): 1.0}, default_ms=100.0)
    assert choose_block(model, Room("me", 200), members, near_ab).first in (0, 4)


room_members = st.lists(
    st.tuples(st.integers(0, 19), st.integers(1, 10), speeds, st.sampled_from(["serving", "joining", "draining"])),
    min_size=1,
    max_size=12,
)


@given(room_members, st.integers(0, 11))
def test_a_move_fills_a_hole_or_gains_over_a_fifth_and_opens_none(
    nodes: list[tuple[int, int, Speed | None, str]], mover: int
) -> None:
    model = shape(20)
    members = [Member(f"n{i:02}", a, min(a + c, 20), s, state=state) for i, (a, c, s, state) in enumerate(nodes)]
    me = members[mover % len(members)]
    room = Room(me.node, me.layers * 100, speed=me.speed)
    current = BlockChoice(me.first, me.last, 0, "")
    others = [m for m in members if m is not me]
    move = reconsider(model, room, current, members, idle=True, since_move_s=MOVE_EVERY_S)
    assert reconsider(model, room, current, members, idle=False, since_move_s=1e9) is None
    assert reconsider(model, room, current, members, idle=True, since_move_s=FILL_EVERY_S - 1) is None
    sooner = reconsider(model, room, current, members, idle=True, since_move_s=MOVE_EVERY_S - 1)
    assert sooner is None or sooner.reason.startswith("fills")
    if move is None:
        return
    usual = usual_speed(members)
    seen = [m for m in others if m.state == "serving"]
    before = throughput([*seen, replace(me, state="serving")], 20, usual)
    after = throughput([*seen, serving(room, move)], 20, usual)
    if (before == 0).any():
        assert (after == 0).sum() < (before == 0).sum()
        assert not ((before > 0) & (after == 0)).any()
    else:
        assert after.min() > 1.2 * before.min()


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(1, 10), speeds), min_size=2, max_size=8))
def test_moves_end(nodes: list[tuple[int, int, Speed | None]]) -> None:
    model = shape(20)
    members = {f"n{i}": Member(f"n{i}", a, min(a + c, 20), s) for i, (a, c, s) in enumerate(nodes)}
    for _ in range(60):
        moved = False
        for name, me in list(members.items()):
            room = Room(name, me.layers * 100, speed=me.speed)
            current = BlockChoice(me.first, me.last, 0, "")
            move = reconsider(model, room, current, list(members.values()), idle=True, since_move_s=1e9)
            if move is not None:
                members[name] = serving(room, move)
                moved = True
        if not moved:
            return
    pytest.fail("nodes kept moving")


def test_a_joining_node_makes_nobody_reload() -> None:
    model = shape(12)
    a, b = Member("a", 0, 6, Speed(1, 1, 1)), Member("b", 6, 12, Speed(1, 1, 1))
    c = Member("c", 0, 6, Speed(1, 1, 1))
    for me in (a, b):
        room = Room(me.node, 600, speed=me.speed)
        assert (
            reconsider(model, room, BlockChoice(me.first, me.last, 0, ""), [a, b, c], idle=True, since_move_s=1e9)
            is None
        )


def test_of_two_spare_nodes_one_fills_the_hole() -> None:
    model = shape(9)
    members = [Member("a", 0, 6), Member("s", 0, 3), Member("t", 3, 6)]
    moves = {}
    for name in ("s", "t"):
        me = next(m for m in members if m.node == name)
        moves[name] = reconsider(
            model, Room(name, 300), BlockChoice(me.first, me.last, 0, ""), members, idle=True, since_move_s=1e9
        )
    assert [(m.first, m.last, m.reason) for m in moves.values() if m] == [
        (6, 9, "fills layers 6-8, held by nobody")
    ] * 2
    # Both would; both say so; the one with the larger name then sees the other's claim and stays.
    said = [replace(m, claim=(6, 9)) if m.node in moves else m for m in members]
    again = {
        m.node: reconsider(
            model, Room(m.node, 300), BlockChoice(m.first, m.last, 0, ""), said, idle=True, since_move_s=1e9
        )
        for m in said[1:]
    }
    assert again["s"] is not None and again["t"] is None


def test_layers_are_said_as_people_count_them() -> None:
    assert say_layers([(4, 5)]) == "layer 4"
    assert say_layers([(20, 30)]) == "layers 20-29"
    assert say_layers([(3, 6), (9, 10)]) == "layers 3-5 and 9"
    assert say_layers([(0, 1), (3, 6), (9, 10)]) == "layers 0, 3-5 and 9"

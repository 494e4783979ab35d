"""Route choice against brute force on small swarms, and its constraints."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.base.errors import CoverageError
from swarm.planner.fleet import GUESS, KnownRtts, Matrix, Member, ModelShape, Rtts, Speed, usual_speed
from swarm.planner.route import HOP_MS, Ask, Route, plan_route

LAYERS = 4
MODEL = ModelShape("small", (100,) * LAYERS, hidden_size=1000, kv_bytes=10)
FAST = Speed(1.0, 2.0, 4.0)

times = st.floats(0.1, 20.0)


@st.composite
def swarms(draw: st.DrawFn) -> tuple[list[Member], Rtts]:
    count = draw(st.integers(2, 4))
    members = []
    for i in range(count):
        # Wide ranges mostly, so that most swarms can be routed through and constraints have something to bind.
        first = draw(st.sampled_from([0, 0, 0, 1, 2]))
        last = draw(st.sampled_from([3, LAYERS, LAYERS]))
        ms = draw(times)
        members.append(
            Member(
                f"n{i}",
                first,
                last,
                speed=Speed(ms, ms * draw(st.floats(1, 2)), ms * 3) if draw(st.integers(0, 5)) else None,
                overflow=draw(st.integers(0, last - first)) if draw(st.booleans()) else 0,
                overflow_speed=Speed(30.0, 40.0, 90.0),
                kv_free_bytes=draw(st.sampled_from([None, None, 900, 1000, 2500, 3999])),
                up_mbps=draw(st.none() | st.floats(1, 100)),
                down_mbps=draw(st.none() | st.floats(1, 100)),
                queue_ms=draw(st.floats(0, 10)),
                owner=draw(st.sampled_from(["", "ann", "bob", "eve"])),
            )
        )
    names = ["me", *(m.node for m in members)]
    pairs = {(a, b): draw(st.floats(0, 50)) for i, a in enumerate(names) for b in names[:i]}
    return members, KnownRtts(pairs)


asks = st.builds(
    Ask,
    requester=st.just("me"),
    rows=st.sampled_from([1, 8, 20, 64, 100]),
    context=st.sampled_from([1, 50, 100]),
    first=st.integers(0, 1),
    last=st.sampled_from([None, LAYERS - 1]),
    exclude=st.sampled_from([frozenset(), frozenset(), frozenset({"n0"})]),
    trust=st.sampled_from([None, None, frozenset({"ann", "bob", "n1", "n2"})]),
    min_owners=st.integers(1, 3),
)


def fits(member: Member, ask: Ask) -> int:
    if member.kv_free_bytes is None:
        return LAYERS
    return member.kv_free_bytes // (MODEL.kv_bytes * ask.context)


def ways(members: Sequence[Member], ask: Ask, at: int, used: tuple[int, ...]) -> Iterator[list[tuple[int, int, int]]]:
    """Every sequence of (member, first, last) that computes the layers from `at` on."""
    last = LAYERS if ask.last is None else ask.last
    if at == last:
        yield []
        return
    for i, member in enumerate(members):
        allowed = ask.trust is None or member.node in ask.trust or (member.owner and member.owner in ask.trust)
        if i in used or member.node in ask.exclude or not allowed or not member.first <= at < member.last:
            continue
        for end in range(at + 1, min(member.last, last, at + fits(member, ask)) + 1):
            for rest in ways(members, ask, end, (*used, i)):
                yield [(i, at, end), *rest]


def price(members: Sequence[Member], usual: Speed, rtt: Matrix, ask: Ask, way: Sequence[tuple[int, int, int]]) -> float:
    """The pass time by the book, written apart from the planner."""
    last = LAYERS if ask.last is None else ask.last
    private = ask.first > 0 or last < LAYERS
    bits = ask.rows * 2 * MODEL.hidden_size * 8 / 1000
    total, before = 0.0, None
    for i, first, end in way:
        m = members[i]
        down = bits / m.down_mbps if m.down_mbps else 0.0
        if before is None:
            total += rtt[0, i + 1] / 2 + (down if private else 0.0)
        else:
            up = members[before].up_mbps
            total += rtt[before + 1, i + 1] / 2 + max(down, bits / up if up else 0.0)
        total += m.queue_ms + HOP_MS
        for layer in range(first, end):
            slow = layer >= m.last - m.overflow
            total += ((m.overflow_speed if slow else m.speed) or m.speed or usual).ms(ask.rows)
        before = i
    up = members[before].up_mbps
    return total + rtt[before + 1, 0] / 2 + (bits / up if private and up else 0.0) + HOP_MS


def best(members: Sequence[Member], rtts: Rtts, ask: Ask) -> float:
    rtt = rtts([ask.requester, *(m.node for m in members)])
    usable = [
        m
        for m in members
        if m.node not in ask.exclude
        and (ask.trust is None or m.node in ask.trust or (m.owner and m.owner in ask.trust))
        and (m.kv_free_bytes is None or fits(m, ask) >= 1)
    ]
    usual = usual_speed(usable)
    found = math.inf
    for way in ways(members, ask, ask.first, ()):
        if len({members[i].owner or members[i].node for i, _, _ in way}) >= ask.min_owners:
            found = min(found, price(members, usual, rtt, ask, way))
    return found


@settings(max_examples=300, deadline=None)
@given(swarms(), asks)
def test_the_route_is_the_cheapest_that_the_constraints_allow(swarm: tuple[list[Member], Rtts], ask: Ask) -> None:
    members, rtts = swarm
    expected = best(members, rtts, ask)
    try:
        route = plan_route(MODEL, members, rtts, ask)
    except CoverageError:
        assert expected == math.inf
        return
    assert route.pass_ms == pytest.approx(expected, rel=1e-9)
    check(route, members, ask)


def check(route: Route, members: Sequence[Member], ask: Ask) -> None:
    last = LAYERS if ask.last is None else ask.last
    edges = [ask.first, *(stage.last for stage in route.stages)]
    assert [stage.first for stage in route.stages] == edges[:-1] and edges[-1] == last
    assert len(set(route.nodes)) == len(route.nodes)
    by_name = {m.node: m for m in members}
    assert all(by_name[s.node].first <= s.first < s.last <= by_name[s.node].last for s in route.stages)
    parts = sum(s.arrive_ms + s.transfer_ms + s.queue_ms + s.compute_ms + HOP_MS for s in route.stages)
    if not any(s.queue_ms for s in route.stages):
        assert route.pass_ms >= parts + route.return_ms


@settings(max_examples=60, deadline=None)
@given(swarms(), st.integers(0, 99))
def test_spreading_costs_at_most_one_percent(swarm: tuple[list[Member], Rtts], seed: int) -> None:
    members, rtts = swarm
    free = [replace(m, kv_free_bytes=None) for m in members]
    try:
        exact = plan_route(MODEL, free, rtts, Ask("me"))
    except CoverageError:
        return
    spread = plan_route(MODEL, free, rtts, Ask("me", spread=seed))
    assert exact.pass_ms <= spread.pass_ms + 1e-9
    assert spread.pass_ms <= 1.0101 * exact.pass_ms


def test_equal_nodes_share_requesters_and_a_busy_one_gets_none() -> None:
    members = [Member(f"n{i}", 0, LAYERS, FAST) for i in range(4)]
    chosen = {plan_route(MODEL, members, KnownRtts(), Ask("me", spread=seed)).nodes for seed in range(64)}
    assert chosen == {(f"n{i}",) for i in range(4)}
    busy = [replace(members[0], sessions=5), *members[1:]]
    assert ("n0",) not in {plan_route(MODEL, busy, KnownRtts(), Ask("me", spread=seed)).nodes for seed in range(64)}


def test_a_slow_node_that_holds_both_ends_is_used_once() -> None:
    # Without the rule the cheapest way would be slow, fast, slow.
    slow = Member("slow", 0, LAYERS, Speed(100, 100, 100))
    fast = Member("fast", 1, LAYERS - 1, Speed(1, 1, 1))
    route = plan_route(MODEL, [slow, fast], KnownRtts(default_ms=2), Ask("me"))
    assert route.nodes == ("slow",)


def test_missing_layers_are_named() -> None:
    model = ModelShape("m", (1,) * 30, 8, 1)
    members = [Member("a", 0, 12, FAST), Member("b", 10, 20, FAST)]
    with pytest.raises(CoverageError, match="^layers 20-29 are held by nobody; 2 nodes present$"):
        plan_route(model, members, KnownRtts(), Ask("me"))
    with pytest.raises(CoverageError, match="^layer 12 is held by nobody; 2 nodes present$"):
        plan_route(model, [members[0], Member("c", 13, 30)], KnownRtts(), Ask("me"))
    with pytest.raises(CoverageError, match="^layers 0-9 are held only by nodes that this request excludes"):
        full = [*members, Member("c", 20, 30)]
        plan_route(model, full, KnownRtts(), Ask("me", exclude=frozenset({"a"})))
    with pytest.raises(CoverageError, match="^layers 0-29 are held by nobody; 0 nodes present$"):
        plan_route(model, [], KnownRtts(), Ask("me"))


def test_too_few_owners_are_told_apart_from_missing_layers() -> None:
    members = [Member("a", 0, LAYERS, FAST, owner="ann"), Member("b", 0, LAYERS, FAST, owner="ann")]
    with pytest.raises(CoverageError, match="no route passes through 2 different owners"):
        plan_route(MODEL, members, KnownRtts(), Ask("me", min_owners=2))


def test_a_suspected_node_is_used_only_when_nothing_else_holds_a_layer() -> None:
    doubtful = Member("doubtful", 0, LAYERS, Speed(0.1, 0.1, 0.1), state="suspect")
    sound = Member("sound", 0, LAYERS, Speed(50, 50, 50))
    assert plan_route(MODEL, [doubtful, sound], KnownRtts(), Ask("me")).nodes == ("sound",)
    assert plan_route(MODEL, [doubtful], KnownRtts(), Ask("me")).nodes == ("doubtful",)
    with pytest.raises(CoverageError):
        plan_route(MODEL, [replace(sound, state="draining")], KnownRtts(), Ask("me"))


def test_unmeasured_nodes_are_priced_like_the_usual_one() -> None:
    assert usual_speed([]) == GUESS
    known = [Member("a", 0, 1, Speed(1, 2, 3)), Member("b", 0, 1, Speed(3, 4, 5)), Member("c", 0, 1)]
    assert usual_speed(known) == Speed(2, 3, 4)
    route = plan_route(MODEL, [Member("c", 0, LAYERS), Member("d", 0, 0, Speed(1, 1, 1))], KnownRtts(), Ask("me"))
    assert route.stages[0].compute_ms == pytest.approx(LAYERS * GUESS.ms(16))


def test_a_large_swarm_is_planned_by_the_same_code() -> None:
    draw = np.random.default_rng(1)
    model = ModelShape("m", (1,) * 40, 8, 1)
    starts = draw.integers(0, 31, 300)
    members = [
        Member(f"n{i}", int(a), int(a) + 10, Speed(*(draw.uniform(1, 3) * np.array([1, 1.2, 3]))))
        for i, a in enumerate(starts)
    ]
    members += [Member("head", 0, 10, FAST), Member("tail", 30, 40, FAST)]
    route = plan_route(model, members, KnownRtts(default_ms=40), Ask("me", min_owners=3))
    assert sum(s.last - s.first for s in route.stages) == 40 and len(route.stages) >= 4


def test_preferred_kernels_are_worth_a_little_and_no_more() -> None:
    """A replacement of the lost node's kernels goes on with the same bits: worth 50 ms of a pass."""
    alike, other = Member("alike", 0, LAYERS, FAST, kernels="aa"), Member("other", 0, LAYERS, FAST, kernels="bb")
    unmeasured = Member("none", 0, LAYERS, FAST)
    rtts = KnownRtts({("me", "alike"): 80.0, ("me", "other"): 10.0, ("me", "none"): 12.0})
    members = [alike, other, unmeasured]
    preferring = Ask("me", kernels=frozenset({"aa"}))
    assert plan_route(MODEL, members, rtts, Ask("me")).nodes == ("other",)
    chosen = plan_route(MODEL, members, rtts, preferring)
    assert chosen.nodes == ("other",)  # 70 ms nearer
    near = KnownRtts({**rtts.pairs, ("me", "alike"): 50.0})
    chosen = plan_route(MODEL, members, near, preferring)
    assert chosen.nodes == ("alike",) and chosen.pass_ms < 70  # priced as it is
    assert plan_route(MODEL, [other, unmeasured], near, preferring).nodes == ("other",)

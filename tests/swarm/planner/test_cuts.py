"""Models that cannot be cut everywhere: blocks and routes keep to what they allow."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.base.errors import CoverageError, UsageError
from swarm.planner.api import Ask, KnownRtts, Member, ModelShape, Room, Speed, choose_block, plan_route
from swarm.planner.block_choice import fit, sliced
from swarm.planner.dry_run import dry_run
from swarm.planner.fleet_file import Fleet, parse_fleet

SPEED = Speed(1.0, 2.0, 8.0)
SHAPE = ModelShape("tied", (100,) * 12, 8, 1, 30, 20, every_bytes=10, forbidden=frozenset(range(6, 12)))
"""Layers 5 to 11 stay together."""


@given(
    forbidden=st.frozensets(st.integers(1, 11), max_size=11),
    memory=st.integers(0, 2000),
    spare=st.integers(0, 1500),
    first=st.integers(0, 11),
    most=st.none() | st.integers(1, 12),
)
def test_what_fits_ends_where_the_model_may_be_cut(
    forbidden: frozenset[int], memory: int, spare: int, first: int, most: int | None
) -> None:
    model = replace(SHAPE, forbidden=forbidden)
    taken, overflow = fit(model, Room("n", memory, 0, most, SPEED, spare), first)
    assert 0 <= overflow <= taken <= 12 - first and taken <= (most or 12)
    if sliced(model, Room("n", memory, 0, most, SPEED, spare), first) is not None:
        assert forbidden.isdisjoint({first, first + taken} - {0, 12}) and 100 * taken <= memory + spare
    elif taken:
        assert forbidden.isdisjoint({first, first + taken, first + taken - overflow} - {0, 12})
        kept = taken - overflow
        assert 100 * kept + (30 * (first == 0) if kept else 0) <= memory
        assert 100 * overflow <= spare


@given(data=st.data(), forbidden=st.frozensets(st.integers(1, 11), max_size=9))
def test_routes_are_cut_where_the_model_may_be(data: st.DataObject, forbidden: frozenset[int]) -> None:
    model = replace(SHAPE, forbidden=forbidden)
    members = []
    for i in range(data.draw(st.integers(1, 5))):
        first = data.draw(st.integers(0, 11))
        members.append(Member(f"n{i}", first, data.draw(st.integers(first + 1, 12)), SPEED))
    try:
        route = plan_route(model, members, KnownRtts(), Ask("me"))
    except CoverageError:
        free = [c for c in range(13) if c not in forbidden]
        reach = {0}
        for cut in free:  # without a limit on uses of a member this is what a route needs
            reach |= {c for c in free if cut in reach and any(m.first <= cut < c <= m.last for m in members)}
        assert 12 not in reach or len(members) > 1
        return
    assert [stage.first for stage in route.stages][0] == 0 and route.stages[-1].last == 12
    assert forbidden.isdisjoint(stage.first for stage in route.stages)


def test_a_node_takes_the_whole_of_what_stays_together_or_nothing_of_it() -> None:
    assert choose_block(SHAPE, Room("big", 760), []).first == 5
    small = choose_block(SHAPE, Room("small", 400), [Member("big", 5, 12, SPEED)])
    assert (small.first, small.last) in {(0, 3), (1, 4), (2, 5)}
    with pytest.raises(UsageError, match="the smallest part of tied"):
        choose_block(replace(SHAPE, forbidden=frozenset(range(1, 12))), Room("small", 400), [])


def test_a_part_that_nobody_holds_whole_is_named() -> None:
    members = [Member("a", 0, 8, SPEED), Member("b", 8, 12, SPEED)]
    with pytest.raises(CoverageError, match="layers 5-11 of tied stay together"):
        plan_route(SHAPE, members, KnownRtts(), Ask("me"))
    with pytest.raises(CoverageError, match="cannot be cut before layer 6"):
        plan_route(SHAPE, [Member("a", 0, 12, SPEED)], KnownRtts(), Ask("me", first=6))


FLEET = """
[request]
from = "a"
[model]
name = "tied"
layers = 12
layer_gb = 1.0
hidden = 64
kv_bytes = 128
together = [[5, 12]]
[rtt]
default_ms = 20
[[node]]
name = "a"
memory_gb = 40
ms = [1, 2, 8]
layers = [0, {end}]
[[node]]
name = "b"
memory_gb = 40
ms = [1, 2, 8]
"""


def fleet(text: str, end: str) -> Fleet:
    return parse_fleet(tomllib.loads(text.replace("{end}", end)))


def test_a_planned_fleet_keeps_to_it() -> None:
    planned = dry_run(fleet(FLEET, "5"))
    assert planned.route is not None and [s.first for s in planned.route.stages][-1] in (0, 5)
    with pytest.raises(UsageError, match="node a: tied cannot be cut before layer 8; layers 5:12 stay together"):
        dry_run(fleet(FLEET, "8"))
    with pytest.raises(UsageError, match=r"expected ranges \[first, last\] of layers as together"):
        fleet(FLEET.replace("[[5, 12]]", "[[5, 13]]"), "5")

"""Layers that no device of a node holds whole are cut over all of them, and no others."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.base.errors import UsageError
from swarm.planner.api import ModelShape, Room, choose_block
from swarm.planner.block_choice import fit, lay, sliced
from swarm.planner.dry_run import dry_run
from swarm.planner.fleet_file import parse_fleet
from swarm.planner.slicing import slice_layers

SHAPE = ModelShape("m", (1000,) * 4, 8, 1, head_bytes=100, tail_bytes=300, whole_bytes=(50,) * 4)


def test_a_device_that_holds_a_layer_takes_it_whole() -> None:
    assert sliced(SHAPE, Room("n", 1000, more_bytes=(400, 400)), 1) is None
    assert fit(SHAPE, Room("n", 1000, more_bytes=(400, 400)), 1) == (1, 0)
    assert sliced(SHAPE, Room("n", 900), 1) is None


def test_devices_hold_together_what_none_holds_alone() -> None:
    room = Room("n", 800, more_bytes=(800,), overflow_bytes=800)
    found = sliced(SHAPE, room, 1)
    assert found is not None and found.layers == 2 and sum(found.shares) == pytest.approx(1)
    assert fit(SHAPE, room, 1) == (2, 0) and sum(lay(SHAPE, room, 1)) == 0
    block = choose_block(SHAPE, room, [])
    assert (block.layers, block.overflow) == (2, 0)
    assert fit(SHAPE, replace(room, max_layers=1), 1) == (1, 0)
    assert fit(SHAPE, replace(room, context_tokens=800), 1) == (0, 0)  # keys and values stay on the first
    with pytest.raises(UsageError, match=r"on one device, .* on all"):
        choose_block(SHAPE, Room("n", 400, more_bytes=(400,)), [])


def test_what_is_not_cut_is_named_where_nothing_fits() -> None:
    """A first device too small for keys and values and the ends, however much the others have."""
    billions = replace(
        SHAPE, layer_bytes=(10**9,) * 4, head_bytes=2 * 10**9, tail_bytes=10**9, whole_bytes=(2 * 10**8,) * 4
    )
    room = Room("n", 10**8, more_bytes=(9 * 10**8, 9 * 10**8))
    with pytest.raises(
        UsageError, match=r"0\.20 GB of it stay on the first .* up to 2\.00 GB more \(embedding, head\)"
    ):
        choose_block(billions, room, [])


def test_no_slices_begin_where_no_block_may() -> None:
    tied = replace(SHAPE, forbidden=frozenset({1}))
    assert slice_layers(tied, (900, 900, 900), 0, 1) is None
    two = slice_layers(tied, (900, 900, 900), 0, 0)
    assert two is not None and two.layers == 2


@given(
    layers=st.lists(st.integers(100, 2000), min_size=1, max_size=6),
    whole=st.integers(0, 100),
    rooms=st.lists(st.integers(0, 3000), min_size=1, max_size=4),
    context=st.integers(0, 50),
    first=st.integers(0, 5),
)
def test_what_is_planned_fits_every_device(
    layers: list[int], whole: int, rooms: list[int], context: int, first: int
) -> None:
    shape = ModelShape("m", tuple(layers), 8, 2, 70, 30, whole_bytes=(whole,) * len(layers))
    first %= len(layers)
    found = slice_layers(shape, tuple(rooms), context, first)
    if found is None:
        return
    last = first + found.layers
    assert found.layers > 0 and all(room < min(layers) + 2 * context for room in rooms)
    cut = sum(layers[first:last]) - whole * found.layers
    kept = whole * found.layers + 2 * context * found.layers + shape.end_bytes(first, last)
    held = [share * cut for share in found.shares]
    held[0] += kept
    assert all(bytes_ <= room for bytes_, room in zip(held, rooms, strict=True))
    assert sum(found.shares) == pytest.approx(1)


def test_a_plan_says_that_layers_are_cut() -> None:
    text = """
        [model]
        name = "wide"
        layers = 2
        layer_gb = 40
        hidden = 8192
        kv_bytes = 4096
        [request]
        from = "home-1"
        [[node]]
        name = "home"
        memory_gb = 17
        more_gb = [17, 17, 17]
        ms = [9, 10, 20]
        count = 2
        """
    run = dry_run(parse_fleet(tomllib.loads(text)))
    assert [t.block.layers for t in run.taken if t.block] == [1, 1] and run.route is not None
    assert all("no device has room for a layer, so each is cut over all of them" in t.why for t in run.taken)

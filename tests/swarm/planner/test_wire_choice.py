"""The wire format that `--wire auto` takes: the model's own on wide edges, coarser only where it pays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.net.channel.wire import wire_nbytes
from swarm.planner.wire_choice import FINEST_FIRST, NEARLY, choose_wire, edge_ms, row_bytes

rates = st.lists(st.none() | st.floats(0.01, 10_000), max_size=5)
own = st.sampled_from(["float32", "bfloat16"])  # of the others one is finer than the next


@pytest.mark.parametrize(
    ("kind", "rates_mbps", "hidden", "rows", "pass_ms", "chosen"),
    [
        ("bfloat16", [], 4096, 8, 100.0, "bfloat16"),  # one stage: nothing crosses
        ("bfloat16", [None, None], 4096, 512, 100.0, "bfloat16"),  # nobody measured
        ("float32", [None, None], 4096, 8, 100.0, "float32"),
        ("bfloat16", [1000.0, 1000.0], 576, 8, 120.0, "bfloat16"),
        ("bfloat16", [20.0, 20.0], 576, 8, 120.0, "bfloat16"),  # 3.7 ms each of 127
        ("bfloat16", [20.0, 20.0], 8192, 8, 120.0, "fp8"),  # 52 ms each
        ("bfloat16", [None, 5.0, None], 8192, 8, 120.0, "fp8"),  # one narrow edge is enough
        ("float32", [100.0, 100.0], 4096, 8, 120.0, "bfloat16"),  # the half that costs least goes first
        ("float32", [2.0, 2.0], 4096, 8, 120.0, "fp8"),
        ("float16", [None, None], 4096, 8, 100.0, "float16"),
        ("float16", [2.0, 2.0], 4096, 8, 120.0, "fp8"),
    ],
)
def test_cases(kind: str, rates_mbps: list[float | None], hidden: int, rows: int, pass_ms: float, chosen: str) -> None:
    assert choose_wire(kind, rates_mbps, hidden, rows, pass_ms) == chosen


@given(own, rates, st.integers(16, 16_384), st.floats(1, 600), st.floats(0, 5000))
def test_the_finest_that_is_nearly_as_fast_as_any(
    kind: str, edges: list[float | None], hidden: int, rows: float, pass_ms: float
) -> None:
    def took(wire: str) -> float:
        return pass_ms + sum(edge_ms(wire, rate, hidden, rows) for rate in edges)

    chosen = choose_wire(kind, edges, hidden, rows, pass_ms)
    formats = FINEST_FIRST[FINEST_FIRST.index(kind) :]
    fastest = min(map(took, formats))
    assert chosen in formats and took(chosen) <= NEARLY * fastest
    assert all(took(finer) > NEARLY * fastest for finer in formats[: formats.index(chosen)])


@given(own, st.lists(st.floats(0.01, 10_000), min_size=1, max_size=5), st.integers(16, 16_384), st.floats(1, 600))
def test_narrower_edges_never_make_it_finer(kind: str, edges: list[float], hidden: int, rows: float) -> None:
    wide = choose_wire(kind, [rate * 10 for rate in edges], hidden, rows, 50.0)
    assert FINEST_FIRST.index(choose_wire(kind, edges, hidden, rows, 50.0)) >= FINEST_FIRST.index(wide)


@pytest.mark.parametrize("wire", FINEST_FIRST)
def test_bytes_are_those_of_the_wire(wire: str) -> None:
    assert row_bytes(wire, 576) == wire_nbytes(wire, (1, 576))

"""Coordinates converge, measurements go before them, everything stays in bounds."""

from __future__ import annotations

import math
import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from swarm.mesh.latency import (
    FRESH_S,
    MAX_MS,
    MAX_PAIRS,
    Coordinate,
    RttTable,
    rtt_matrix,
    unpack_coordinate,
    updated,
)
from swarm.mesh.record import MAX_RTTS
from tests.swarm.mesh.make import ANN, BOB, EVE, record

finite = st.floats(-MAX_MS, MAX_MS)
places = st.builds(Coordinate, st.tuples(finite, finite, finite), st.floats(0.05, MAX_MS), st.floats(0.01, 1.0))


def test_coordinates_find_distances_in_a_plane_with_last_miles() -> None:
    draw = random.Random(2)
    spots = [(draw.uniform(0, 100), draw.uniform(0, 100), draw.uniform(1, 15)) for _ in range(40)]

    def rtt(a: int, b: int) -> float:
        return math.dist(spots[a][:2], spots[b][:2]) + spots[a][2] + spots[b][2]

    found = [Coordinate() for _ in spots]
    for _ in range(150):
        for a in range(40):
            b = draw.randrange(40)
            if a != b:
                found[a] = updated(found[a], found[b], rtt(a, b), bytes([a]))
    errors = [
        abs(found[a].distance_ms(found[b]) - rtt(a, b)) / rtt(a, b) for a in range(40) for b in range(40) if a != b
    ]
    assert np.median(errors) < 0.12 and np.percentile(errors, 95) < 0.6
    assert all(place.error < 0.4 for place in found)


@given(places, places, st.floats(0, 1e9), st.binary(max_size=4))
def test_no_measurement_throws_a_coordinate_out_of_bounds(
    own: Coordinate, other: Coordinate, rtt_ms: float, name: bytes
) -> None:
    new = updated(own, other, rtt_ms, name)
    assert all(abs(v) <= MAX_MS for v in new.at) and 0 < new.height <= MAX_MS and 0 < new.error <= 1
    back = unpack_coordinate(new.packed())
    assert back is not None and abs(back.distance_ms(other) - new.distance_ms(other)) < 0.01
    assert all(abs(v) <= 10**8 for v in new.packed())


def test_coordinates_that_coincide_part() -> None:
    a = updated(Coordinate(), Coordinate(), 50.0, b"a")
    b = updated(Coordinate(), Coordinate(), 50.0, b"b")
    assert a.at != b.at and a.distance_ms(Coordinate()) > 1


def test_a_record_without_a_coordinate_has_none() -> None:
    assert unpack_coordinate(()) is None and unpack_coordinate((1, 2)) is None


def test_measurements_age_and_are_bounded() -> None:
    table = RttTable().add(b"p", 40.0, 0.0)
    assert table.get(b"p", FRESH_S) == 40.0 and table.get(b"p", FRESH_S + 1) is None and table.get(b"q", 0) is None
    assert table.add(b"p", 30.0, 1.0).get(b"p", 1.0) == 30.0  # shorter is truer
    assert 40.0 < table.add(b"p", 90.0, 1.0).get(b"p", 1.0) < 60.0  # a queue moves it little
    assert table.add(b"p", 90.0, FRESH_S + 1).get(b"p", FRESH_S + 1) == 90.0  # unless the old one is stale
    for n in range(MAX_PAIRS + 5):
        table = table.add(n.to_bytes(4, "big"), 1.0, FRESH_S * (1 + n / MAX_PAIRS / 2))
    assert len(table.measured) == MAX_PAIRS and b"p" not in table.measured


def test_peers_that_were_measured_long_ago_are_forgotten() -> None:
    table = RttTable()
    for number in range(1000):  # one every ten seconds, for hours
        table = table.add(b"%d" % number, 10.0, 10.0 * number)
    assert len(table.measured) == FRESH_S // 10 + 1
    assert table.get(b"999", 10_000.0) == 10.0


def test_a_record_carries_the_useful_and_then_the_latest() -> None:
    table = RttTable()
    for n in range(40):
        table = table.add(bytes([n]) * 32, float(n + 1), float(n))
    told = table.for_record(50.0, first={bytes([3]) * 32})
    assert len(told) == MAX_RTTS and (bytes([3]) * 32, 4000) in told and (bytes([39]) * 32, 40_000) in told
    assert table.for_record(10_000.0) == ()


def test_the_matrix_takes_measurements_over_coordinates_over_the_default() -> None:
    a = record(ANN, coordinate=(0, 0, 0, 1000, 100), rtts=((BOB.id[:8], 33_000),), edges=())
    b = record(BOB, coordinate=(30_000, 40_000, 0, 2000, 100), rtts=(), edges=())
    e = record(EVE, coordinate=(), rtts=(), edges=())
    own = Coordinate((0.0, 0.0, 12.0), 4.0)
    table = RttTable().add(EVE.id, 7.0, 0.0)
    matrix = rtt_matrix([None, a, b, e], 0, own, table, 1.0, default_ms=99.0)
    assert np.array_equal(matrix, matrix.T) and not matrix.diagonal().any()
    assert matrix[1, 2] == 33.0  # told by a
    assert matrix[0, 1] == 12.0 + 4.0 + 1.0  # by coordinates
    assert matrix[0, 3] == 7.0  # measured here
    assert matrix[1, 3] == matrix[2, 3] == 99.0  # nothing known
    unknown = rtt_matrix([None, a], None, own, table, 1.0, default_ms=99.0)
    assert unknown[0, 1] == 99.0

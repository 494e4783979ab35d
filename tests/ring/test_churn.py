"""Minutes and hours of churn: every answer right or refused by name, and nobody whom it leaves alone grows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ring.test_processes import folder
from tests.soak.churn import EVENTS, Churn, churned
from tests.soak.footprint import slope

__all__ = ["folder"]  # a fixture, used by name

GROWTH = 64 << 20
"""Bytes that a process may grow by between a tenth of the time and its end: caches and arenas fill up late."""


def grew(churn: Churn) -> dict[str, tuple[int, int]]:
    """Bytes and descriptors more at the end than after a tenth of the time, for each of those watched."""
    early, late = churn.sizes[len(churn.sizes) // 10][1], churn.sizes[-1][1]
    return {
        name: (now.resident - early[name].resident, now.descriptors - early[name].descriptors)
        for name, now in late.items()
    }


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("minutes", [10, 30, 60, 600])
async def test_hours_of_churn(folder: Path, tmp_path: Path, minutes: int) -> None:
    churn = await churned(folder, tmp_path, 60.0 * minutes, minutes, through_gateway=True)
    rises = {
        name: slope([(at, sizes[name].anonymous / 1e6) for at, sizes in churn.sizes[len(churn.sizes) // 2 :]])
        for name in churn.sizes[-1][1]
    }
    print(f"{minutes} minutes: {dict(churn.events)}, {churn.ring}, {churn.http}, grew {grew(churn)}, MB/min {rises}")
    assert not churn.told and not churn.ring.faults and not churn.http.faults, churn.told
    assert all(churn.events[what] for what in EVENTS) and churn.ring.recovered
    assert all(memory < GROWTH and files <= 12 for memory, files in grew(churn).values())

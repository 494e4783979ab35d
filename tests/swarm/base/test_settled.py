"""A settled process looks at what it made since, and still frees what was there before when it is told to."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from swarm.base.settled import collect, settle


class Ring:
    """Refers to itself."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


def test_what_comes_after_is_looked_at_in_time_and_alone() -> None:
    ballast = [[number] for number in range(200_000)]
    settle()
    assert gc.get_freeze_count() > len(ballast)
    before = gc.get_stats()[2]["collections"]
    kept = []
    while gc.get_stats()[2]["collections"] == before:  # a quarter of the ballast would come first, were it looked at
        kept.append(Ring())
        assert len(kept) < 45_000, "old objects were looked at no more"


def test_a_block_that_is_exchanged_is_freed_all_the_same() -> None:
    old = weakref.ref(ring := Ring())
    settle()
    del ring
    gc.collect()
    assert old() is not None, "it was frozen with the rest"
    collect()
    assert old() is None and gc.get_freeze_count() > 0


def test_whoever_is_not_settled_stays_so() -> None:
    gc.unfreeze()
    old = weakref.ref(Ring())
    collect()
    assert old() is None and gc.get_freeze_count() == 0

"""Private layers stay loaded for the numbers asked for last alone, however many numbers requests name."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from swarm.base.errors import ModelError
from swarm.run.private_layers import MOST_SHELVED, PrivateBlocks, PrivateShelf


class Loads:
    """Loads that take a moment, counted."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    async def get(self, count: int) -> PrivateBlocks:
        self.counts.append(count)
        await asyncio.sleep(0)
        if count == 0:
            raise ModelError("nothing to load")
        blocks: Any = object()
        return PrivateBlocks(blocks, blocks)


async def test_the_numbers_asked_for_last_stay_loaded() -> None:
    loads = Loads()
    shelf = PrivateShelf(loads)
    first = await shelf.get(1)
    for count in range(2, 30):
        await shelf.get(count)
        assert await shelf.get(1) is first
    assert loads.counts == list(range(1, 30))
    assert len(shelf._kept) == MOST_SHELVED


async def test_who_asks_at_once_shares_one_load() -> None:
    loads = Loads()
    shelf = PrivateShelf(loads)
    assert len({id(found) for found in await asyncio.gather(*(shelf.get(3) for _ in range(5)))}) == 1
    assert loads.counts == [3]


async def test_a_load_that_fails_keeps_nothing() -> None:
    shelf = PrivateShelf(Loads())
    with pytest.raises(ModelError):
        await shelf.get(0)
    assert not shelf._kept

"""The links of a ring are kept warm while it runs, and only then."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from swarm.run.api import CommittedTokens, RunRequest
from tests.ring.conftest import TestRing


def warm_edges(ring: TestRing) -> set[tuple[bytes, bytes]]:
    """(sender, receiver) of every connection that somebody keeps warm."""
    boards = [ring.board, *(stage.board for stage in ring.stages)]
    return {(board.id, peer.id) for board in boards for peer in board.peers() if peer._warm}


async def test_every_link_of_a_ring_is_warm_during_a_run_and_none_after(make_ring: Callable[..., Any]) -> None:
    async with make_ring([(0, 2), (2, 4), (4, 6)]) as ring:
        head, middle, tail = (stage.board.id for stage in ring.stages)
        async with aclosing(ring.desk.run(RunRequest((1, 2, 3), max_tokens=20))) as events:
            async for event in events:
                if isinstance(event, CommittedTokens):
                    around = {(ring.board.id, head), (head, middle), (middle, tail), (tail, ring.board.id)}
                    assert warm_edges(ring) >= around
                    break
            async for _ in events:
                pass
        assert warm_edges(ring) == set()

"""Connections that end and dials that fail are free at once: nothing of them waits for Python's collector.

Beside torch that comes by after hours, so a ring of references is a leak for as long as peers come and go.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from swarm.base.errors import PeerError
from swarm.net.channel.message import Message
from swarm.net.identity import Identity
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard
from swarm.net.traversal.reach import Reach

VISITS = 6
ASYNCIOS = {"_SelectorSocketTransport", "TransportSocket", "socket", "dict", "tuple", "list", "method"}
"""What a transport of asyncio is: it holds a method of its own."""
OURS = ("swarm.", "receipts.")


@contextmanager
def left_over(found: Counter[str]) -> Iterator[None]:
    """Objects by type that the collector alone would free of what was made within."""
    gc.collect()
    gc.disable()
    gc.freeze()  # what other tests left behind may die meanwhile
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield
        gc.collect()
        found.update(f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.unfreeze()
        gc.garbage.clear()
        gc.enable()


async def echo(peer: Peer, message: Message) -> Message:
    return Message("echo", {}, message.body)


async def failing(peer: Peer, message: Message) -> Message:
    raise PeerError("not today")


async def dropped(here: Switchboard, there: Switchboard, peer: Peer) -> None:
    peer.drop("killed")


async def left(here: Switchboard, there: Switchboard, peer: Peer) -> None:
    await peer.close("enough")


async def refused(here: Switchboard, there: Switchboard, peer: Peer) -> None:
    with pytest.raises(PeerError, match="not today"):
        await peer.call(Message("fail"), 5.0)
    await peer.close()


async def unanswered(here: Switchboard, there: Switchboard, peer: Peer) -> None:
    with pytest.raises(PeerError, match="did not answer"):
        await peer.call(Message("hang"), 0.01)
    peer.drop("killed")


async def while_asked(here: Switchboard, there: Switchboard, peer: Peer) -> None:
    asking = asyncio.create_task(peer.call(Message("hang"), 5.0))
    await asyncio.sleep(0.01)
    peer.drop("killed")
    with pytest.raises(PeerError, match="killed"):
        await asking
    del asking


async def while_measured(here: Switchboard, there: Switchboard, peer: Peer) -> None:
    measuring = asyncio.create_task(peer.ping(200))
    await asyncio.sleep(0)
    peer.drop("killed")
    with pytest.raises(PeerError, match="killed"):
        await measuring
    del measuring


async def hang(peer: Peer, message: Message) -> Message:
    await peer.wait_closed()
    return message


HANDLERS = {"echo": echo, "fail": failing, "hang": hang}


@pytest.mark.parametrize("end", [dropped, left, refused, unanswered, while_asked, while_measured])
async def test_a_connection_that_ended_is_free_at_once(
    end: Callable[[Switchboard, Switchboard, Peer], Awaitable[None]],
) -> None:
    async with Switchboard(Identity.generate(), HANDLERS) as here, Switchboard(Identity.generate(), HANDLERS) as there:
        address = await here.listen("127.0.0.1", 0)

        async def visit() -> None:
            peer = await there.peer(here.id, [address], 5.0)
            await peer.call(Message("echo", {}, b"x"), 5.0)
            other = here.get(there.id)
            assert other is not None
            await other.call(Message("echo", {}, b"x"), 5.0)
            with peer.warm():
                await peer.ping(1)
            await end(here, there, peer)
            await other.wait_closed()

        await visit()
        await asyncio.sleep(0.1)
        found = Counter[str]()
        with left_over(found):
            for _ in range(VISITS):
                await visit()
            await asyncio.sleep(0.1)
    kinds = {name.rpartition(".")[2]: count for name, count in found.items()}
    assert not [name for name in found if name.startswith(OURS)], found
    assert set(kinds) <= ASYNCIOS, found
    assert sum(kinds.values()) <= 9 * 2 * VISITS, found


@pytest.mark.parametrize("every_way", [False, True])
async def test_a_dial_that_failed_is_free_at_once(every_way: bool) -> None:
    """Nobody listens there, neither over TCP nor over HTTP, and nobody helps."""
    async with Switchboard(Identity.generate()) as board:
        if every_way:
            Reach(board, relay=True)
        nobody = await board.listen("127.0.0.1", 0)
        board._door.close()

        async def dial() -> None:
            with pytest.raises(PeerError, match="reached|no answer from"):
                await board.peer(Identity.generate().id, [nobody], 3.0)

        await dial()
        found = Counter[str]()
        with left_over(found):
            for _ in range(VISITS):
                await dial()
        assert not found, found


async def test_a_dial_that_nobody_answers_is_free_at_once() -> None:
    """Somebody listens, and says nothing."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as mute:

        async def dial(board: Switchboard) -> None:
            with pytest.raises(PeerError):
                await board.peer(Identity.generate().id, [mute.getsockname()[:2]], 0.05)

        async with Switchboard(Identity.generate()) as board:
            await dial(board)
            await asyncio.sleep(0.1)
            found: Counter[Any] = Counter()
            with left_over(found):
                for _ in range(VISITS):
                    await dial(board)
                    board._tasks.cancel()  # the dial itself goes on for its own time
                    await asyncio.sleep(0.05)
        assert not [name for name in found if name.startswith(OURS)], found

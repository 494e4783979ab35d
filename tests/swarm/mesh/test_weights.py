"""Blobs over real connections: in parallel, resumed, checked, with liars dropped."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from swarm.base.errors import ModelError, PeerError
from swarm.base.events import Event, Notice, Progress
from swarm.mesh import weights
from swarm.mesh.weights import WeightsServer
from swarm.mesh.weights_fetch import fetch_blobs, fetch_manifest
from swarm.model.files.blobs import CHUNK, Blob, TensorSink, WantedBlob
from swarm.model.files.manifest import Manifest, TensorEntry
from swarm.net.channel.message import Message
from swarm.net.identity import Identity
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard
from tests.members import Admits

SIZES = (3 * CHUNK + 77, CHUNK, 500, 2 * CHUNK)
CONTENT = [os.urandom(size) for size in SIZES]
DATA = {hashlib.sha256(data).hexdigest(): data for data in CONTENT}
WANTED = [WantedBlob(digest, len(data), len(data)) for digest, data in DATA.items()]
CONFIG = {"num_hidden_layers": 1, "hidden_size": 8, "vocab_size": 9}
MANIFEST = Manifest(
    "m", CONFIG, tuple(TensorEntry(f"t{i}", (1,), "F32", len(d), h) for i, (h, d) in enumerate(DATA.items()))
)


@dataclass
class Shelf:
    """A source that may lie: `bend` changes what is read, `promise` what is listed."""

    held: dict[str, bytes] = field(default_factory=lambda: dict(DATA))
    bend: Callable[[str, int, bytes], bytes] = lambda digest, offset, data: data
    promise: Callable[[str], bytes | None] = lambda digest: None
    reads: list[tuple[str, int]] = field(default_factory=list)

    def blobs(self) -> tuple[Blob, ...]:
        return tuple(Blob(digest, len(data)) for digest, data in self.held.items())

    def read(self, digest: str, offset: int, length: int) -> bytes:
        if digest not in self.held:
            raise ModelError(f"this node does not hold blob {digest[:12]}...")
        self.reads.append((digest, offset))
        return self.bend(digest, offset, self.held[digest][offset : offset + length])

    def chunk_digests(self, digest: str) -> tuple[str, ...]:
        data = self.promise(digest) or self.held[digest]
        return tuple(hashlib.sha256(data[i : i + CHUNK]).hexdigest() for i in range(0, len(data), CHUNK))


class Room:
    """One fetching node and as many serving ones as a test asks for."""

    def __init__(self, stack: AsyncExitStack, board: Switchboard) -> None:
        self.stack, self.board = stack, board

    async def peer(self, shelf: Shelf, admitted: bool = True) -> Peer:
        server = WeightsServer(MANIFEST, shelf, Admits(admitted))
        board = await self.stack.enter_async_context(Switchboard(Identity.generate(), server.handlers()))
        return await self.board.peer(board.id, [await board.listen("127.0.0.1", 0)])


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    async with AsyncExitStack() as stack:
        yield Room(stack, await stack.enter_async_context(Switchboard(Identity.generate())))


def whole(sink: TensorSink) -> bool:
    return all(sink.path(digest).is_file() and sink.path(digest).read_bytes() == data for digest, data in DATA.items())


async def test_several_peers_give_a_block_together(room: Room, tmp_path: Path) -> None:
    shelves = [Shelf() for _ in range(3)]
    sink = TensorSink(tmp_path)
    events: list[Event] = []
    await fetch_blobs([await room.peer(shelf) for shelf in shelves], WANTED, sink, events.append)
    assert whole(sink) and all(shelf.reads for shelf in shelves)
    assert sorted(read for shelf in shelves for read in shelf.reads) == sorted(
        (digest, at) for digest, data in DATA.items() for at in range(0, len(data), CHUNK)
    )
    last = [event for event in events if isinstance(event, Progress)][-1]
    assert last.done == last.total == sum(SIZES)


async def test_each_gives_what_it_has(room: Room, tmp_path: Path) -> None:
    digests = list(DATA)
    shelves = [Shelf({d: DATA[d] for d in digests[:2]}), Shelf({d: DATA[d] for d in digests[2:]})]
    sink = TensorSink(tmp_path)
    await fetch_blobs([await room.peer(shelf) for shelf in shelves], WANTED, sink)
    assert whole(sink)


async def test_it_goes_on_where_it_ended(room: Room, tmp_path: Path) -> None:
    digest, data = next(iter(DATA.items()))
    sink = TensorSink(tmp_path)
    chunks = Shelf().chunk_digests(digest)
    for i in range(2):
        sink.write(Blob(digest, len(data)), i * CHUNK, data[i * CHUNK : (i + 1) * CHUNK], chunks)
    shelf = Shelf()
    await fetch_blobs([await room.peer(shelf)], WANTED, sink)
    assert whole(sink) and (digest, 0) not in shelf.reads and (digest, 2 * CHUNK) in shelf.reads
    again = Shelf()
    await fetch_blobs([await room.peer(again)], WANTED, sink)
    assert again.reads == []


def flip(digest: str, offset: int, data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("kind", ["chunk", "promise", "short", "gone"])
async def test_a_liar_is_dropped_and_the_rest_finishes(room: Room, tmp_path: Path, kind: str) -> None:
    def gone(digest: str, offset: int, data: bytes) -> bytes:
        raise ModelError("the disk broke")

    liars = {
        "chunk": Shelf(bend=flip),
        "promise": Shelf({d: flip(d, 0, data) for d, data in DATA.items()}),
        "short": Shelf(bend=lambda digest, offset, data: data[:-1]),
        "gone": Shelf(bend=gone),
    }
    events: list[Event] = []
    sink = TensorSink(tmp_path)
    # Two liars of one mind and one honest node: the majority is wrong.
    peers = [await room.peer(shelf) for shelf in (liars[kind], liars[kind], Shelf())]
    await fetch_blobs(peers, WANTED, sink, events.append)
    assert whole(sink)
    dropped = [event.text for event in events if isinstance(event, Notice)]
    assert len(dropped) == 2 and all("no source of weights any more" in text for text in dropped)


async def test_a_bad_rest_from_an_earlier_fetch_convicts_nobody(room: Room, tmp_path: Path) -> None:
    digest, data = next(iter(DATA.items()))
    sink = TensorSink(tmp_path)
    bad = flip("", 0, data[:CHUNK])
    sink.write(Blob(digest, len(data)), 0, bad, [hashlib.sha256(bad).hexdigest()] * 4)
    events: list[Event] = []
    await fetch_blobs([await room.peer(Shelf())], WANTED, sink, events.append)
    assert whole(sink) and not any(isinstance(event, Notice) for event in events)


async def test_a_blob_that_nobody_gives_is_named_and_the_rest_is_kept(room: Room, tmp_path: Path) -> None:
    digests = list(DATA)
    sink = TensorSink(tmp_path)
    peers = [await room.peer(Shelf({d: DATA[d] for d in digests[1:]}))]
    with pytest.raises(ModelError, match=f"no peer that is left gives blob {digests[0][:12]}.*--weights hub"):
        await fetch_blobs(peers, WANTED, sink)
    await fetch_blobs(peers, WANTED[1:], sink)
    with pytest.raises(ModelError, match="no peer"):
        await fetch_blobs([], WANTED, TensorSink(tmp_path / "other"))


async def test_a_peer_that_closes_is_replaced_by_another(room: Room, tmp_path: Path) -> None:
    first = Shelf()
    leaving = await room.peer(first)

    def close(digest: str, offset: int, data: bytes) -> bytes:
        leaving_loop.call_soon_threadsafe(leaving.drop, "killed")
        return data

    leaving_loop = asyncio.get_running_loop()
    first.bend = close
    sink = TensorSink(tmp_path)
    await fetch_blobs([leaving, await room.peer(Shelf())], WANTED, sink)
    assert whole(sink)


async def test_sizes_that_cannot_be_are_not_believed(room: Room, tmp_path: Path) -> None:
    fat = Shelf({digest: data + bytes(CHUNK) for digest, data in DATA.items()})
    sink = TensorSink(tmp_path)
    await fetch_blobs([await room.peer(fat), await room.peer(Shelf())], WANTED, sink)
    assert whole(sink) and fat.reads == []


async def test_a_manifest_comes_from_whoever_has_the_right_one(room: Room) -> None:
    stranger, member = await room.peer(Shelf(), admitted=False), await room.peer(Shelf())
    assert (await fetch_manifest([stranger, member], MANIFEST.digest)).digest == MANIFEST.digest
    with pytest.raises(ModelError, match="none of 1 peers sent the manifest 0000"):
        await fetch_manifest([member], "0" * 64)


async def test_strangers_and_malformed_calls_get_nothing(room: Room) -> None:
    stranger, member = await room.peer(Shelf(), admitted=False), await room.peer(Shelf())
    digest = bytes.fromhex(next(iter(DATA)))
    for kind in (weights.MANIFEST, weights.HAVE, weights.LIST, weights.GET):
        with pytest.raises(PeerError, match="served to nodes of the swarm"):
            await stranger.call(Message(kind, {"digests": [], "digest": digest, "offset": 0, "length": 1}), 5)
    for message in (
        Message(weights.HAVE, {"digests": [b"x"]}),
        Message(weights.HAVE, {"digests": [digest] * 5000}),
        Message(weights.LIST, {"digest": "text"}),
        Message(weights.GET, {"digest": digest, "offset": -1, "length": 1}),
        Message(weights.GET, {"digest": digest, "offset": 0, "length": CHUNK + 1}),
        Message(weights.GET, {}),
    ):
        with pytest.raises(PeerError, match="expected"):
            await member.call(message, 5)
    with pytest.raises(ModelError, match="does not hold blob"):
        await member.call(Message(weights.LIST, {"digest": bytes(32)}), 5)


async def test_lists_go_with_the_blobs_that_they_are_of(room: Room) -> None:
    """A node that moves from layers to layers for weeks keeps the lists of what it holds alone."""
    server = WeightsServer(MANIFEST, Shelf(), Admits())
    board = await room.stack.enter_async_context(Switchboard(Identity.generate(), server.handlers()))
    peer = await room.board.peer(board.id, [await board.listen("127.0.0.1", 0)])
    for digest in DATA:
        await peer.call(Message(weights.LIST, {"digest": bytes.fromhex(digest)}), 10.0)
    assert set(server._lists) == set(server._listing) == set(DATA)
    kept = next(iter(DATA))
    server.exchange(Shelf({kept: DATA[kept]}))
    assert set(server._lists) == set(server._listing) == {kept}

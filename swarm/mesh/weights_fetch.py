"""Weights between nodes, the taking half: a block's blobs from several peers at once. See `weights` for the calls.

A fetch resumes where an earlier one ended, asks several peers for chunks ahead of time, checks every chunk against its
source's promise and every blob against the manifest, drops who lies or stalls, and finishes with the rest.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from swarm.base.errors import ModelError, PeerError, SwarmError
from swarm.base.events import Notice, Progress, Report, silent
from swarm.base.nodeid import NodeId, short_id
from swarm.mesh.gossip import Gossip
from swarm.mesh.weights import (
    DIGEST_BYTES,
    GET,
    GET_REQUEST,
    HAVE,
    HAVE_ANSWER,
    HAVE_REQUEST,
    LIST,
    LIST_REQUEST,
    MANIFEST,
    MAX_ASKED,
    GetRequest,
    HaveRequest,
    ListRequest,
)
from swarm.model.files.blobs import CHUNK, Blob, TensorSink, WantedBlob
from swarm.model.files.manifest import Manifest, parse_manifest
from swarm.net.channel.message import Message
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard

log = logging.getLogger(__name__)

CALL_S = 30.0
LIST_S = 300.0
BULK = 3
BLOBS_AT_ONCE = 4
AHEAD = 4
MAX_SOURCES = 6


async def fetch_manifest(peers: Sequence[Peer], digest: str) -> Manifest:
    """The manifest with this hex digest from the first of `peers` that has it. Raises ModelError."""
    for peer in peers:
        try:
            answer = await peer.call(Message(MANIFEST), CALL_S, BULK)
            manifest = await asyncio.to_thread(parse_manifest, bytes(answer.body))
        except SwarmError as error:
            log.info("no manifest from node %s: %s", short_id(peer.id), error)
            continue
        if manifest.digest == digest:
            return manifest
        log.warning("node %s sent the manifest of another model", short_id(peer.id))
    raise ModelError(
        f"none of {len(peers)} peers sent the manifest {digest[:12]}...; use --weights hub, or a model that is here"
    )


async def weight_peers(
    gossip: Gossip, board: Switchboard, first: int, last: int, most: int = MAX_SOURCES
) -> list[Peer]:
    """Connected members that serve some of layers [first, last), those with most of them first."""
    shared = {
        view.record.node: (min(last, view.record.layers[1]) - max(first, view.record.layers[0]), view)
        for view in gossip.members()
        if view.standing == "up" and view.record.node != board.id
    }
    best = sorted((item for item in shared.values() if item[0] > 0), key=lambda item: (-item[0], item[1].rtt_ms or 1e9))
    found: list[Peer] = []
    for _, view in best:
        if len(found) == most:
            break
        try:
            await gossip.link(view.record.node)
            found.append(await board.peer(view.record.node, view.record.addresses))
        except PeerError as error:
            log.info("no weights from node %s: %s", short_id(view.record.node), error)
    return found


async def fetch_blobs(
    peers: Sequence[Peer], wanted: Sequence[WantedBlob], sink: TensorSink, report: Report = silent
) -> None:
    """Fetch what `sink` lacks of `wanted`, several blobs and several peers at a time; what is there stays.

    Raises ModelError naming a blob that no honest peer could give; everything fetched until then is kept.
    """
    missing = await asyncio.to_thread(sink.missing, wanted)
    if not missing:
        return
    errand = _Errand(sink, report, {peer.id: _Worker(peer) for peer in peers})
    await errand.find(missing)
    room = asyncio.Semaphore(BLOBS_AT_ONCE)

    async def one(item: WantedBlob) -> None:
        async with room:
            await errand.fetch(item)

    try:
        async with asyncio.TaskGroup() as group:
            for item in missing:
                group.create_task(one(item))
    except BaseExceptionGroup as errors:
        for error in errors.exceptions:
            if isinstance(error, SwarmError):
                raise error from None
        raise


class _Worker:
    """A peer and how much it may be asked for at once."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.room = asyncio.Semaphore(AHEAD)


@dataclass(frozen=True)
class _Promise:
    """Peers that list the same chunks for one blob."""

    blob: Blob
    chunks: tuple[str, ...]
    peers: tuple[NodeId, ...]


class _Errand:
    """One fetch: who still counts as a source, and how far it is."""

    def __init__(self, sink: TensorSink, report: Report, workers: dict[NodeId, _Worker]) -> None:
        self.sink, self.report, self.workers = sink, report, workers
        self.holders: dict[str, dict[NodeId, int]] = {}
        self.done = self.total = 0

    async def find(self, missing: Sequence[WantedBlob]) -> None:
        """Ask everybody what they have."""
        for start in range(0, len(missing), MAX_ASKED):
            part = missing[start : start + MAX_ASKED]
            asked = Message(HAVE, HAVE_REQUEST.header(HaveRequest(tuple(item.digest for item in part))))
            await asyncio.gather(*(self._ask_have(worker, asked, part) for worker in list(self.workers.values())))
        self.total = sum(max(self.holders.get(item.digest, {None: item.least}).values()) for item in missing)

    async def _ask_have(self, worker: _Worker, asked: Message, part: Sequence[WantedBlob]) -> None:
        try:
            answer = await worker.peer.call(asked, CALL_S)
            sizes = HAVE_ANSWER.read_untrusted(answer.header).sizes
            if len(sizes) != len(part):
                raise PeerError(f"expected a size for each of {len(part)} digests, found {len(sizes)}")
        except SwarmError as error:
            self._drop(worker.peer.id, str(error))
            return
        for item, size in zip(part, sizes, strict=True):
            if item.least <= size <= item.most:
                self.holders.setdefault(item.digest, {})[worker.peer.id] = size

    async def fetch(self, item: WantedBlob) -> None:
        """One blob, from whoever promises it honestly."""
        while True:
            promises = await self._promises(item)
            if not promises:
                raise ModelError(
                    f"no peer that is left gives blob {item.digest[:12]}...; {len(self.workers)} peers remain; "
                    "try again when more nodes serve, or use --weights hub"
                )
            if await self._take(max(promises, key=lambda promise: len(promise.peers))):
                return

    async def _promises(self, item: WantedBlob) -> list[_Promise]:
        """The lists that the remaining holders give, equal ones together."""
        asked = Message(LIST, LIST_REQUEST.header(ListRequest(item.digest)))
        groups: dict[tuple[int, bytes], list[NodeId]] = {}

        async def ask(node: NodeId, size: int) -> None:
            worker = self.workers.get(node)
            if worker is None:
                return
            try:
                answer = await worker.peer.call(asked, LIST_S, BULK)
                body = bytes(answer.body)
                if len(body) != DIGEST_BYTES * -(-size // CHUNK):
                    raise PeerError(f"expected a digest per chunk of {size} bytes, found {len(body)} bytes")
            except SwarmError as error:
                self._drop(node, str(error))
                return
            groups.setdefault((size, body), []).append(node)

        await asyncio.gather(*(ask(node, size) for node, size in self.holders.get(item.digest, {}).items()))
        return [
            _Promise(
                item.sized(size),
                tuple(body[i : i + DIGEST_BYTES].hex() for i in range(0, len(body), DIGEST_BYTES)),
                tuple(nodes),
            )
            for (size, body), nodes in groups.items()
        ]

    async def _take(self, promise: _Promise) -> bool:
        """Fetch a blob from those who promise it alike. False when they could not; the liars are dropped then."""
        blob = promise.blob
        resumed = self.sink.have(blob.digest) > 0
        if not await self._stream(promise):
            return False
        try:
            await asyncio.to_thread(self.sink.finish, blob)
        except ModelError:
            if resumed:  # what lay here from before may be the bad part: it is gone now, the same peers once more
                return await self._take(promise)
            for node in promise.peers:
                self._drop(node, f"blob {blob.digest[:12]}... did not add up to its digest")
            return False
        return True

    async def _stream(self, promise: _Promise) -> bool:
        """Chunks in order into the sink, asked for ahead of time from all peers of the promise in turn."""
        blob = promise.blob
        offset = self.sink.resume(blob)
        pending: dict[int, asyncio.Task[bytes | None]] = {}
        turn = ahead = offset // CHUNK
        try:
            while offset < blob.nbytes:
                live = [node for node in promise.peers if node in self.workers]
                if not live:
                    return False
                while ahead < len(promise.chunks) and ahead < offset // CHUNK + AHEAD * len(live):
                    pending[ahead] = asyncio.create_task(self._chunk(promise, live[turn % len(live)], ahead))
                    ahead, turn = ahead + 1, turn + 1
                index = offset // CHUNK
                data = await pending.pop(index)
                if data is None:  # its peer was dropped: ask another
                    turn += 1
                    live = [node for node in promise.peers if node in self.workers]
                    if not live:
                        return False
                    pending[index] = asyncio.create_task(self._chunk(promise, live[turn % len(live)], index))
                    continue
                await asyncio.to_thread(self.sink.write, blob, offset, data, promise.chunks)
                offset += len(data)
                self.done += len(data)
                self.report(Progress("download", "weights from peers", self.done, max(self.total, self.done)))
        finally:
            for task in pending.values():
                task.cancel()
            await asyncio.gather(*pending.values(), return_exceptions=True)
        return True

    async def _chunk(self, promise: _Promise, node: NodeId, index: int) -> bytes | None:
        """One chunk as promised, or None when `node` did not give it and was dropped."""
        worker = self.workers.get(node)
        if worker is None:
            return None
        offset = index * CHUNK
        length = min(CHUNK, promise.blob.nbytes - offset)
        asked = Message(GET, GET_REQUEST.header(GetRequest(promise.blob.digest, offset, length)))
        try:
            async with worker.room:
                answer = await worker.peer.call(asked, CALL_S, BULK)
            data = bytes(answer.body)
            if len(data) != length or not await asyncio.to_thread(_adds_up, data, promise.chunks[index]):
                raise PeerError("a chunk is not what that node promised")
        except SwarmError as error:
            self._drop(node, str(error))
            return None
        return data

    def _drop(self, node: NodeId, why: str) -> None:
        if self.workers.pop(node, None) is not None:
            self.report(Notice(f"node {short_id(node)} is no source of weights any more: {why}", "warning"))


def _adds_up(data: bytes, digest: str) -> bool:
    return hashlib.sha256(data).hexdigest() == digest

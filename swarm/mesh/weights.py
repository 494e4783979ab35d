"""Weights between nodes, the giving half: serving the blobs that this node has. `weights_fetch` is the other half.

Calls (answers in brackets):

- weights.manifest {}                     [body: Manifest.to_bytes()]
- weights.have {"digests": [32 bytes]}    [{"sizes": [bytes, or -1 for a blob that is not here]}]
- weights.list {"digest": 32 bytes}       [body: 32-byte SHA-256 of each chunk]
- weights.get {"digest", "offset", "length"}  [body: the bytes]

Trust: the swarm's model digest names the manifest, the manifest names the blobs, and a blob counts only when it adds up
to its digest (`swarm.model.files.blobs`). A source's list of chunks is its promise. Sources with equal promises are
used together: a chunk that is not as promised convicts who sent it, a blob that does not add up convicts all that
promised it; they are dropped and the rest finishes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Protocol, TypeAlias

from swarm.base.bounds import AtMost, Between, Exactly, Spelled, by_name
from swarm.base.codec import Codec
from swarm.base.errors import ModelError, PeerError
from swarm.model.files.blobs import CHUNK, Blob
from swarm.model.files.manifest import Manifest
from swarm.net.channel.message import Message
from swarm.net.members import Members
from swarm.net.peer import Handler, Peer

log = logging.getLogger(__name__)

MANIFEST, HAVE, LIST, GET = "weights.manifest", "weights.have", "weights.list", "weights.get"
DIGEST_BYTES = 32
MAX_ASKED = 4096
READS_AT_ONCE = 4

DigestBytes: TypeAlias = Annotated[str, Spelled(bytes.hex, bytes.fromhex, Annotated[bytes, Exactly(DIGEST_BYTES)])]
"""A SHA-256 in hexadecimal, as manifests name blobs; bytes on the wire."""


@by_name()
@dataclass(frozen=True)
class HaveRequest:
    """Which of these blobs are there?"""

    digests: Annotated[tuple[DigestBytes, ...], AtMost(MAX_ASKED)]


@by_name()
@dataclass(frozen=True)
class HaveAnswer:
    """The bytes of each blob that was asked for, -1 for one that is not there."""

    sizes: Annotated[tuple[Annotated[int, Between(-1, 2**63 - 1)], ...], AtMost(MAX_ASKED)]


@by_name()
@dataclass(frozen=True)
class ListRequest:
    """The digests of a blob's chunks, please."""

    digest: DigestBytes


@by_name()
@dataclass(frozen=True)
class GetRequest:
    """Bytes of a blob, please."""

    digest: DigestBytes
    offset: Annotated[int, Between(0, 2**63 - 1)]
    length: Annotated[int, Between(0, CHUNK)]


HAVE_REQUEST, HAVE_ANSWER = Codec(HaveRequest, HAVE), Codec(HaveAnswer, HAVE)
LIST_REQUEST, GET_REQUEST = Codec(ListRequest, LIST), Codec(GetRequest, GET)


class Source(Protocol):
    """What `BlobSource` is: blobs on this machine."""

    def blobs(self) -> tuple[Blob, ...]: ...
    def read(self, digest: str, offset: int, length: int) -> bytes: ...
    def chunk_digests(self, digest: str) -> tuple[str, ...]: ...


class WeightsServer:
    """Serves blobs to members. Files are read in threads, a few at once; lists of chunks are made once."""

    def __init__(self, manifest: Manifest, source: Source, members: Members) -> None:
        self._manifest, self._source, self._members = manifest, source, members
        self._sizes = {blob.digest: blob.nbytes for blob in source.blobs()}
        self._lists: dict[str, bytes] = {}
        self._listing: dict[str, asyncio.Lock] = {}
        self._reads = asyncio.Semaphore(READS_AT_ONCE)

    def exchange(self, source: Source) -> None:
        """Serve other blobs from now on."""
        self._source = source
        self._sizes = {blob.digest: blob.nbytes for blob in source.blobs()}
        self._lists = {digest: listed for digest, listed in self._lists.items() if digest in self._sizes}
        self._listing = {digest: lock for digest, lock in self._listing.items() if digest in self._sizes}

    def handlers(self) -> Mapping[str, Handler]:
        """What the node's switchboard calls for messages of peers."""
        return {MANIFEST: self._on_manifest, HAVE: self._on_have, LIST: self._on_list, GET: self._on_get}

    async def _on_manifest(self, peer: Peer, message: Message) -> Message:
        self._check(peer)
        return Message(MANIFEST, {}, await asyncio.to_thread(self._manifest.to_bytes))

    async def _on_have(self, peer: Peer, message: Message) -> Message:
        self._check(peer)
        asked = HAVE_REQUEST.read_untrusted(message.header)
        sizes = tuple(self._sizes.get(digest, -1) for digest in asked.digests)
        return Message(HAVE, HAVE_ANSWER.header(HaveAnswer(sizes)))

    async def _on_list(self, peer: Peer, message: Message) -> Message:
        self._check(peer)
        digest = LIST_REQUEST.read_untrusted(message.header).digest
        if digest not in self._sizes:
            raise ModelError(f"this node does not hold blob {digest[:12]}...")
        async with self._listing.setdefault(digest, asyncio.Lock()):
            if digest not in self._lists:
                async with self._reads:
                    found = await asyncio.to_thread(self._source.chunk_digests, digest)
                self._lists[digest] = b"".join(bytes.fromhex(d) for d in found)
            listed = self._lists[digest]
        return Message(LIST, {}, listed)

    async def _on_get(self, peer: Peer, message: Message) -> Message:
        self._check(peer)
        asked = GET_REQUEST.read_untrusted(message.header)
        async with self._reads:
            found = await asyncio.to_thread(self._source.read, asked.digest, asked.offset, asked.length)
        return Message(GET, {}, found)

    def _check(self, peer: Peer) -> None:
        if not self._members.admitted(peer.id):
            raise PeerError("weights are served to nodes of the swarm; say hello first")

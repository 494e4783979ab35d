"""Weights from another node: which bytes to ask for, how to check them, how to compute from them.

A node that lacks a model but knows its manifest (whose digest is the model's identity in the swarm) can fetch the
tensors of its block from a node that has them. The unit is the *blob* of the manifest's entries:

- GGUF: a blob is one tensor, so exactly the block's tensors travel.
- safetensors: a blob is a shard file, because only the file's digest is known to everyone (see manifest.py). A node
  that has a shard at all has all of it, so it can always serve the whole blob. Shards are the granularity in which a
  hub serves too.

Blobs are large, so a source lists the SHA-256 of their chunks (`chunk_digests`). The list is a promise of the source,
not part of the manifest: it lets a receiver drop a bad chunk at once and resume after a break, and find out *which* of
several sources lied, but a blob counts only when its whole digest, which the manifest holds, agrees. A blob that fails
that check is deleted.

Nothing here travels: `BlobSource.read` gives bytes to whoever sends them, `TensorSink.write` takes them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from swarm.base.errors import ModelError
from swarm.base.events import Progress, Report, silent
from swarm.model.files import safetensors_file
from swarm.model.files.files import sha256_file
from swarm.model.files.manifest import Manifest, TensorEntry
from swarm.model.files.weights import FileCheckpoint, Place

CHUNK = 1 << 20
"""Bytes of one chunk; the last one of a blob may be shorter."""


@dataclass(frozen=True)
class Blob:
    """A content-addressed piece of a model: hex SHA-256 and size in bytes."""

    digest: str
    nbytes: int


@dataclass(frozen=True)
class WantedBlob:
    """A blob to fetch, between `least` and `most` bytes: of a shard file the manifest knows the tensors alone."""

    digest: str
    least: int
    most: int

    def sized(self, nbytes: int) -> Blob:
        """The blob at the size that a source states. Raises ModelError for a size that it cannot have."""
        if not self.least <= nbytes <= self.most:
            raise ModelError(
                f"blob {self.digest[:12]}... has {self.least} to {self.most} bytes, a source says {nbytes}"
            )
        return Blob(self.digest, nbytes)


def blobs_of(manifest: Manifest, first: int, last: int) -> tuple[WantedBlob, ...]:
    """What a node must fetch for layers [first, last), by digest."""
    needed = {entry.digest for entry in manifest.stage_tensors(first, last)}
    ends: dict[str, int] = {}
    for entry in manifest.tensors:
        ends[entry.digest] = max(ends.get(entry.digest, 0), entry.offset + entry.nbytes)
    whole = {entry.digest for entry in manifest.tensors if is_gguf(entry)}
    extra = 8 + safetensors_file.MAX_HEADER
    return tuple(WantedBlob(d, ends[d], ends[d] if d in whole else ends[d] + extra) for d in sorted(needed))


def is_gguf(entry: TensorEntry) -> bool:
    return entry.format.startswith("gguf:")


class BlobSource:
    """The blobs that a checkpoint on this machine can serve, by digest."""

    def __init__(self, checkpoint: FileCheckpoint) -> None:
        self._where: dict[str, tuple[Place, int]] = {}
        for entry in checkpoint.manifest.tensors:
            place = checkpoint.places.get(entry.name)
            if place is None or entry.digest in self._where:
                continue
            if is_gguf(entry):
                self._where[entry.digest] = (place, entry.nbytes)
            else:
                self._where[entry.digest] = (Place(place.path, 0), place.path.stat().st_size)

    def blobs(self) -> tuple[Blob, ...]:
        """What can be asked for."""
        return tuple(Blob(digest, size) for digest, (_, size) in sorted(self._where.items()))

    def read(self, digest: str, offset: int, length: int) -> bytes:
        """Bytes [offset, offset + length) of a blob, at most CHUNK of them. Raises ModelError."""
        place, size = self._find(digest)
        if offset < 0 or not 0 <= length <= CHUNK or offset + length > size:
            raise ModelError(f"bytes {offset}:{offset + length} of a blob of {size} wanted, at most {CHUNK} at once")
        try:
            with place.path.open("rb") as file:
                file.seek(place.offset + offset)
                data = file.read(length)
        except OSError as exc:
            raise ModelError(f"cannot read {place.path}: {exc.strerror}") from exc
        if len(data) != length:
            raise ModelError(f"{place.path} is shorter than when it was pulled: pull the model again")
        return data

    def chunk_digests(self, digest: str) -> tuple[str, ...]:
        """Hex SHA-256 of each chunk of a blob, made on demand by reading it. Raises ModelError."""
        _, size = self._find(digest)
        starts = range(0, size, CHUNK)
        return tuple(hashlib.sha256(self.read(digest, s, min(CHUNK, size - s))).hexdigest() for s in starts)

    def _find(self, digest: str) -> tuple[Place, int]:
        try:
            return self._where[digest]
        except KeyError:
            raise ModelError(f"this node does not hold blob {digest[:12]}...") from None


class TensorSink:
    """A folder of verified blobs, each a file named by its digest; unfinished ones end in ".part".

    Chunks of one blob arrive in order; `have` says where to go on, also after a restart.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Where a finished blob lies. Raises ModelError for what is no digest."""
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise ModelError("a blob is named by 64 hex digits")
        return self.folder / digest

    def missing(self, wanted: Iterable[WantedBlob]) -> tuple[WantedBlob, ...]:
        """Those that are not here yet, whole and verified."""
        return tuple(item for item in wanted if not self.path(item.digest).is_file())

    def have(self, digest: str) -> int:
        """Bytes that are here and need not be fetched again."""
        done, part = self.path(digest), self._part(digest)
        return done.stat().st_size if done.is_file() else part.stat().st_size if part.is_file() else 0

    def resume(self, blob: Blob) -> int:
        """As `have`, with what a crash left of a chunk cut off."""
        have = self.have(blob.digest)
        torn = have % CHUNK
        if torn and have != blob.nbytes:
            os.truncate(self._part(blob.digest), have - torn)
            return have - torn
        return have

    def write(self, blob: Blob, offset: int, data: bytes, chunk_digests: Sequence[str]) -> None:
        """Append one chunk. `blob.nbytes` must be known; `chunk_digests` is the source's list for this blob.

        Raises ModelError for a chunk that is out of order, of a wrong size or not what the list says; what was written
        before stays.
        """
        if offset != self.have(blob.digest) or offset % CHUNK or len(chunk_digests) != -(-blob.nbytes // CHUNK):
            raise ModelError(f"a chunk at {offset} came where {self.have(blob.digest)} was next")
        if len(data) != min(CHUNK, blob.nbytes - offset):
            raise ModelError(f"a chunk of {len(data)} bytes at {offset} of a blob of {blob.nbytes}")
        if hashlib.sha256(data).hexdigest() != chunk_digests[offset // CHUNK]:
            raise ModelError(f"the chunk at {offset} of blob {blob.digest[:12]}... is not what its source listed")
        part = self._part(blob.digest)
        try:
            with part.open("ab", buffering=0) as file:
                rest = memoryview(data)
                while rest:
                    rest = rest[file.write(rest) or 0 :]
        except OSError as exc:
            raise ModelError(f"cannot write {part}: {exc.strerror}; free space or choose another --models") from exc

    def finish(self, blob: Blob, report: Report = silent) -> None:
        """Check the whole blob against its digest and keep it. Raises ModelError, and forgets a blob that fails."""
        if self.path(blob.digest).is_file():
            return
        part = self._part(blob.digest)
        if not blob.nbytes:
            part.touch()
        if self.have(blob.digest) != blob.nbytes or sha256_file(part, report) != blob.digest:
            part.unlink(missing_ok=True)
            raise ModelError(f"blob {blob.digest[:12]}... did not add up to its digest: fetch it from another node")
        os.replace(part, self.path(blob.digest))

    def _part(self, digest: str) -> Path:
        return self.path(digest).with_suffix(".part")


def keep_blobs(source: BlobSource, sink: TensorSink, wanted: Iterable[WantedBlob], report: Report = silent) -> None:
    """Copy blobs from a source on this machine into a sink: what a transfer does, without the network between."""
    sizes = {blob.digest: blob for blob in source.blobs()}
    for item in sink.missing(wanted):
        if item.digest not in sizes:
            raise ModelError(f"the source does not hold blob {item.digest[:12]}...")
        blob, digests = item.sized(sizes[item.digest].nbytes), source.chunk_digests(item.digest)
        while (at := sink.resume(blob)) < blob.nbytes:
            sink.write(blob, at, source.read(blob.digest, at, min(CHUNK, blob.nbytes - at)), digests)
            report(Progress("download", blob.digest[:12], min(at + CHUNK, blob.nbytes), blob.nbytes))
        sink.finish(blob, report)


def open_blobs(manifest: Manifest, folder: Path) -> FileCheckpoint:
    """A checkpoint over a sink's folder; tensors whose blobs are not there are refused when read. Raises ModelError."""
    headers: dict[str, tuple[int, Mapping[str, safetensors_file.Stored]]] = {}
    places: dict[str, Place] = {}
    sink = TensorSink(folder)
    for entry in manifest.tensors:
        path = sink.path(entry.digest)
        if not path.is_file():
            continue
        start = 0
        if not is_gguf(entry):
            if entry.digest not in headers:
                headers[entry.digest] = safetensors_file.read_header(path)
            start, tensors = headers[entry.digest]
            stored = tensors.get(entry.name)
            if stored is None or (stored.offset, stored.nbytes) != (entry.offset, entry.nbytes):
                raise ModelError(f"blob {entry.digest[:12]}... does not hold {entry.name} where the manifest says")
        elif path.stat().st_size != entry.nbytes:
            raise ModelError(f"blob {entry.digest[:12]}... is not of the size that the manifest says")
        places[entry.name] = Place(path, start + entry.offset)
    return FileCheckpoint(manifest, places)

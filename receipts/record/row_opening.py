"""Opening what crossed an edge: a request for chosen frames, and an answer whose bytes fit the signed roots.

A row's output depends on every earlier row of its stage, so an opening holds all inbound frames up to the chosen one
(proved as a prefix of the signed tree, RFC 9162 consistency) and the chosen outbound frames (RFC 9162 inclusion).
What came in before the epoch began, and left its keys and values to it, is opened whole, under a root of its own.
An answer is: the magic, the length of a JSON header (4 bytes, big-endian), the header, then head and body of every
frame in the header's order.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from receipts.format.canonical import emit, parse_untrusted
from receipts.format.closing import MAX_HISTORY
from receipts.format.codec import Count, Digest, Many, Range, decode_untrusted, encode
from receipts.format.errors import ReceiptError, Refusal
from receipts.format.merkle import Accumulator, check_consistency, check_inclusion
from receipts.format.merkle_tree import Tree
from receipts.record.edge import frame_leaf

MAGIC = b"wanswarm-opened-1\n"
MAX_LEAVES = 512
MAX_FRAMES = 1 << 16
"""Inbound frames of one answer."""
MAX_HEADER = 8 << 20
MAX_OPENING = 1 << 30
"""Of one answer, in bytes; a verifier holds it in memory."""


@dataclass(frozen=True)
class CrossedFrame:
    """One frame as it crossed an edge."""

    seq: int
    head: bytes
    body: bytes

    @property
    def leaf(self) -> bytes:
        return frame_leaf(self.seq, self.head, self.body)


@dataclass(frozen=True, slots=True)
class Outline:
    """A frame without its bytes: sizes of head and body, and its leaf hash."""

    seq: int
    head: int
    body: int
    leaf: bytes


@dataclass(frozen=True)
class OpeningRequest:
    """What a verifier asks one node: outbound leaves (1 is the first frame) of one epoch of one run.

    Or, with no leaves, entry `history` (1 is the first) of what the node says in its END this epoch began from.
    """

    order: Digest
    epoch: Annotated[int, Range(0, 255)]
    leaves: Annotated[tuple[Annotated[int, Range(1)], ...], Many(0, MAX_LEAVES)] = ()
    history: Annotated[int, Range(0, MAX_HISTORY)] = 0

    def to_bytes(self) -> bytes:
        return emit(encode(self))


def request_untrusted(data: bytes) -> OpeningRequest:
    """Read a stranger's request. Raises ReceiptError."""
    request = decode_untrusted(OpeningRequest, parse_untrusted(data, 1 << 16, 4), "request")
    if bool(request.leaves) == bool(request.history):
        raise ReceiptError(Refusal.OPENING, "a request names either leaves or an entry of the history")
    return request


@dataclass(frozen=True)
class OpenedRows:
    """An answer that was checked: inbound frames from the first on, and the chosen outbound ones by leaf."""

    inbound: tuple[CrossedFrame, ...]
    outbound: tuple[tuple[int, CrossedFrame], ...]

    def upto(self, frame: CrossedFrame) -> tuple[CrossedFrame, ...]:
        """Inbound frames in order of crossing, up to the last one with this outbound frame's number.

        All of them where there is none: a frame that fills the stages after this one answers nothing that came in.
        """
        fitting = [index for index, inbound in enumerate(self.inbound) if inbound.seq == frame.seq]
        return self.inbound[: fitting[-1] + 1] if fitting else self.inbound


@dataclass(frozen=True)
class _FrameEntry:
    leaf: Annotated[int, Range(1)]
    seq: Count
    head: Count
    body: Count


_Path = Annotated[tuple[Digest, ...], Many(0, 64)]


@dataclass(frozen=True)
class _Chosen:
    frame: _FrameEntry
    path: _Path


@dataclass(frozen=True)
class _Header:
    salt: Digest
    """Leaf 0 of the inbound tree."""
    prefix: Annotated[tuple[_FrameEntry, ...], Many(0, MAX_FRAMES)]
    prefix_path: _Path
    chosen: Annotated[tuple[_Chosen, ...], Many(0, MAX_LEAVES)]


def opening_header(
    inbound: Sequence[Outline], outbound: Sequence[Outline], salts: tuple[bytes, bytes], leaves: Sequence[int]
) -> tuple[bytes, int]:
    """What an answer begins with, and how many inbound frames follow it; then come the chosen outbound ones.

    `salts` are leaf hashes 0 of the inbound and outbound tree; all frames of the epoch are given.
    Raises ReceiptError(OPENING) when a leaf is asked for that never crossed.
    """
    if not all(0 < leaf <= len(outbound) for leaf in leaves):
        raise ReceiptError(Refusal.OPENING, f"asked for leaves {list(leaves)[:4]}, {len(outbound)} frames went out")
    by_seq = {frame.seq: index for index, frame in enumerate(inbound, 1)}
    reached = max((by_seq.get(outbound[leaf - 1].seq, len(inbound)) for leaf in leaves), default=len(inbound))
    came = Tree([salts[0], *(frame.leaf for frame in inbound)])
    went = Tree([salts[1], *(frame.leaf for frame in outbound)])
    header = _Header(
        salts[0].hex(),
        tuple(_entry(index, frame) for index, frame in enumerate(inbound[:reached], 1)),
        tuple(step.hex() for step in came.consistency(reached + 1)),
        tuple(
            _Chosen(_entry(leaf, outbound[leaf - 1]), tuple(step.hex() for step in went.inclusion(leaf)))
            for leaf in leaves
        ),
    )
    text = emit(encode(header))
    if len(text) > MAX_HEADER:
        raise ReceiptError(Refusal.OPENING, f"{reached} frames are more than one opening holds")
    return MAGIC + struct.pack(">I", len(text)) + text, reached


def history_root(leaves: Iterable[bytes], salt: bytes) -> str:
    """Hex root that the node signs over the leaves of such frames."""
    tree = Accumulator()
    for leaf in (salt, *leaves):
        tree.add(leaf)
    return tree.root().hex()


def _entry(leaf: int, frame: Outline) -> _FrameEntry:
    return _FrameEntry(leaf, frame.seq, frame.head, frame.body)


def opened_untrusted(
    data: bytes,
    leaves: Sequence[int],
    inbound: tuple[str, int],
    outbound: tuple[str, int],
    max_bytes: int = MAX_OPENING,
) -> OpenedRows:
    """Read and prove an answer. `inbound` and `outbound` are (hex root, frames) as both ends of the edges signed them.

    Raises ReceiptError: OPENING when malformed or not what was asked, PROOF when a frame is not under its root.
    """
    header, frames = _parts_untrusted(data, max_bytes)
    if not leaves or tuple(chosen.frame.leaf for chosen in header.chosen) != tuple(leaves):
        raise ReceiptError(Refusal.OPENING, "other leaves were opened than asked for")
    prefix, opened = frames[: len(header.prefix)], frames[len(header.prefix) :]
    _check_prefix(header, prefix, inbound)
    root, count = outbound
    for chosen, frame in zip(header.chosen, opened, strict=True):
        check_inclusion(frame.leaf, chosen.frame.leaf, count + 1, _path(chosen.path), bytes.fromhex(root))
    return OpenedRows(tuple(prefix), tuple(zip(leaves, opened, strict=True)))


def history_untrusted(data: bytes, inbound: tuple[str, int], max_bytes: int = MAX_OPENING) -> tuple[CrossedFrame, ...]:
    """Read and prove an answer about what an epoch began from. Raises ReceiptError as `opened_untrusted` does."""
    header, frames = _parts_untrusted(data, max_bytes)
    if header.chosen or len(header.prefix) != inbound[1]:
        raise ReceiptError(Refusal.OPENING, f"{len(header.prefix)} frames were opened, {inbound[1]} were signed")
    _check_prefix(header, frames, inbound)
    return tuple(frames)


def with_known_untrusted(begun: bytes, known: Sequence[CrossedFrame]) -> bytes:
    """The beginning of an answer, continued with inbound frames that the caller has, where it begins with those.

    `begun` as it is where its header is not whole, or does not outline them: whether they are those that crossed is
    for `opened_untrusted` to say, of the whole answer. Raises ReceiptError for a header that is none.
    """
    start = len(MAGIC) + 4
    if not known or len(begun) < start or begun[: len(MAGIC)] != MAGIC:
        return begun
    (length,) = struct.unpack_from(">I", begun, len(MAGIC))
    if length > MAX_HEADER or len(begun) < start + length:
        return begun
    header = decode_untrusted(_Header, parse_untrusted(begun[start : start + length], MAX_HEADER, 8), "opening")
    size = start + length
    parts = []
    for entry, frame in zip(header.prefix, known, strict=False):
        if (entry.seq, entry.head, entry.body) != (frame.seq, len(frame.head), len(frame.body)):
            break
        parts += [frame.head, frame.body]
        size += entry.head + entry.body
    return begun if size <= len(begun) else begun + b"".join(parts)[len(begun) - start - length :]


def _check_prefix(header: _Header, frames: Sequence[CrossedFrame], inbound: tuple[str, int]) -> None:
    if [entry.leaf for entry in header.prefix] != list(range(1, len(header.prefix) + 1)):
        raise ReceiptError(Refusal.OPENING, "inbound frames are not a prefix")
    tree = Accumulator()
    tree.add(bytes.fromhex(header.salt))
    for frame in frames:
        tree.add(frame.leaf)
    root, count = inbound
    check_consistency(tree.size, tree.root(), count + 1, bytes.fromhex(root), _path(header.prefix_path))


def _parts_untrusted(data: bytes, max_bytes: int) -> tuple[_Header, list[CrossedFrame]]:
    start = len(MAGIC) + 4
    if len(data) > max_bytes or len(data) < start or data[: len(MAGIC)] != MAGIC:
        raise ReceiptError(Refusal.OPENING, f"an answer of {len(data)} bytes is not an opening")
    (length,) = struct.unpack_from(">I", data, len(MAGIC))
    if length > min(MAX_HEADER, len(data) - start):
        raise ReceiptError(Refusal.OPENING, f"a header of {length} bytes")
    header = decode_untrusted(_Header, parse_untrusted(data[start : start + length], MAX_HEADER, 8), "opening")
    entries = [*header.prefix, *(chosen.frame for chosen in header.chosen)]
    return header, _frames_untrusted(data, start + length, entries)


def _path(path: Sequence[str]) -> list[bytes]:
    return [bytes.fromhex(step) for step in path]


def _frames_untrusted(data: bytes, start: int, entries: Sequence[_FrameEntry]) -> list[CrossedFrame]:
    if sum(entry.head + entry.body for entry in entries) != len(data) - start:
        raise ReceiptError(Refusal.OPENING, "frames do not fill the answer")
    frames = []
    for entry in entries:
        middle = start + entry.head
        end = middle + entry.body
        frames.append(CrossedFrame(entry.seq, data[start:middle], data[middle:end]))
        start = end
    return frames

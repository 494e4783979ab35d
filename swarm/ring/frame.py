"""Frames and answers as bytes: a small msgpack header beside packed little-endian arrays.

A frame's body is, in this order and without gaps:

    commits.slot u32[m] | commits.position u32[m] | slot u32[n] | position u32[n] | prefix u32[n] | token i32[n]
    | want u8[n] | ancestors u8[n * scratch / 8] | hidden rows as their wire format says (absent before the head)

An answer's body is

    row u32[n] | token i32[n] | margin f32[n] | logprob f32[n] | top.token i32[n * k] | top.logprob f32[n * k]

or, where the requester runs the last layers itself, the hidden rows of the whole frame. Where the tail drafts, behind
that `draft.token i32[levels * width] | draft.share f32[levels * width]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from swarm.base.errors import PeerError
from swarm.model.rows import MAX_ROWS, Commits, Layout, Rows
from swarm.model.sampler import Picked
from swarm.net.channel.message import Body, Message

DOWN = "ring.down"
"""Kind of every message that walks from the requester towards the tail: one kind, so that one order holds."""
ANSWER = "ring.answer"
MAX_TOP = 20
MAX_STAGES = 64
MAX_MICROSECONDS = 10**12
MAX_DRAFT_LEVELS, MAX_DRAFT_WIDTH = 8, 16


@dataclass(frozen=True)
class Frame:
    """One trip round the ring.

    run      16 bytes, names the session at every stage
    epoch    rises by one at each recovery; frames of an older one are dropped
    seq      rises by one with every frame of an epoch
    replay   fills the KV of stage number `replay` and goes no further; -1 for a pass
    timings  (queued, computed) in microseconds, a pair added by every stage passed
    hidden   wire header and bytes of the hidden rows [n, hidden]; None on the way to the head
    drafts   how many tokens ahead the tail is asked to draft, 0 to MAX_DRAFT_LEVELS
    """

    run: bytes
    epoch: int
    seq: int
    commits: Commits
    rows: Rows
    timings: tuple[tuple[int, int], ...] = ()
    replay: int = -1
    hidden: tuple[dict[str, Any], Body] | None = None
    drafts: int = 0


@dataclass(frozen=True)
class Drafts:
    """What the tail expects behind the token that it drew after row `row` of a frame.

    token int32 [levels, width], best first: of level 0 for what comes right after that token; of each further one
    behind the first choices of those before. share float32 [levels, width]: the head's own belief in each, 0 to 1.
    """

    row: int
    token: NDArray[np.int32]
    share: NDArray[np.float32]


@dataclass(frozen=True)
class Answer:
    """What the tail found: for `row[i]` of frame `seq` the next token is `token[i]`.

    row uint32 [n]; token int32 [n]; margin, logprob float32 [n]; top_token int32 [n, k]; top_logprob float32 [n, k]
    hidden: set instead of tokens where the last stage of the ring is not the last of the model
    drafts: where it was asked for and the tail can; made in `drafts_us` microseconds, which its timing holds too
    """

    run: bytes
    epoch: int
    seq: int
    row: NDArray[np.uint32]
    token: NDArray[np.int32]
    margin: NDArray[np.float32]
    logprob: NDArray[np.float32]
    top_token: NDArray[np.int32]
    top_logprob: NDArray[np.float32]
    timings: tuple[tuple[int, int], ...] = ()
    hidden: tuple[dict[str, Any], Body] | None = None
    drafts: Drafts | None = None
    drafts_us: int = 0


def filled(held: int, frame: Frame, scratch: int) -> int:
    """How many committed positions are filled, from the first on, once a frame is computed on top of `held`.

    Requesters fill them in order; a gap counts for nothing.
    """
    certain = frame.rows.position[frame.rows.slot >= scratch]
    for position in sorted({*map(int, frame.commits.position), *map(int, certain)}):
        if position > held:
            break
        held = max(held, position + 1)
    return held


def encode_frame(frame: Frame) -> Message:
    """The message that carries a frame."""
    rows, commits = frame.rows, frame.commits
    header: dict[str, Any] = {
        "do": "frame",
        "r": frame.run,
        "e": frame.epoch,
        "q": frame.seq,
        "n": len(rows),
        "m": len(commits),
        "w": rows.ancestors.shape[1],
        "t": [value for pair in frame.timings for value in pair],
        "p": frame.replay,
    }
    if frame.drafts:
        header["d"] = frame.drafts
    packed = b"".join(
        (
            commits.slot.astype("<u4").tobytes(),
            commits.position.astype("<u4").tobytes(),
            rows.slot.astype("<u4").tobytes(),
            rows.position.astype("<u4").tobytes(),
            rows.prefix.astype("<u4").tobytes(),
            rows.token.astype("<i4").tobytes(),
            rows.want.astype("u1").tobytes(),
            rows.ancestors.tobytes(),
        )
    )
    if frame.hidden is None:
        return Message(DOWN, header, packed)
    header["x"], data = frame.hidden
    return Message(DOWN, header, b"".join((packed, data)))


def parse_frame_untrusted(message: Message) -> Frame:
    """The frame in a message of a peer. Raises PeerError; slots are checked against the session by the stage."""
    header, reader = message.header, _Reader(memoryview(message.body))
    n = _integer(header, "n", 1, MAX_ROWS)
    m = _integer(header, "m", 0, MAX_ROWS)
    width = _integer(header, "w", 0, 64)
    commits = Commits(reader.take("<u4", m), reader.take("<u4", m))
    slot, position, prefix = (reader.take("<u4", n) for _ in range(3))
    token = reader.take("<i4", n)
    want = reader.take("u1", n).astype(bool)
    ancestors = reader.take("u1", n * width).reshape(n, width)
    run, epoch, seq = _identity(header)
    return Frame(
        run=run,
        epoch=epoch,
        seq=seq,
        commits=commits,
        rows=Rows(slot, position, prefix, ancestors, token, want),
        timings=_timings(header),
        replay=_integer(header, "p", -1, MAX_STAGES),
        hidden=_hidden(header, reader),
        drafts=_integer(header, "d", 0, MAX_DRAFT_LEVELS) if "d" in header else 0,
    )


def encode_commits(commits: Commits) -> bytes:
    """Commits that travel without a frame: slot u32[m], then position u32[m]."""
    return commits.slot.astype("<u4").tobytes() + commits.position.astype("<u4").tobytes()


def parse_commits_untrusted(data: object, layout: Layout) -> Commits:
    """The reverse of `encode_commits`. Raises PeerError."""
    if not isinstance(data, bytes) or len(data) % 8 or len(data) > 8 * MAX_ROWS:
        raise PeerError("expected commits, found other bytes")
    both = np.frombuffer(data, "<u4").reshape(2, -1)
    if both.size and (int(both[0].max()) >= layout.scratch or int(both[1].max()) >= layout.context):
        raise PeerError("a commit reaches outside the session's slots")
    return Commits(both[0], both[1])


def encode_answer(answer: Answer) -> Message:
    """The message that carries an answer."""
    header: dict[str, Any] = {
        "r": answer.run,
        "e": answer.epoch,
        "q": answer.seq,
        "n": len(answer.row),
        "k": answer.top_token.shape[1],
        "t": [value for pair in answer.timings for value in pair],
    }
    packed = b"".join(
        (
            answer.row.astype("<u4").tobytes(),
            answer.token.astype("<i4").tobytes(),
            answer.margin.astype("<f4").tobytes(),
            answer.logprob.astype("<f4").tobytes(),
            answer.top_token.astype("<i4").tobytes(),
            answer.top_logprob.astype("<f4").tobytes(),
        )
    )
    if answer.drafts is not None:
        drafts = answer.drafts
        header["d"] = [drafts.row, *drafts.token.shape, answer.drafts_us]
        packed += drafts.token.astype("<i4").tobytes() + drafts.share.astype("<f4").tobytes()
    if answer.hidden is None:
        return Message(ANSWER, header, packed)
    header["x"], data = answer.hidden
    return Message(ANSWER, header, b"".join((packed, data)))


def parse_answer_untrusted(message: Message) -> Answer:
    """The answer in a message of the tail. Raises PeerError."""
    header, reader = message.header, _Reader(memoryview(message.body))
    n = _integer(header, "n", 0, MAX_ROWS)
    k = _integer(header, "k", 0, MAX_TOP)
    row, token = reader.take("<u4", n), reader.take("<i4", n)
    margin, logprob = reader.take("<f4", n), reader.take("<f4", n)
    top_token = reader.take("<i4", n * k).reshape(n, k)
    top_logprob = reader.take("<f4", n * k).reshape(n, k)
    run, epoch, seq = _identity(header)
    if np.any(token < 0):
        raise PeerError("expected token ids of 0 or more in an answer, found a negative one")
    drafts, drafts_us = _drafts(header, reader)
    timings, hidden = _timings(header), _hidden(header, reader)
    return Answer(
        run, epoch, seq, row, token, margin, logprob, top_token, top_logprob, timings, hidden, drafts, drafts_us
    )


class _Reader:
    """Takes arrays off the front of a body; a body that ends early is a PeerError."""

    def __init__(self, body: memoryview) -> None:
        self.body = body

    def take(self, dtype: str, count: int) -> NDArray[Any]:
        size = np.dtype(dtype).itemsize * count
        if size > len(self.body):
            raise PeerError(f"expected {size} more bytes in a frame, found {len(self.body)}")
        taken, self.body = self.body[:size], self.body[size:]
        return np.frombuffer(taken, dtype=dtype)


def _integer(header: Mapping[str, Any], key: str, low: int, high: int) -> int:
    value = header.get(key)
    if type(value) is not int or not low <= value <= high:
        raise PeerError(f"expected {key!r} from {low} to {high} in a frame, found {value!r:.40}")
    return value


def _identity(header: Mapping[str, Any]) -> tuple[bytes, int, int]:
    run = header.get("r")
    if not isinstance(run, bytes) or len(run) != 16:
        raise PeerError("expected a run of 16 bytes in a frame")
    return run, _integer(header, "e", 0, 2**31), _integer(header, "q", 0, 2**53)


def _timings(header: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    flat = header.get("t")
    good = isinstance(flat, list) and len(flat) <= 2 * MAX_STAGES and len(flat) % 2 == 0
    if not good or not all(type(v) is int and 0 <= v <= MAX_MICROSECONDS for v in flat or ()):
        raise PeerError("expected pairs of microseconds in a frame's timings")
    assert flat is not None
    return tuple(zip(flat[::2], flat[1::2], strict=True))


def _drafts(header: Mapping[str, Any], reader: _Reader) -> tuple[Drafts | None, int]:
    said = header.get("d")
    if said is None:
        return None, 0
    most = (MAX_ROWS - 1, MAX_DRAFT_LEVELS, MAX_DRAFT_WIDTH, MAX_MICROSECONDS)
    least = (0, 1, 1, 0)
    good = isinstance(said, list) and len(said) == len(most)
    if not good or not all(type(v) is int and a <= v <= b for v, a, b in zip(said, least, most, strict=True)):
        raise PeerError(f"expected row, levels, width and microseconds of drafts in an answer, found {said!r:.60}")
    row, levels, width, took = said
    token = reader.take("<i4", levels * width).reshape(levels, width)
    share = reader.take("<f4", levels * width).reshape(levels, width)
    if np.any(token < 0) or not np.all((share >= 0) & (share <= 1)):
        raise PeerError("expected token ids and shares from 0 to 1 in drafts, found others")
    return Drafts(row, token, share), took


def _hidden(header: Mapping[str, Any], reader: _Reader) -> tuple[dict[str, Any], Body] | None:
    wire = header.get("x")
    if wire is None:
        if len(reader.body):
            raise PeerError(f"found {len(reader.body)} bytes after the end of a frame")
        return None
    if not isinstance(wire, dict):
        raise PeerError("expected a tensor header in a frame")
    return wire, reader.body


def answer_of(
    frame: Frame,
    wanted: np.ndarray,
    picked: Sequence[Picked],
    timings: tuple[tuple[int, int], ...],
    drafts: Drafts | None = None,
    drafts_us: int = 0,
) -> Answer:
    """The answer that names `picked[i]` as the token after row `wanted[i]`."""
    tops = max((len(p.top) for p in picked), default=0)
    return Answer(
        frame.run,
        frame.epoch,
        frame.seq,
        wanted.astype(np.uint32),
        np.array([p.token for p in picked], np.int32),
        np.array([p.margin for p in picked], np.float32),
        np.array([p.logprob for p in picked], np.float32),
        np.array([[t for t, _ in p.top] for p in picked], np.int32).reshape(len(picked), tops),
        np.array([[v for _, v in p.top] for p in picked], np.float32).reshape(len(picked), tops),
        timings,
        drafts=drafts,
        drafts_us=drafts_us,
    )

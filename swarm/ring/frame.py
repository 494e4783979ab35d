"""Frames and answers as bytes: a small msgpack header beside packed little-endian arrays.

A frame's body is, in this order and without gaps:

    commits.slot u32[m] | commits.position u32[m] | slot u32[n] | position u32[n] | prefix u32[n] | token i32[n]
    | want u8[n] | ancestors u8[n * scratch / 8] | hidden rows as their wire format says (absent before the head)

An answer's body is

    row u32[n] | token i32[n] | margin f32[n] | logprob f32[n] | top.token i32[n * k] | top.logprob f32[n * k]

or, where the requester runs the last layers itself, the hidden rows of the whole frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from swarm.base.bounds import AtMost, Between, Exactly, Key, MayLack, Spelled, by_name, by_position
from swarm.base.codec import Codec
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
MAX_TENSOR_ENTRIES = 64
U4, I4, F4, U1 = (np.dtype(name) for name in ("<u4", "<i4", "<f4", "u1"))

RunId: TypeAlias = Annotated[bytes, Exactly(16)]
Epoch: TypeAlias = Annotated[int, Between(0, 2**31)]
Seq: TypeAlias = Annotated[int, Between(0, 2**53)]
Micros: TypeAlias = Annotated[int, Between(0, MAX_MICROSECONDS)]
TimePairs: TypeAlias = tuple[tuple[int, int], ...]
Tensor: TypeAlias = Annotated[Mapping[str, object], AtMost(MAX_TENSOR_ENTRIES)]
"""What `swarm.net.channel.wire.decode_tensor_untrusted` reads."""


def _pairs(flat: tuple[int, ...]) -> TimePairs:
    if len(flat) % 2:
        raise ValueError(f"pairs of microseconds, found {len(flat)} numbers")
    return tuple(zip(flat[::2], flat[1::2], strict=True))


def _flat(pairs: TimePairs) -> list[int]:
    return [value for pair in pairs for value in pair]


Timings: TypeAlias = Annotated[TimePairs, Spelled(_pairs, _flat, Annotated[tuple[Micros, ...], AtMost(2 * MAX_STAGES)])]


@by_name(tag=("do", "frame"))
@dataclass(slots=True)
class _FrameHead:
    """The header of a frame: its name, and the sizes of the arrays in its body."""

    run: Annotated[RunId, Key("r")]
    epoch: Annotated[Epoch, Key("e")]
    seq: Annotated[Seq, Key("q")]
    rows: Annotated[int, Key("n"), Between(1, MAX_ROWS)]
    commits: Annotated[int, Key("m"), Between(0, MAX_ROWS)]
    width: Annotated[int, Key("w"), Between(0, 64)]
    timings: Annotated[Timings, Key("t")]
    replay: Annotated[int, Key("p"), Between(-1, MAX_STAGES)]
    drafts: Annotated[int, Key("d"), Between(0, MAX_DRAFT_LEVELS), MayLack(unsaid=True)] = 0
    tap_first: Annotated[int, Key("f"), Between(0, MAX_ROWS - 1), MayLack(unsaid=True)] = 0
    tap_rows: Annotated[int, Key("g"), Between(0, MAX_ROWS), MayLack(unsaid=True)] = 0
    hidden: Annotated[Tensor | None, Key("x"), MayLack(unsaid=True)] = None


@by_position
@dataclass(slots=True)
class _DraftsHead:
    """What an answer's header says of the drafts in its body; `took_us` is what the tail needed for them."""

    row: Annotated[int, Between(0, MAX_ROWS - 1)]
    levels: Annotated[int, Between(1, MAX_DRAFT_LEVELS)]
    width: Annotated[int, Between(1, MAX_DRAFT_WIDTH)]
    took_us: Micros


@by_name()
@dataclass(slots=True)
class _AnswerHead:
    """The header of an answer."""

    run: Annotated[RunId, Key("r")]
    epoch: Annotated[Epoch, Key("e")]
    seq: Annotated[Seq, Key("q")]
    rows: Annotated[int, Key("n"), Between(0, MAX_ROWS)]
    tops: Annotated[int, Key("k"), Between(0, MAX_TOP)]
    timings: Annotated[Timings, Key("t")]
    drafts: Annotated[_DraftsHead | None, Key("d"), MayLack(unsaid=True)] = None
    hidden: Annotated[Tensor | None, Key("x"), MayLack(unsaid=True)] = None


_FRAME, _ANSWER = Codec(_FrameHead, "frame"), Codec(_AnswerHead, "answer")


@dataclass(frozen=True)
class Frame:
    """One trip round the ring.

    run      16 bytes, names the session at every stage
    epoch    rises by one at each recovery; frames of an older one are dropped
    seq      rises by one with every frame of an epoch
    replay   fills the KV of stage number `replay` and goes no further; -1 for a pass
    timings  (queued, computed) in microseconds, a pair added by every stage passed
    hidden   wire header and bytes of the hidden rows [n, hidden]; None on the way to the head
    drafts   how many tokens ahead the tail is asked to draft
    tap_first, tap_rows   rows whose taps the requester wants (`swarm.ring.taps`); tap_rows 0: none
    """

    run: bytes
    epoch: int
    seq: int
    commits: Commits
    rows: Rows
    timings: TimePairs = ()
    replay: int = -1
    hidden: tuple[Mapping[str, object], Body] | None = None
    drafts: int = 0
    tap_first: int = 0
    tap_rows: int = 0


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
    timings: TimePairs = ()
    hidden: tuple[Mapping[str, object], Body] | None = None
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
    tensor, data = frame.hidden if frame.hidden is not None else (None, b"")
    width = rows.ancestors.shape[1]
    head = _FrameHead(
        frame.run,
        frame.epoch,
        frame.seq,
        len(rows),
        len(commits),
        width,
        frame.timings,
        frame.replay,
        frame.drafts,
        frame.tap_first,
        frame.tap_rows,
        tensor,
    )
    packed = b"".join(
        (
            commits.slot.astype(U4, copy=False).tobytes(),
            commits.position.astype(U4, copy=False).tobytes(),
            rows.slot.astype(U4, copy=False).tobytes(),
            rows.position.astype(U4, copy=False).tobytes(),
            rows.prefix.astype(U4, copy=False).tobytes(),
            rows.token.astype(I4, copy=False).tobytes(),
            rows.want.astype(U1, copy=False).tobytes(),
            rows.ancestors.tobytes(),
            data,
        )
    )
    return Message(DOWN, _FRAME.header(head), packed)


def parse_frame_untrusted(message: Message) -> Frame:
    """The frame in a message of a peer. Raises PeerError; slots are checked against the session by the stage."""
    head, reader = _FRAME.read_untrusted(message.header), _Reader(memoryview(message.body))
    n, m, width = head.rows, head.commits, head.width
    commits = Commits(reader.take(U4, m), reader.take(U4, m))
    slot, position, prefix = (reader.take(U4, n) for _ in range(3))
    token = reader.take(I4, n)
    want = reader.take(U1, n).astype(bool)
    ancestors = reader.take(U1, n * width).reshape(n, width)
    return Frame(
        run=head.run,
        epoch=head.epoch,
        seq=head.seq,
        commits=commits,
        rows=Rows(slot, position, prefix, ancestors, token, want),
        timings=head.timings,
        replay=head.replay,
        hidden=reader.rest(head.hidden),
        drafts=head.drafts,
        tap_first=head.tap_first,
        tap_rows=head.tap_rows,
    )


def encode_commits(commits: Commits) -> bytes:
    """Commits that travel without a frame: slot u32[m], then position u32[m]."""
    return commits.slot.astype(U4, copy=False).tobytes() + commits.position.astype(U4, copy=False).tobytes()


def parse_commits_untrusted(data: object, layout: Layout) -> Commits:
    """The reverse of `encode_commits`. Raises PeerError."""
    if not isinstance(data, bytes) or len(data) % 8 or len(data) > 8 * MAX_ROWS:
        raise PeerError("expected commits, found other bytes")
    both = np.frombuffer(data, U4).reshape(2, -1)
    if both.size and (int(both[0].max()) >= layout.scratch or int(both[1].max()) >= layout.context):
        raise PeerError("a commit reaches outside the session's slots")
    return Commits(both[0], both[1])


def encode_answer(answer: Answer) -> Message:
    """The message that carries an answer."""
    tensor, data = answer.hidden if answer.hidden is not None else (None, b"")
    tops = answer.top_token.shape[1]
    drafts, said, extra = answer.drafts, None, b""
    if drafts is not None:
        levels, width = drafts.token.shape
        said = _DraftsHead(drafts.row, levels, width, answer.drafts_us)
        extra = drafts.token.astype(I4, copy=False).tobytes() + drafts.share.astype(F4, copy=False).tobytes()
    head = _AnswerHead(answer.run, answer.epoch, answer.seq, len(answer.row), tops, answer.timings, said, tensor)
    packed = b"".join(
        (
            answer.row.astype(U4, copy=False).tobytes(),
            answer.token.astype(I4, copy=False).tobytes(),
            answer.margin.astype(F4, copy=False).tobytes(),
            answer.logprob.astype(F4, copy=False).tobytes(),
            answer.top_token.astype(I4, copy=False).tobytes(),
            answer.top_logprob.astype(F4, copy=False).tobytes(),
            extra,
            data,
        )
    )
    return Message(ANSWER, _ANSWER.header(head), packed)


def parse_answer_untrusted(message: Message) -> Answer:
    """The answer in a message of the tail. Raises PeerError."""
    head, reader = _ANSWER.read_untrusted(message.header), _Reader(memoryview(message.body))
    n, k = head.rows, head.tops
    row, token = reader.take(U4, n), reader.take(I4, n)
    margin, logprob = reader.take(F4, n), reader.take(F4, n)
    top_token = reader.take(I4, n * k).reshape(n, k)
    top_logprob = reader.take(F4, n * k).reshape(n, k)
    if np.any(token < 0):
        raise PeerError("expected token ids of 0 or more in an answer, found a negative one")
    drafts = None if head.drafts is None else _drafts(head.drafts, reader)
    return Answer(
        head.run,
        head.epoch,
        head.seq,
        row,
        token,
        margin,
        logprob,
        top_token,
        top_logprob,
        head.timings,
        reader.rest(head.hidden),
        drafts,
        0 if head.drafts is None else head.drafts.took_us,
    )


class _Reader:
    """Takes arrays off the front of a body; a body that ends early is a PeerError."""

    def __init__(self, body: memoryview) -> None:
        self.body = body

    def take(self, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        size = dtype.itemsize * count
        if size > len(self.body):
            raise PeerError(f"expected {size} more bytes in a frame, found {len(self.body)}")
        taken, self.body = self.body[:size], self.body[size:]
        return np.frombuffer(taken, dtype=dtype)

    def rest(self, tensor: Mapping[str, object] | None) -> tuple[Mapping[str, object], Body] | None:
        """What follows the arrays: the rows that `tensor` describes, or nothing at all."""
        if tensor is not None:
            return tensor, self.body
        if len(self.body):
            raise PeerError(f"found {len(self.body)} bytes after the end of a frame")
        return None


def _drafts(said: _DraftsHead, reader: _Reader) -> Drafts:
    size, shape = said.levels * said.width, (said.levels, said.width)
    token, share = reader.take(I4, size).reshape(shape), reader.take(F4, size).reshape(shape)
    if np.any(token < 0) or not np.all((share >= 0) & (share <= 1)):
        raise PeerError("expected token ids and shares from 0 to 1 in drafts, found others")
    return Drafts(said.row, token, share)


def answer_of(
    frame: Frame,
    wanted: np.ndarray,
    picked: Sequence[Picked],
    timings: TimePairs,
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

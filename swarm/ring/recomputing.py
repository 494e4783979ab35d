"""Asking a third node to recompute what a stage of another's run was given: the words of call and answer.

A verifier that lacks a stage's kernels sends the frames that were opened, in order, and which of them it wants rows of.
They travel as frames do, so that one reader bounds them. The node answers with rows or logits, float32. It is a witness
for what it says, not a proof: nothing shows that it computed at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import msgpack
import numpy as np
import torch

from swarm.base.bounds import AtMost, Between, by_name
from swarm.base.codec import Codec
from swarm.base.errors import PeerError
from swarm.net.channel.limits import ChannelLimits
from swarm.net.channel.message import Message, unpack_untrusted
from swarm.net.channel.wire import encode_tensor
from swarm.ring.frame import DOWN, Frame, encode_frame, parse_frame_untrusted

RECOMPUTE = "receipt.recompute"
MOST_BYTES = 24 << 20
"""Of the frames of a call, and of the rows of an answer."""
MOST_FRAMES = 4096
MOST_ROWS = 4096
MOST_POSITIONS = 1 << 16
MOST_LAYERS = 1 << 12


@by_name()
@dataclass(frozen=True)
class RecomputeRequest:
    """Frames of one session from its beginning through layers [first, last), by kernels of this fingerprint (hex).
    heads, bodies: bytes of each frame's header and body in the message's. wanted: the frame whose rows are asked for.
    """

    model: Annotated[str, AtMost(64)]
    fingerprint: Annotated[str, AtMost(64)]
    first: Annotated[int, Between(0, MOST_LAYERS)]
    last: Annotated[int, Between(1, MOST_LAYERS)]
    scratch: Annotated[int, Between(8, 4096)]
    context: Annotated[int, Between(1, MOST_POSITIONS)]
    heads: Annotated[tuple[Annotated[int, Between(1, MOST_BYTES)], ...], AtMost(MOST_FRAMES)]
    bodies: Annotated[tuple[Annotated[int, Between(0, MOST_BYTES)], ...], AtMost(MOST_FRAMES)]
    wanted: Annotated[int, Between(0, MOST_FRAMES - 1)]

    def contradiction(self) -> str:
        """What its fields say against each other, "" for nothing."""
        if len(self.heads) != len(self.bodies) or self.wanted >= len(self.heads):
            return f"a header and a body for each of {self.wanted + 1} frames and more"
        if self.scratch % 8:
            return f"a multiple of 8 scratch slots, found {self.scratch}"
        return "" if self.first < self.last else "layers of which the first is below the last"


@by_name()
@dataclass(frozen=True)
class RecomputeAnswer:
    """The body is float32 [rows, width]: hidden rows, or at the model's end logits of the rows that are wanted."""

    rows: Annotated[int, Between(0, MOST_ROWS)]
    width: Annotated[int, Between(1, 1 << 24)]


RECOMPUTE_REQUEST = Codec(RecomputeRequest, "request to recompute")
RECOMPUTE_ANSWER = Codec(RecomputeAnswer, "recomputed rows")


def encode_request(about: RecomputeRequest, frames: Sequence[Frame], wanted: int) -> Message:
    """The call for the rows of frame `wanted` after those before it; `about` but for that and the sizes. Raises
    PeerError where they are too many for one call."""
    parts: list[bytes] = []
    for frame in frames:
        message = encode_frame(frame)
        parts += (bytes(msgpack.packb([message.kind, 0, 0, message.header], use_bin_type=True)), bytes(message.body))
    rows, size = sum(len(frame.rows) for frame in frames), sum(map(len, parts))
    if rows > MOST_ROWS or len(frames) > MOST_FRAMES or size > MOST_BYTES:
        raise PeerError(
            f"{rows} rows of {size} bytes are too many to be recomputed by another; at most {MOST_ROWS} are"
        )
    heads, bodies = tuple(map(len, parts[::2])), tuple(map(len, parts[1::2]))
    return Message(
        RECOMPUTE, RECOMPUTE_REQUEST.header(replace(about, heads=heads, bodies=bodies, wanted=wanted)), b"".join(parts)
    )


def frames_untrusted(request: RecomputeRequest, body: bytes) -> list[Frame]:
    """The frames of a call. Raises PeerError for what is none, or more than is taken."""
    sizes = [size for pair in zip(request.heads, request.bodies, strict=True) for size in pair]
    if sum(sizes) != len(body) or len(body) > MOST_BYTES:
        raise PeerError(f"expected frames of {sum(sizes)} bytes, at most {MOST_BYTES}, found {len(body)}")
    found, at = [], 0
    for head, rest in zip(request.heads, request.bodies, strict=True):
        message = unpack_untrusted(body[at : at + head], body[at + head : at + head + rest], ChannelLimits()).message
        if message.kind != DOWN:
            raise PeerError(f"expected a frame to recompute, found {message.kind[:40]!r}")
        found.append(parse_frame_untrusted(message))
        at += head + rest
    if sum(len(frame.rows) for frame in found) > MOST_ROWS:
        raise PeerError(f"expected at most {MOST_ROWS} rows to recompute")
    return found


def with_rows(frame: Frame, hidden: torch.Tensor | None) -> Frame:
    """A frame with rows float32 [n, width] in the place of its own, and nothing that recomputing does not need."""
    plain = Frame(bytes(16), 0, frame.seq, frame.commits, frame.rows)
    return plain if hidden is None else replace(plain, hidden=encode_tensor(hidden, "float32"))


def encode_rows(rows: torch.Tensor) -> Message:
    """Float32 [n, width]. Raises PeerError where they are too large for one answer."""
    if rows.numel() * 4 > MOST_BYTES:
        raise PeerError(
            f"{len(rows)} rows of {rows.shape[1]} numbers are too large for one answer; ask for smaller frames"
        )
    head = RecomputeAnswer(len(rows), rows.shape[1])
    return Message(RECOMPUTE, RECOMPUTE_ANSWER.header(head), rows.contiguous().numpy().astype("<f4").tobytes())


def rows_untrusted(message: Message, width: int) -> torch.Tensor:
    """Float32 [n, width] of an answer. Raises PeerError for any other."""
    head = RECOMPUTE_ANSWER.read_untrusted(message.header)
    if head.width != width or len(message.body) != 4 * head.rows * head.width:
        raise PeerError(
            f"expected rows of {width} numbers, found {head.rows} of {head.width} in {len(message.body)} bytes"
        )
    return torch.from_numpy(np.frombuffer(bytes(message.body), "<f4").reshape(head.rows, width).copy())

"""One run as it is kept for learning: what was asked, what was said, and what the tail told of each position.

A file of its own form, so that a damaged one is known as such: a head with a digest of everything behind it, then
arrays, little-endian. The text of a run lies in it readably: token ids are a code, not a cipher.

    "swarmrun" | blake2b-16 of the rest | target's manifest digest [32] | tokens u32 | start u32 | greedy u8 | tops u8
    tokens i32[n] | logprobs f32[n - start] | top ids i32[(n - start) * tops] | top logprobs f32[same]
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from swarm.base.errors import SwarmError

MOST_TOKENS = 1 << 20
MOST_TOPS = 20
_MAGIC, _SUM = b"swarmrun", 16
_HEAD = struct.Struct("<32sIIBB")
_BEFORE = len(_MAGIC) + _SUM


class DamagedRun(SwarmError):
    """A file that is no whole record of a run."""


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """What a requester knows of a run of its own.

    target        digest of the target's manifest, 64 hex digits
    tokens        int32 [n]: prompt and answer
    start         where the answer begins: tokens from here on are the target's
    greedy        whether each was its likeliest, or drawn
    logprobs      float32 [n - start]: of the answer's tokens under the target, before temperature
    top_ids       int32 [n - start, tops]: its likeliest tokens there, where the request asked for them; else tops is 0
    top_logprobs  float32, same shape

    Raises DamagedRun where these contradict each other.
    """

    target: str
    tokens: NDArray[np.int32]
    start: int
    greedy: bool
    logprobs: NDArray[np.float32]
    top_ids: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]

    def __post_init__(self) -> None:
        answered = len(self.tokens) - self.start
        if not 0 < self.start < len(self.tokens) <= MOST_TOKENS:
            raise DamagedRun(f"expected an answer behind a prompt, found {len(self.tokens)} tokens, start {self.start}")
        tops = self.top_ids.shape
        if len(self.logprobs) != answered or tops != self.top_logprobs.shape or tops != (answered, tops[-1]):
            raise DamagedRun(f"expected what the tail told of {answered} tokens, found another number")
        if tops[-1] > MOST_TOPS or min(self.tokens.min(), self.top_ids.min(initial=0)) < 0:
            raise DamagedRun(f"expected token ids and at most {MOST_TOPS} likeliest, found others")
        if not (np.isfinite(self.logprobs).all() and np.isfinite(self.top_logprobs).all()):
            raise DamagedRun("expected finite log-probabilities, found others")

    @property
    def tops(self) -> int:
        """Likeliest tokens that are known of each position."""
        return int(self.top_ids.shape[1])

    @property
    def answered(self) -> int:
        """Tokens that the target said."""
        return len(self.tokens) - self.start

    @property
    def prompt_key(self) -> str:
        """The same for runs that asked the same: 32 hex digits."""
        return hashlib.blake2b(self.tokens[: self.start].astype("<i4").tobytes(), digest_size=16).hexdigest()


def to_bytes(run: RecordedRun) -> bytes:
    """The file of a run."""
    head = _HEAD.pack(bytes.fromhex(run.target), len(run.tokens), run.start, run.greedy, run.tops)
    arrays = ((run.tokens, "<i4"), (run.logprobs, "<f4"), (run.top_ids, "<i4"), (run.top_logprobs, "<f4"))
    rest = head + b"".join(np.ascontiguousarray(values, form).tobytes() for values, form in arrays)
    return _MAGIC + _digest(rest) + rest


def from_bytes(data: bytes) -> RecordedRun:
    """Of a file. Raises DamagedRun."""
    if len(data) < _BEFORE + _HEAD.size or not data.startswith(_MAGIC):
        raise DamagedRun(f"expected a recorded run, found {len(data)} bytes of something else")
    rest = memoryview(data)[_BEFORE:]
    if _digest(rest) != data[len(_MAGIC) : _BEFORE]:
        raise DamagedRun("expected a whole file, found bytes that do not fit its digest")
    target, count, start, greedy, tops = _HEAD.unpack_from(rest)
    answered = count - start
    sizes = (count, answered, answered * tops, answered * tops)
    if answered < 0 or len(rest) != _HEAD.size + 4 * sum(sizes) or greedy > 1:
        raise DamagedRun(f"expected arrays of {count} tokens, found {len(rest)} bytes")
    arrays, at = list[NDArray[np.generic]](), _HEAD.size
    for size, form in zip(sizes, ("<i4", "<f4", "<i4", "<f4"), strict=True):
        arrays.append(np.frombuffer(rest, form, size, at))
        at += 4 * size
    tokens, logprobs, ids, values = arrays
    shape = answered, tops
    return RecordedRun(
        target.hex(),
        tokens.astype(np.int32),
        start,
        bool(greedy),
        logprobs.astype(np.float32),
        ids.astype(np.int32).reshape(shape),
        values.astype(np.float32).reshape(shape),
    )


def _digest(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=_SUM).digest()

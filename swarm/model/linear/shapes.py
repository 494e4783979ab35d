"""What recurrent operators keep for a session, and how much of it.

Each row leaves an entry in its slot. Entries of committed positions are kept for the newest `WINDOW` positions at
least; older ones are folded into a state of fixed size, so a session's memory does not grow with its text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from swarm.base.errors import ModelError

WINDOW = 128
"""Committed positions behind the newest one that a session can always go back to without being filled again. Rows in
flight are far fewer; a requester that goes on after a fault resends from the newest answer that it has."""
CAPACITY = 384
"""Most committed positions whose entries are kept. What is over is folded down to WINDOW in one step: entries move
then, and once in 256 rows that is too little to see."""
SEGMENT = 64
"""Rows that are solved together: the chunk of transformers' own forms, and a triangular system that stays small."""

RECURRENT_KINDS = frozenset({"linear_attention", "conv", "hybrid"})
"""Kinds of layers, as configs name them, that keep a state (`hybrid`: beside keys and values)."""
POOLED_KINDS = frozenset({"compressed_sparse_attention", "heavily_compressed_attention"})
"""Kinds of layers that keep pooled entries beside keys and values (DeepSeek V4)."""
PLAIN_KINDS = frozenset({"mlp", "moe"})
"""Kinds of layers that work row by row and keep nothing (Nemotron-H)."""


@dataclass(frozen=True)
class ConvShape:
    """A short convolution over `channels` values of the block's dtype: a row sees `width` rows, itself included."""

    channels: int
    width: int

    def bytes(self, scratch: int, context: int, itemsize: int) -> int:
        """Of one session."""
        return self.channels * entries(scratch, context) * itemsize


@dataclass(frozen=True)
class RuleShape:
    """A state [value_heads, key_dim, value_dim] that decays and takes outer products in.

    key_heads: of keys and queries, each serving value_heads // key_heads heads in a row.
    decays: decay factors of a head: 1, or one for each of its key_dim rows. All in float32, sums of decays in float64.
    """

    key_heads: int
    key_dim: int
    value_heads: int
    value_dim: int
    decays: int = 1

    @property
    def state(self) -> tuple[int, int, int]:
        """Shape of the state."""
        return self.value_heads, self.key_dim, self.value_dim

    def bytes(self, scratch: int, context: int, itemsize: int) -> int:
        """Of one session: entries, the state behind them and the one near the text's end."""
        entry = 4 * (self.key_heads * self.key_dim + self.value_heads * self.value_dim)
        entry += 8 * self.value_heads * self.decays
        return entry * entries(scratch, context) + 2 * (4 * math.prod(self.state) + 8 * self.value_heads * self.decays)


@dataclass(frozen=True)
class ScanShape:
    """A state of `states` numbers for each of `channels` channels, each with a decay of its own (Mamba-1). float32."""

    channels: int
    states: int

    def bytes(self, scratch: int, context: int, itemsize: int) -> int:
        """Of one session: entries, the state behind them, the one near the text's end, and the decays."""
        entry = 4 * (2 * self.channels + self.states)
        return entry * entries(scratch, context) + 3 * 4 * self.channels * self.states


@dataclass(frozen=True)
class PoolShape:
    """Entries of `entry` numbers that stand for `rate` positions each (DeepSeek V4), in the block's dtype. overlapping:
    an entry is made of two windows' rows, each of which gives two series of numbers."""

    rate: int
    entry: int
    overlapping: bool = False

    def __post_init__(self) -> None:
        if self.rate < 1 or self.entry < 1:
            raise ModelError(
                f"a config says entries of {self.entry} numbers for {self.rate} positions, expected 1 or more"
            )

    @property
    def width(self) -> int:
        """Numbers that a row gives: what is summed and its weights."""
        return self.entry * (4 if self.overlapping else 2)

    @property
    def reach(self) -> int:
        """Positions that an entry is made of."""
        return self.rate * (2 if self.overlapping else 1)

    @property
    def window(self) -> int:
        """Committed positions behind the newest one whose rows' gifts are kept: WINDOW to go back, and two windows that
        are not closed there."""
        return WINDOW + 2 * self.rate

    def capacity(self, context: int) -> int:
        """Most committed positions whose rows' gifts are kept."""
        return min(CAPACITY + 2 * self.rate, context)

    def bytes(self, scratch: int, context: int, itemsize: int) -> int:
        """Of one session: what rows gave, and the entries of the whole text."""
        slots = scratch + self.capacity(context) + 1
        return (self.width * slots + self.entry * (context // self.rate + 1)) * itemsize


StateShape = ConvShape | RuleShape | ScanShape | PoolShape


def entries(scratch: int, context: int) -> int:
    """Slots of a store: scratch, those of committed positions, and one that nobody reads."""
    return scratch + min(CAPACITY, context) + 1


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A store's tensor. A slot that no row sees is multiplied by 0, so it must hold numbers."""
    return torch.zeros(shape, dtype=dtype, device=device)

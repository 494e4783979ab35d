"""What all drafters that read hidden rows of the target are made of: weights that join rows of several layers, and the
text whose rows come while it grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch.nn import functional

from draft.base import DraftStep
from draft.ranker import Ranker
from draft.tapped_layer import Rotary, TappedLayer
from draft.tapped_text import WINDOW, TappedText
from draft.taps import TapStore
from swarm.model.sampler import Sampling

BATCH = 256
"""Certain rows computed at once."""
LEAST_ROOM = 256


@dataclass(frozen=True, kw_only=True)
class TappedWeights:
    """A drafter, in memory.

    taps     layers whose rows `fc` joins, in its order
    norm     behind the layers, then `head`
    table    embedding of token ids [vocabulary, d]
    tokens   the target's ids that the head's scores stand for, ascending; None: all
    """

    taps: tuple[int, ...]
    fc: torch.Tensor
    fc_bias: torch.Tensor | None = None
    layers: tuple[TappedLayer, ...]
    norm: torch.Tensor
    head: torch.Tensor
    table: torch.Tensor
    tokens: torch.Tensor | None
    rotary: Rotary

    @property
    def eps(self) -> float:
        return self.layers[0].shape.eps

    def joined(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows [n, d] of the target's [n, taps x hidden_size]."""
        return functional.linear(rows.to(self.fc.dtype), self.fc, self.fc_bias)


W = TypeVar("W", bound=TappedWeights)


class TapReader(Generic[W]):
    """The beginning of such a drafter: implements `draft.taps.ReadsTaps`, and of `draft.base.Drafter` all but `step`.

    Keys and values of its layers lie by slot: `slots` of drafted tokens, then certain ones by position.
    """

    reach = WINDOW

    def __init__(self, weights: W, context: int, slots: int) -> None:
        self.weights, self.context, self.slots = weights, context, slots
        self.store = TapStore()
        # `fc` wants its own order; stages send ascending.
        self.layers = tuple(sorted(weights.taps))
        self._order = [self.layers.index(tap) for tap in weights.taps]
        self._ranker = Ranker(len(weights.head), weights.tokens, torch.device("cpu"))
        self._text = TappedText(slots, self.store)
        self._keys = self._values = torch.empty(len(weights.layers), 0, 0, 0)
        self._true = np.zeros(0, np.bool_)
        """Positions whose keys and values were made of the target's rows."""

    @property
    def width(self) -> int:
        """Values of what `store` holds of a row."""
        return int(self.weights.fc.shape[1])

    def begin(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """See `Drafter.begin`. Nothing is computed: the target's rows of the prompt come with its passes. What stays of
        the text before was made of the target's rows alone; the last token is always computed."""
        self._ranker.begin(prompt, sampling)
        self._true[min(self._text.begin(prompt), len(prompt) - 1) :] = False

    def _follow(self, step: DraftStep, positions: int) -> None:
        """Take in a step's changes, with room for `positions` more than the certain text has."""
        for node in step.committed:
            self._ranker.saw(node.token)
        self._text.apply(step)
        self._ranker.forget_before(self._text.root.position)
        self._room(len(self._text.tokens) + positions)

    def _joined(self, rows: torch.Tensor) -> torch.Tensor:
        """What `fc` makes of the target's rows [n, width] as they lie in `store`."""
        return self.weights.joined(rows.view(len(rows), len(self.layers), -1)[:, self._order].flatten(1))

    def _room(self, positions: int) -> None:
        """Memory for so many positions."""
        have = self._keys.shape[2]
        if self.slots + positions <= have:
            return
        size = self.slots + max(LEAST_ROOM, 1 << (positions - 1).bit_length())
        shape = self.weights.layers[0].shape
        for name in ("_keys", "_values"):
            old = getattr(self, name)
            new = torch.zeros(
                len(self.weights.layers), shape.kv_heads, size, shape.head_dim, dtype=self.weights.fc.dtype
            )
            if have:
                new[:, :, :have] = old
            setattr(self, name, new)
        self._true = np.pad(self._true, (0, size - self.slots - len(self._true)))

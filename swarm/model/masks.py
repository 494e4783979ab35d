"""What a model's own mask says beyond what its layers tell their attention function.

Attention over slots makes its masks from the rows and the window that a layer passes. A model whose window (or more)
stands only in the mask that its `forward` makes would attend to too much without a word. While a model is tried, a
mask function of ours takes the place of transformers' and hands a `Seen` through to the attention function, which is
looked at there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from swarm.model.rows import Rows

if TYPE_CHECKING:
    from swarm.model.kvcache import SessionKV

TRIAL = "swarm_slots_trial"
"""What configs call this attention while a model is tried."""

_FAR = 1 << 20


class MaskChanged(AttributeError):
    """A model does arithmetic on its mask."""


@dataclass(frozen=True)
class AttentionChunk:
    """Rows see what is behind them as far as the last multiple of `size` (Llama 4)."""

    size: int


Span = int | AttentionChunk | None
"""How far back rows of a layer see: a window of so many positions (their own included), a chunk, everything."""


def within(span: int | AttentionChunk, position: Any, place: Any) -> Any:
    """[n, slots] of bool: does a row at `position` [n, 1] see back to `place` [n or 1, slots]? Integers, of numpy
    on the host or of torch on a device."""
    if isinstance(span, AttentionChunk):
        return place >= position // span.size * span.size
    return position - place < span


def note_positions(rows: Rows, kv: SessionKV) -> None:
    """Remember the positions of the scratch slots that these rows write."""
    drafted = rows.slot < kv.layout.scratch
    kv.position[rows.slot[drafted]] = rows.position[drafted]


def visible_slots(rows: Rows, kv: SessionKV, span: Span, low: int, high: int) -> NDArray[np.bool_]:
    """[n, high - low]: may row i see slot low + j? Only as far back as `span`."""
    scratch = kv.layout.scratch
    drafts = np.unpackbits(rows.ancestors, axis=1, bitorder="little").view(np.bool_)[:, low:scratch]
    committed = np.arange(high - scratch)
    seen = np.concatenate([drafts, committed < rows.prefix[:, None]], axis=1)
    if span is not None:
        place = np.concatenate([kv.position[low:scratch], committed]).astype(np.int32)
        seen &= within(span, rows.position[:, None].astype(np.int32), place)
    return seen


@dataclass(frozen=True)
class Beside:
    """What the rows of one job see beside their slots: entries [m, dim], keys and values at once, those that a row sees
    in the order of the text, and bool [n, m]."""

    entries: torch.Tensor
    seen: torch.Tensor


@dataclass(frozen=True)
class Seen:
    """Stands for a mask: `visible(i, j)` says whether position i sees position j."""

    visible: Callable[[int, int], bool]

    @classmethod
    def by(cls, mask_function: Callable[..., Any]) -> Seen:
        """From what transformers' `create_*_mask` pass on: (batch, head, query, key) -> bool, of tensors."""
        zero = torch.tensor(0)

        def visible(i: int, j: int) -> bool:
            return bool(mask_function(zero, zero, torch.tensor(i), torch.tensor(j)))

        return cls(visible)

    @property
    def causal(self) -> bool:
        """Does no position see one behind it?"""
        return not self.visible(_FAR, _FAR + 1)

    def __getattr__(self, name: str) -> Any:
        raise MaskChanged(name)

    def __getitem__(self, item: Any) -> Any:
        raise MaskChanged("item")

    def fits(self, span: Span) -> bool:
        """Is this the causal mask with this span and nothing else?"""
        for query in (_FAR, _FAR + 1, _FAR + 5):  # chunks begin at multiples
            reach = query + 1 if span is None else query % span.size + 1 if isinstance(span, AttentionChunk) else span
            for back in (0, 1, 2, 63, 4097, _FAR // 2, -1, reach - 1, reach, reach + 1):
                if back <= query and self.visible(query, query - back) != (0 <= back < reach):
                    return False
        return True


def trial_mask(*args: Any, mask_function: Callable[..., Any], **others: Any) -> Seen:
    """In the place of `sdpa_mask` and its like; called by transformers' `create_*_mask`."""
    return Seen.by(mask_function)


def unlike(name: str) -> MaskChanged:
    """Of a module whose own mask is of no kind that is known here."""
    return MaskChanged(f"the mask of {name}")


def register_trial(attend: Callable[..., Any]) -> None:
    """Tell transformers of the trial's names; harmless when repeated."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(TRIAL, attend)
    AttentionMaskInterface.register(TRIAL, trial_mask)

"""What a model's own mask says beyond what its layers tell their attention function.

Attention over slots makes its masks from the rows and the window that a layer passes. A model whose window (or more)
stands only in the mask that its `forward` makes would attend to too much without a word. While a model is tried, a
mask function of ours takes the place of transformers' and hands a `Seen` through to the attention function, which is
looked at there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

TRIAL = "swarm_slots_trial"
"""What configs call this attention while a model is tried."""

_FAR = 1 << 20


class MaskChanged(AttributeError):
    """A model does arithmetic on its mask."""


@dataclass(frozen=True)
class Seen:
    """Stands for a mask: `visible(i, j)` says whether position i sees position j."""

    visible: Callable[[int, int], bool]

    def __getattr__(self, name: str) -> Any:
        raise MaskChanged(name)

    def __getitem__(self, item: Any) -> Any:
        raise MaskChanged("item")

    def fits(self, window: int | None) -> bool:
        """Is this the causal mask with this window and nothing else?"""
        edges = [0, 1] if window is None else [0, 1, window - 1, window, window + 1]
        for query in (_FAR, _FAR + 1, _FAR + 5):  # chunks begin at multiples
            for back in [*edges, 2, 63, 4097, _FAR // 2, -1]:
                expected = back >= 0 and (window is None or back < window)
                if self.visible(query, query - back) != expected:
                    return False
        return True


def trial_mask(*args: Any, mask_function: Callable[..., Any], **others: Any) -> Seen:
    """In the place of `sdpa_mask` and its like; called by transformers' `create_*_mask`."""
    zero = torch.tensor(0)

    def visible(i: int, j: int) -> bool:
        return bool(mask_function(zero, zero, torch.tensor(i), torch.tensor(j)))

    return Seen(visible)


def register_trial(attend: Callable[..., Any]) -> None:
    """Tell transformers of the trial's names; harmless when repeated."""
    AttentionInterface.register(TRIAL, attend)
    AttentionMaskInterface.register(TRIAL, trial_mask)

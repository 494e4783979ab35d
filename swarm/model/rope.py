"""Rotary frequencies that are a row's own.

Some rotary embeddings follow the longest row of a forward: `longrope` (Phi-3 and later) changes all frequencies once a
text is longer than the length the model was first trained for, `dynamic` stretches them with the text. In a forward of
several sessions, of chunks and of drafts, one row would change another's frequencies. Here they follow the row's own
position: what a text of just that length would get, which is what transformers computes token by token.

With `longrope` a text ends where the frequencies change (`Manifest.context`). Beyond, `generate` of transformers
rotates *all* rows anew by the long set, those of a text that grew to that length too (Phi-3 drops its cache there),
while a ring keeps what it computed. Before, all rows have the short set, whoever shares the forward. Rows beyond are
still computed by position, for replays of receipts from when texts were let grow.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from swarm.model.prune import unfit


class LongRope(nn.Module):
    """A `longrope` module with both sets of frequencies; every row takes the set of its own position."""

    def __init__(self, rotary: Any, switch: int) -> None:
        super().__init__()
        self.switch = switch
        self._forward = inspect.unwrap(type(rotary).forward)
        device = rotary.inv_freq.device
        make = ROPE_INIT_FUNCTIONS["longrope"]
        self.short = _with_frequencies(rotary, make(rotary.config, device, seq_len=None)[0])
        self.long = _with_frequencies(rotary, make(rotary.config, device, seq_len=switch + 1)[0])

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """cos and sin, each [1, T, dim], for position_ids [1, T]."""
        far = (position_ids >= self.switch)[..., None]
        short, long = (self._forward(rotary, x, position_ids) for rotary in (self.short, self.long))
        return tuple(torch.where(far, b, a) for a, b in zip(short, long, strict=True))


def settle_rope(inner: nn.Module, name: str) -> None:
    """Replace what follows the forward by what follows the row, in an inner model that has its weights. Raises
    ModelError for frequencies of such a kind that differ between kinds of layers."""
    for parent in list(inner.modules()):
        for child, module in list(parent.named_children()):
            kind = getattr(module, "rope_type", None)
            if isinstance(kind, dict) and any("dynamic" in k or k == "longrope" for k in kind.values()):
                raise unfit(name, "its rotary frequencies follow the length of the text, and differ between layers")
            if kind == "longrope":
                switch = module.config.rope_parameters["original_max_position_embeddings"]  # type: ignore[union-attr, index]
                parent._modules[child] = LongRope(module, int(switch))
            elif isinstance(kind, str) and "dynamic" in kind:
                # Stretched beyond `max_position_embeddings` alone, which is where the context of a run ends.
                module.rope_type = "default"  # type: ignore[assignment]


def _with_frequencies(rotary: nn.Module, inv_freq: torch.Tensor) -> nn.Module:
    one = copy.copy(rotary)
    one.__dict__["_buffers"] = {**rotary._buffers, "inv_freq": inv_freq}
    return one

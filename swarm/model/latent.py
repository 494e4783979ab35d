"""Multi-head latent attention over slots that hold the latent (DeepSeek V2, https://arxiv.org/abs/2405.04434).

Keys and values of all heads are two products of one latent row, beside a rotated part that all heads share. A slot
keeps the latent and that part, 71 times less than what the heads see for DeepSeek V3. transformers' classes expand
them in a method of their own, `expand_kv`, right before attention; here it hands both through. What heads see is made
at use, the cheaper of two ways:

    absorbed   the key's product is taken to the query, the value's to the sum: nothing is made of a slot
    expanded   keys and values of the slots in sight are made once, for all rows of the job

Rows that must not depend on each other go the absorbed way whatever their number (`inorder.attend_latent_in_order`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from swarm.model.inorder import LatentHeads
from swarm.model.quant.native import Library

_MOST_SCORES = 1 << 26
"""Scores that are held at once; rows beyond are taken in turns."""
_MOST_EXPANDED = 1 << 27
"""Numbers of keys and values that are made at use, at most."""
_EXPAND_COST = 1.3
"""What a multiplication of expanding costs, in those of attention. Measured (tests/bench/latent.py): counting alone
would expand from 171 rows of DeepSeek V3's shapes on; absorbed, 192 rows took 0.65 of the time, 256 rows 1.08."""

Expand = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class LatentLinear(nn.Linear):
    """Makes keys and values of a latent. A class of its own, so that its matrix stays as it is: parts of it are taken
    to queries and sums."""


@dataclass(frozen=True)
class Latent:
    """The sizes of one attention module: widths of the latent (`rank`), of the rotated part (`rope`), of a head's own
    key (`nope`) and value."""

    heads: int
    rank: int
    rope: int
    nope: int
    value: int
    up: LatentLinear
    expand: Expand
    in_order: LatentHeads | None = None
    """For kernels whose rows do not depend on each other."""

    def attend(
        self,
        query: torch.Tensor,
        entries: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """query [heads, n, nope + rope], entries [slots, rank + rope], additive mask [n, slots], None: all is seen;
        sinks [heads]: one more logit each, that adds nothing. Returns [1, n, heads, value]."""
        if sinks is None and self.expands(query.shape[1], len(entries)):
            key, value = self.expand(entries[None, None, :, : self.rank], entries[None, None, :, self.rank :])
            out = torch.nn.functional.scaled_dot_product_attention(query[None], key, value, attn_mask=mask, scale=scale)
            return out.transpose(1, 2)
        step = max(1, _MOST_SCORES // (self.heads * len(entries)))
        parts = [
            self._absorbed(
                query[:, at : at + step], entries, None if mask is None else mask[at : at + step], scale, sinks
            )
            for at in range(0, query.shape[1], step)
        ]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).transpose(0, 1)[None]

    def expands(self, rows: int, slots: int) -> bool:
        """Whether making keys and values of so many slots costs less than taking so many rows to the latent."""
        more = rows * (2 * self.rank - self.nope - self.value)
        few = slots * self.heads * (self.nope + self.rope + self.value) <= _MOST_EXPANDED
        return few and more > _EXPAND_COST * self.rank * (self.nope + self.value)

    def _absorbed(
        self,
        query: torch.Tensor,
        entries: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        up = self.up.weight.view(self.heads, self.nope + self.value, self.rank)
        n = query.shape[1]
        asked = torch.cat((torch.matmul(query[..., : self.nope], up[:, : self.nope]), query[..., self.nope :]), -1)
        scores = (asked.flatten(0, 1) @ entries.T).view(self.heads, n, -1) * scale
        scores = scores if mask is None else scores + mask
        if sinks is not None:
            scores = torch.cat((scores, sinks.to(scores.dtype).view(-1, 1, 1).expand(-1, n, 1)), -1)
        share = torch.softmax(scores, -1, dtype=torch.float32)[..., : len(entries)].to(query.dtype)
        seen = (share.flatten(0, 1) @ entries[:, : self.rank]).view(self.heads, n, -1)
        return torch.matmul(seen, up[:, self.nope :].transpose(1, 2))


def mark_latents(model: nn.Module) -> None:
    """Keep the matrices of latents as they are, in a model that was just built."""
    for module in model.modules():
        up = getattr(module, "kv_b_proj", None)
        if hasattr(module, "expand_kv") and type(up) is nn.Linear and up.bias is None:
            up.__class__ = LatentLinear


@torch.inference_mode()
def settle_latents(inner: nn.Module, lib: Library | None = None) -> None:
    """Let attention modules with a latent hand it through, in a model that has its weights. One whose `expand_kv` does
    something else than what the absorbed way assumes is left as it is: its heads' keys and values are kept. lib: what
    is to attend in the order of positions."""
    for module in inner.modules():
        latent = _latent_of(module)
        if latent is not None and _is_plain(latent):
            if lib is not None:
                latent = replace(latent, in_order=LatentHeads.of(lib, latent.up.weight, latent.heads, latent.nope))
            setattr(module, "swarm_latent", latent)  # noqa: B010  (a plain attribute, not a submodule)
            setattr(module, "expand_kv", _hand_through)  # noqa: B010


def latent_of(module: nn.Module) -> Latent | None:
    """Of a module that hands its latent through."""
    found = getattr(module, "swarm_latent", None)
    return found if isinstance(found, Latent) else None


def _hand_through(latent: torch.Tensor, rotated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return latent, rotated


def _latent_of(module: Any) -> Latent | None:
    up = getattr(module, "kv_b_proj", None)
    if not hasattr(module, "expand_kv") or not isinstance(up, LatentLinear):
        return None
    sizes = [getattr(module, name, None) for name in ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")]
    if not all(isinstance(size, int) for size in sizes):
        return None
    rope, nope, value = (int(size) for size in sizes if size is not None)
    if not rope or not nope or up.out_features % (nope + value):
        return None
    heads = up.out_features // (nope + value)
    return Latent(heads, up.in_features, rope, nope, value, up, module.expand_kv)


def _is_plain(latent: Latent) -> bool:
    """Does expanding give each head its part of the product, and the rotated part behind its key?"""
    weight = latent.up.weight
    source = torch.Generator().manual_seed(1)
    row, rotated = (
        torch.randn(1, 1, 3, width, generator=source).to(weight.device, weight.dtype)
        for width in (latent.rank, latent.rope)
    )
    key, value = latent.expand(row, rotated)
    product = (row[0, 0] @ weight.T).view(3, latent.heads, -1).transpose(0, 1)
    expected = torch.cat((product[..., : latent.nope], rotated[0].expand(latent.heads, -1, -1)), -1)
    if key.shape[1:] != expected.shape or value.shape[1:] != product[..., latent.nope :].shape:
        return False
    tolerance = 1e-4 if weight.dtype == torch.float32 else 0.05
    pairs = ((key[0], expected), (value[0], product[..., latent.nope :]))
    return all(bool((a - b).norm() <= tolerance * b.norm()) for a, b in pairs)

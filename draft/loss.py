"""What a student's scores stand for, and how far they are from what the target said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

BEST = 8
"""First choices that are measured."""
_AT_ONCE = 1024


@dataclass(frozen=True)
class ShortHead:
    """Scores over some of the target's tokens.

    matrix  [v, d]; a parameter where it is trained
    tokens  int64 [v]: the ids that it scores, ascending
    places  int64 [vocabulary]: where a token stands among them, -1: nowhere
    """

    matrix: torch.Tensor
    tokens: torch.Tensor
    places: torch.Tensor

    @classmethod
    def of(cls, matrix: torch.Tensor, tokens: torch.Tensor, vocabulary: int) -> ShortHead:
        """Over these tokens of a vocabulary; on the matrix's device."""
        tokens = tokens.to(matrix.device)
        places = torch.full((vocabulary,), -1, dtype=torch.long, device=tokens.device)
        places[tokens] = torch.arange(len(tokens), device=tokens.device)
        return cls(matrix, tokens, places)

    def target(self, ids: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The target's distribution on these tokens: places int64 [r, k] and probabilities [r, k] of its best logits
        (see `draft.corpus.Batch`). Rows none of whose tokens is scored are 0."""
        at = self.places[ids.to(self.places.device)]
        known = at >= 0
        shares = torch.softmax(logits.to(at.device).masked_fill(~known, -1e9), -1) * known
        return at.clamp(min=0), shares

    @torch.no_grad()
    def best(self, rows: torch.Tensor, more: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
        """The target's ids of the first choices, int64 [r, BEST]. more: see `sparse_kl`."""
        found = []
        for at in range(0, len(rows), _AT_ONCE):
            part = slice(at, at + _AT_ONCE)
            scores = (rows[part].to(self.matrix.dtype) @ self.matrix.T).float()
            if more is not None:
                scores += more[0][part] @ more[1].T
            found.append(self.tokens[scores.topk(min(BEST, len(self.tokens)), dim=-1).indices])
        return torch.cat(found) if found else torch.empty(0, BEST, dtype=torch.long, device=rows.device)


class _SparseKL(torch.autograd.Function):
    """Sum over rows of weight * KL(target || student), the target given on few ids. Saves gradients, not logits."""

    @staticmethod
    def forward(
        ctx: Any, ids: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, *parts: torch.Tensor
    ) -> torch.Tensor:
        """ids int64 [r, k] into v, target float32 [r, k] with rows summing to 1 (or 0), weight [r].

        parts: rows [r, d] and matrix [v, d] in turns; scores are the sum of their products.
        """
        pairs = list(zip(parts[::2], parts[1::2], strict=True))
        logits = (pairs[0][0].to(pairs[0][1].dtype) @ pairs[0][1].T).float()
        for rows, matrix in pairs[1:]:
            logits += (rows.to(matrix.dtype) @ matrix.T).float()
        norm = logits.logsumexp(-1, keepdim=True)
        chosen = logits.gather(1, ids) - norm
        loss = (weight * (target * (target.clamp(min=1e-9).log() - chosen)).sum(1)).sum()
        gradient = logits.sub_(norm).exp_().mul_(target.sum(1, keepdim=True)).scatter_add_(1, ids, -target)
        gradient.mul_(weight[:, None])
        wanted, saved = ctx.needs_input_grad[3:], list[torch.Tensor]()
        for i, (rows, matrix) in enumerate(pairs):
            cut = gradient.to(matrix.dtype)
            saved += [cut @ matrix] if wanted[2 * i] else []
            saved += [cut.T @ rows.to(matrix.dtype)] if wanted[2 * i + 1] else []
        ctx.save_for_backward(*saved)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        given = [next(saved) * grads[0] if wanted else None for wanted in ctx.needs_input_grad[3:]]
        return None, None, None, *given


def sparse_kl(
    hidden: torch.Tensor,
    head: torch.Tensor,
    ids: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    more: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """KL(target || student) in nats, mean over rows. Scalar, differentiable in `hidden` and `head`.

    hidden [r, h], head [v, h], ids int64 [r, k] into v, target float32 [r, k]
    weight  [r], of each row instead of 1 / r
    more    rows [r, e] and a matrix [v, e] whose product is added to the scores
    """
    if weight is None:
        weight = torch.full((len(hidden),), 1.0 / max(1, len(hidden)), device=hidden.device)
    loss: torch.Tensor = _SparseKL.apply(ids, target, weight, hidden, head, *(more or ()))  # type: ignore[no-untyped-call]
    return loss

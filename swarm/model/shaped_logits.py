"""What a run does to logits beside the sampler's ratios: penalties by count, biases, a least length, a given beginning.

All of it is a function of the row's own path and of what stands in the order, so the tail, a replay and an audit come
to the same logits, and so does a drafter that wants to guess them. By numpy and
on the CPU: torch takes ten times as long for a few entries of a row. Penalties as OpenAI's API defines them: of a token
that the answer so far has c times, frequency * c + presence is subtracted where c > 0; the prompt does not count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from swarm.model.shaping import Shaping
from swarm.model.token_counts import Answered, TokenCounts

Tokens = torch.Tensor | None


def shifted(
    logits: torch.Tensor, answers: Sequence[Answered] | None, shaping: Shaping, tokens: Tokens = None
) -> torch.Tensor:
    """Logits [n, vocab] with penalties and biases; a copy.

    `answers`: tokens of the answer before each row, needed where they count. `tokens`: ids that the logits stand for,
    int64 [vocab], rising; None: 0 to vocab - 1.
    """
    changed = logits.to("cpu", copy=True)
    table = changed.numpy()
    if shaping.counts:
        if answers is None:
            raise ValueError("a penalty by count needs the answer before each row")
        for row, answer in zip(table, answers, strict=True):
            seen = answer if isinstance(answer, TokenCounts) else TokenCounts.of(np.asarray(answer, np.int64))
            take = shaping.presence + shaping.frequency * seen.counts.astype(np.float32)
            _add(row, seen.ids, -take.astype(np.float32), tokens)
    if shaping.bias:
        ids = np.array([token for token, _ in shaping.bias], np.int64)
        added = np.array([value for _, value in shaping.bias], np.float32)
        for row in table:
            _add(row, ids, added, tokens)
    return changed.to(logits.device)


def held_open(logits: torch.Tensor, positions: Sequence[int], shaping: Shaping, tokens: Tokens = None) -> torch.Tensor:
    """Logits [n, vocab] without the ends where the answer is too short for one; a row that has nothing else keeps them.

    `positions`: of the tokens being drawn; `tokens` as for `shifted`.
    """
    early = [row for row, position in enumerate(positions) if shaping.holds_open(int(position))]
    if not early or not shaping.ends:
        return logits
    changed = logits.to("cpu", copy=True)
    table = changed.numpy()
    ends = places(logits.shape[-1], np.array(shaping.ends, np.int64), tokens)[0]
    for row in early:
        kept = table[row, ends]
        table[row, ends] = -math.inf
        if table[row].max() == -math.inf:
            table[row, ends] = kept
    return changed.to(logits.device)


def places(size: int, ids: NDArray[np.int64], tokens: Tokens) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where a row has the logits of `ids`, and of which of them it has any."""
    if tokens is None:
        kept = np.flatnonzero(ids < size)
        return ids[kept], kept
    have = tokens.cpu().numpy()
    found = np.searchsorted(have, ids).clip(max=len(have) - 1)
    kept = np.flatnonzero(have[found] == ids)
    return found[kept], kept


def _add(row: NDArray[np.float32], ids: NDArray[np.int64], values: NDArray[np.float32], tokens: Tokens) -> None:
    found, kept = places(len(row), ids, tokens)
    row[found] += values[kept]

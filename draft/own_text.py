"""A user's recorded runs as text to learn from: which are held out, and what of each is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from draft.corpus import Sample
from draft.recorded_run import MOST_TOPS, RecordedRun
from draft.train import Score

CONTEXT, PIECE = 256, 384
"""Tokens of an answer that are computed at once at most, and of what stands before them."""
HELD_OUT_SHARE = 5
"""Every fifth prompt is measured on and never trained on."""
WIDTH = 1 + MOST_TOPS
_IMPOSSIBLE = -1e4


def roles(known: Mapping[str, bool], keys: Iterable[str]) -> dict[str, bool]:
    """Which prompts are held out, by `RecordedRun.prompt_key`, oldest first: what was `known` stays, a new one is held
    out where fewer than a fifth are. Prompts whose runs are gone are forgotten."""
    wanted = list(dict.fromkeys(keys))
    out = {key: known[key] for key in wanted if key in known}
    for key in wanted:
        if key not in out:
            out[key] = sum(out.values()) < (len(out) + 1 + HELD_OUT_SHARE // 2) // HELD_OUT_SHARE
    return out


def samples_of(run: RecordedRun) -> list[Sample]:
    """The answer in pieces, each behind the text before it. First of the ids is always the token that was said; the
    other likeliest come behind it where the tail told them, and else have no probability."""
    out = list[Sample]()
    tokens = torch.from_numpy(run.tokens)
    for first in range(run.start, len(tokens), PIECE):
        last = min(first + PIECE, len(tokens))
        ids, logits = _told(run, first, last)
        before = max(0, first - CONTEXT)
        out.append(Sample(tokens[before:last], first - before - 1, ids, logits, "own", "own", run.greedy))
    return out


def _told(run: RecordedRun, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
    """ids int32 and logits float16 [last - first, WIDTH] of the target at tokens [first, last)."""
    said = torch.from_numpy(run.tokens[first:last])[:, None]
    ids = said.expand(-1, WIDTH).clone()
    logits = torch.full(ids.shape, _IMPOSSIBLE)
    rows = slice(first - run.start, last - run.start)
    logits[:, 0] = torch.from_numpy(run.logprobs[rows])
    if run.tops:
        top = torch.from_numpy(run.top_ids[rows])
        ids[:, 1 : 1 + run.tops] = top
        others = torch.from_numpy(run.top_logprobs[rows]).masked_fill(top == said, _IMPOSSIBLE)
        logits[:, 1 : 1 + run.tops] = others
    return ids, logits.clamp(min=_IMPOSSIBLE).half()


def judge(before: Score, after: Score, general: tuple[Score, Score], gain: float, bound: float) -> str | None:
    """Why a drafter is not to be used that scores `after` on its user's held-out runs; None: it is.

    before: of the one in use. general: first choice of the one that it all began from, and of the new one. gain: of
    first choice, that it must have at least; bound: that it may lose at most of general text.
    """
    if after.first < before.first + gain:
        return (
            f"its first choice on held-out runs is {after.first:.3f}, where at least {before.first + gain:.3f} was "
            "expected"
        )
    if after.first8 < before.first8 - bound:
        return f"its first eight on held-out runs fell from {before.first8:.3f} to {after.first8:.3f}"
    was, now = general
    if now.first < was.first - bound:
        return (
            f"it forgets: on general text its first choice fell from {was.first:.3f} to {now.first:.3f}, more than "
            f"{bound:g}"
        )
    return None

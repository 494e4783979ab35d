"""A drafter without a model: what did the target say on branches that lost?

Every row in flight is answered, those of losing branches too, and such an answer is the target's own word on a text
that differs from the true one by a token or two. Texts often meet again a few tokens later, so the answer after the
same last tokens, at about the same position, is a good guess. It costs no model, no row and no waiting, and it helps
where that matters most: right after a token that nobody had proposed.

How much to believe it depends on what else is proposed there, so echoes come last and have the last word (`refiner`
of `draft.tree.TokenTree`). Lookahead decoding (Fu et al., 2024) makes such n-grams on purpose; here they are what
verification leaves behind.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence

from draft.base import Child

CONTEXT = 3
"""Tokens of a text that an answer is remembered under, and that are compared."""

_NEAR = 8
_KEPT = 32
_WIDTH = 3

# Log-odds that an echo is right, by equal last tokens and nearness: `_AFTER` when others proposed for the same node
# (then plus their own log-odds for the token, in part), `_ALONE` when nobody did yet. Fitted by logistic regression to
# 4,300 echoes of the default model's answers to 24 prompts; calibration learns the difference to the text at hand.
_AFTER = {(3, True): 2.05, (3, False): 1.15, (2, True): 1.6, (2, False): -0.05, (1, True): 0.35, (1, False): -0.35}
_ALONE = {(3, True): 0.2, (3, False): 0.1, (2, True): -0.4, (2, False): -2.2, (1, True): -2.2, (1, False): -2.4}
_OTHERS = 0.57
_LEAST_SHARE, _MOST_SHARE = 0.02, 0.98
_UNFORESEEN = -0.8
_REPEATED = 0.25
_SECOND_AFTER, _SECOND_ALONE = -0.7, -1.7


class Echoes:
    """The target's answers of one run, by the tokens before them. Answers of the true path are kept as well."""

    def __init__(self) -> None:
        self._heard: dict[int, deque[tuple[tuple[int, ...], int, int]]] = {}
        self._count: dict[int, int] = {}

    def heard(self, context: Sequence[int], position: int, answer: int) -> None:
        """After a text that ends with `context` (up to `CONTEXT` tokens, the last at `position`) `answer` follows."""
        kept = self._heard.setdefault(context[-1], deque(maxlen=_KEPT))
        kept.append((tuple(context[-CONTEXT:]), position, answer))
        self._count[context[-1]] = self._count.get(context[-1], 0) + 1

    def knows(self, token: int) -> bool:
        """Whether anything was heard after `token`."""
        return token in self._heard

    def heard_after(self, token: int) -> int:
        """How many answers after `token` were heard: as long as it is the same, so are the children of a text."""
        return self._count.get(token, 0)

    def children(self, context: Sequence[int], position: int, others: Mapping[int, float]) -> tuple[Child, ...]:
        """Guesses for the token after `context`, whose last token is at `position`; best first, at most three.

        others: shares that other drafters give to tokens there; empty when they were not asked.
        """
        matches: dict[int, tuple[float, tuple[int, bool], int]] = {}
        for known, at, answer in self._heard.get(context[-1], ()):
            kind = (_common(known, context), abs(at - position) <= _NEAR)
            worth, best, count = matches.get(answer, (-math.inf, kind, 0))
            matches[answer] = max((worth, best), (_AFTER[kind], kind)) + (count + 1,)
        ranked = sorted(matches.items(), key=lambda item: -item[1][0])[:_WIDTH]
        found = [
            Child(token, _belief(kind, count, rank > 0, others.get(token), bool(others)))
            for rank, (token, (_, kind, count)) in enumerate(ranked)
        ]
        return tuple(sorted(found, key=lambda child: -child.confidence))


def _belief(kind: tuple[int, bool], count: int, second: bool, share: float | None, asked: bool) -> float:
    """Chance that an echo is right: `share` of others for its token, None where they do not name it."""
    odds = _REPEATED * math.log(min(count, 6))
    if asked:
        bounded = min(_MOST_SHARE, max(_LEAST_SHARE, share or 0.0))
        odds += _AFTER[kind] + _OTHERS * math.log(bounded / (1.0 - bounded))
        odds += (_UNFORESEEN if share is None else 0.0) + (_SECOND_AFTER if second else 0.0)
    else:
        odds += _ALONE[kind] + (_SECOND_ALONE if second else 0.0)
    return 1.0 / (1.0 + math.exp(-odds))


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many last tokens are equal; at least the last one is."""
    count = 1
    for a, b in zip(reversed(left[:-1]), reversed(right[:-1]), strict=False):
        if a != b:
            break
        count += 1
    return min(count, CONTEXT)

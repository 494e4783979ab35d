"""What a run does to logits beside the sampler's ratios: penalties by count, biases, a least length, a given beginning.

All of it is a function of the row's own path and of what stands in the order, so the tail, a replay and an audit come
to the same logits, and so does a drafter that wants to guess them. By numpy and
on the CPU: torch takes ten times as long for a few entries of a row. Penalties as OpenAI's API defines them: of a token
that the answer so far has c times, frequency * c + presence is subtracted where c > 0; the prompt does not count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from swarm.base.bounds import AtMost, Between, by_name
from swarm.base.errors import UsageError

Tokens = torch.Tensor | None
MAX_BIASES = 1024
MAX_ENDS = 1024
MAX_GIVEN = 1 << 16
"""Each given token stands in the order with some six bytes, and an order has at most 2**20."""
MOST_PENALTY = 2.0
MOST_BIAS = 100.0
Whole: TypeAlias = Annotated[int, Between(0, 2**31 - 1)]
Penalty: TypeAlias = Annotated[float, Between(-MOST_PENALTY, MOST_PENALTY)]
Bias: TypeAlias = Annotated[float, Between(-MOST_BIAS, MOST_BIAS)]


@by_name(others="refused")
@dataclass(frozen=True)
class Shaping:
    """What is done to the logits of an answer's tokens.

    presence   subtracted from logits of tokens that the answer has already, -2 to 2
    frequency  subtracted so many times as the answer has the token, -2 to 2
    bias       (token, what is added to its logit, -100 to 100), tokens rising
    least      tokens that come before any of `ends` may, unless a constraint leaves nothing else
    ends       the tokens that end an answer, rising; set where `least` is
    given      the answer's first tokens, which are not drawn: the tail says how likely they were
    after      how many tokens come before the answer: the prompt's
    """

    presence: Penalty = 0.0
    frequency: Penalty = 0.0
    bias: Annotated[tuple[tuple[Whole, Bias], ...], AtMost(MAX_BIASES)] = ()
    least: Whole = 0
    ends: Annotated[tuple[Whole, ...], AtMost(MAX_ENDS)] = ()
    given: Annotated[tuple[Whole, ...], AtMost(MAX_GIVEN)] = ()
    after: Whole = 0

    def __post_init__(self) -> None:
        for name in ("presence", "frequency"):
            _within(f"{name} penalty", getattr(self, name), MOST_PENALTY)
        tokens = [token for token, _ in self.bias]
        _rising("biased tokens", tokens, MAX_BIASES)
        for _, added in self.bias:
            _within("bias", added, MOST_BIAS)
        _rising("end tokens", self.ends, MAX_ENDS)
        _whole("number of given tokens", len(self.given), MAX_GIVEN)
        for token in self.given:
            _whole("given token", token)
        _whole("least number of tokens", self.least)
        _whole("number of tokens before the answer", self.after)

    @property
    def counts(self) -> bool:
        """Whether it matters which tokens the answer has so far."""
        return self.presence != 0 or self.frequency != 0

    def given_at(self, position: int) -> int:
        """The token that the order gives at this position of the sequence; -1: it is drawn."""
        place = position - self.after
        return self.given[place] if 0 <= place < len(self.given) else -1

    def holds_open(self, position: int) -> bool:
        """Whether the token at this position may not end the answer yet."""
        return self.least > position - self.after


def shifted(
    logits: torch.Tensor, answers: Sequence[Sequence[int]] | None, shaping: Shaping, tokens: Tokens = None
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
            seen, count = np.unique(np.asarray([token for token in answer if token >= 0], np.int64), return_counts=True)
            take = shaping.presence + shaping.frequency * count.astype(np.float32)
            _add(row, seen, -take.astype(np.float32), tokens)
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
    places = _places(logits.shape[-1], np.array(shaping.ends, np.int64), tokens)[0]
    for row in early:
        kept = table[row, places]
        table[row, places] = -math.inf
        if table[row].max() == -math.inf:
            table[row, places] = kept
    return changed.to(logits.device)


def _add(row: NDArray[np.float32], ids: NDArray[np.int64], values: NDArray[np.float32], tokens: Tokens) -> None:
    places, kept = _places(len(row), ids, tokens)
    row[places] += values[kept]


def _places(size: int, ids: NDArray[np.int64], tokens: Tokens) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where a row has the logits of `ids`, and of which of them it has any."""
    if tokens is None:
        kept = np.flatnonzero(ids < size)
        return ids[kept], kept
    have = tokens.cpu().numpy()
    found = np.searchsorted(have, ids).clip(max=len(have) - 1)
    kept = np.flatnonzero(have[found] == ids)
    return found[kept], kept


def _within(name: str, value: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -most <= value <= most:
        raise UsageError(f"{name} must be from {-most:g} to {most:g}, found {value!r:.40}")


def _whole(name: str, value: int, most: int = 2**31 - 1) -> None:
    if type(value) is not int or not 0 <= value <= most:
        raise UsageError(f"{name} must be from 0 to {most}, found {value!r:.40}")


def _rising(name: str, ids: Sequence[int], most: int) -> None:
    if len(ids) > most:
        raise UsageError(f"expected at most {most} {name}, found {len(ids)}")
    for token in ids:
        _whole(name, token)
    if any(one >= other for one, other in zip(ids, ids[1:], strict=False)):
        raise UsageError(f"expected {name} in rising order, each once")

"""What a run asks to be done to logits beside the sampler's ratios: plain data. `shaped_logits` does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeAlias

from swarm.base.bounds import AtMost, Between, MayLack, by_name
from swarm.base.errors import UsageError
from swarm.model.thought import ThoughtLimit

if TYPE_CHECKING:
    from swarm.model.token_counts import Answered

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
    thought    what the answer may spend on thoughts; None: as much as it likes
    """

    presence: Penalty = 0.0
    frequency: Penalty = 0.0
    bias: Annotated[tuple[tuple[Whole, Bias], ...], AtMost(MAX_BIASES)] = ()
    least: Whole = 0
    ends: Annotated[tuple[Whole, ...], AtMost(MAX_ENDS)] = ()
    given: Annotated[tuple[Whole, ...], AtMost(MAX_GIVEN)] = ()
    after: Whole = 0
    thought: Annotated[ThoughtLimit | None, MayLack(unsaid=True)] = None

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
        """Whether logits depend on how often the answer has a token so far."""
        return self.presence != 0 or self.frequency != 0

    @property
    def shifts(self) -> bool:
        """Whether any logit is changed; what is dictated is not drawn, and needs no such thing."""
        return self.counts or bool(self.bias) or self.least > 0

    @property
    def looks_back(self) -> bool:
        """Whether it matters which tokens the answer has so far."""
        return self.counts or self.thought is not None

    def dictated(self, position: int, answer: Answered | None = None) -> int:
        """The token that the order gives at this position of the sequence; -1: it is drawn.

        `answer`: the answer's tokens before it, needed where the shaping looks back.
        """
        place = position - self.after
        if 0 <= place < len(self.given):
            return self.given[place]
        if self.thought is None:
            return -1
        if not isinstance(answer, Sequence):
            raise ValueError("a thought's limit needs the answer before each row, in order")
        return self.thought.due(answer)

    def holds_open(self, position: int) -> bool:
        """Whether the token at this position may not end the answer yet."""
        return self.least > position - self.after


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

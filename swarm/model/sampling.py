"""How the tokens of an answer are drawn, as it is asked for: plain data. `sampler` draws."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from swarm.base.bounds import Between, MayLack, by_name
from swarm.base.errors import UsageError
from swarm.base.option import Number, check, option
from swarm.model.constraint import Constraint
from swarm.model.shaping import Shaping

if TYPE_CHECKING:
    from swarm.model.token_counts import Answered

MAX_LOGPROBS = 20
SAMPLING = "sampling"
OWN = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""What a model's makers may recommend."""


@by_name(others="refused")
@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    temperature         0 is greedy: the largest logit, ties to the smaller id
    top_p               keep the fewest most probable tokens that reach this probability; 1 keeps all
    top_k               keep this many; 0 keeps all
    min_p               keep tokens at least this times as probable as the most probable; 0 keeps all
    repetition_penalty  logits of tokens in the context are divided (if positive) or multiplied by it; 1 is off
    seed                of the noise, 0 <= seed < 2**63
    logprobs            how many of the most probable tokens to report
    constraint          what the answer is held to: other tokens have no probability; None: nothing
    shaping             penalties by count, biases, a least length, a given beginning, limited thoughts; None: nothing
    """

    temperature: Annotated[float, Between(0, 100)] = option(
        0.0,
        "0 is greedy (default: with none of these options the model's own settings, where its makers wrote such)",
        "T",
        read=Number(float, 0, 100, "a temperature"),
        group=SAMPLING,
        everyday=True,
    )
    top_p: Annotated[float, Between(0, 1)] = option(
        1.0,
        "keep the likeliest tokens up to this mass, in (0, 1]",
        "P",
        read=Number(float, 0, 1, "a probability", above=True),
        group=SAMPLING,
        everyday=True,
    )
    top_k: Annotated[int, Between(0, 2**53 - 1)] = option(
        0,
        "keep the K likeliest tokens; 0 keeps all",
        "K",
        read=Number(int, 0, math.inf, "a number of tokens"),
        group=SAMPLING,
    )
    min_p: Annotated[float, Between(0, 1)] = option(
        0.0,
        "drop tokens less likely than this share of the likeliest",
        "P",
        read=Number(float, 0, 1, "a share"),
        group=SAMPLING,
    )
    repetition_penalty: Annotated[float, Between(0, 100)] = option(
        1.0,
        "above 1 makes seen tokens less likely",
        "R",
        read=Number(float, 0, 100, "a penalty", above=True),
        group=SAMPLING,
    )
    seed: Annotated[int, Between(0, 2**63 - 1)] = option(
        0,
        "same seed, same output, however it is drafted (default: %(default)s)",
        "S",
        read=Number(int, 0, 2**63 - 1, "a seed"),
        group=SAMPLING,
        everyday=True,
    )
    logprobs: Annotated[int, Between(0, MAX_LOGPROBS)] = 0
    constraint: Annotated[Constraint | None, MayLack(unsaid=True)] = None
    shaping: Annotated[Shaping | None, MayLack(unsaid=True)] = None

    def __post_init__(self) -> None:
        check(self)
        if not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise UsageError(f"logprobs must be 0 to {MAX_LOGPROBS}, found {self.logprobs}")
        if self.shaping is not None and self.constraint is not None:
            if self.shaping.given:
                raise UsageError("an answer that begins with given tokens cannot be held to a constraint")
            if self.shaping.thought is not None:
                raise UsageError("an answer that is held to a constraint has no thoughts to be limited")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def looks_back(self) -> bool:
        """Whether the shaping looks at the answer so far."""
        return self.shaping is not None and self.shaping.looks_back

    def dictated(self, position: int, answer: Answered | None = None) -> int:
        """The token that the order gives at this position of the sequence, as `Shaping.dictated`; -1: it is drawn."""
        return self.shaping.dictated(position, answer) if self.shaping is not None else -1


def recommended(sampling: Sampling, defaults: Mapping[str, float]) -> Sampling:
    """With what the model's makers recommend, by field; what they do not name stays. Raises UsageError where a sampler
    cannot have it."""
    found: dict[str, float] = {name: defaults[name] for name in OWN if name in defaults}
    if "top_k" in found:
        found["top_k"] = max(0, int(found["top_k"]))  # -1 and 0 both mean all
    return replace(sampling, **found)  # type: ignore[arg-type]


def say_settings(sampling: Sampling) -> str:
    """The settings that are not the neutral ones, for people: "temperature 0.7, top-p 0.8"."""
    neutral = Sampling()
    named = [(name.replace("_", "-"), getattr(sampling, name), getattr(neutral, name)) for name in OWN]
    return ", ".join(f"{name} {value:g}" for name, value, usual in named if value != usual)

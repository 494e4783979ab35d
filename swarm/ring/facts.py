"""What the runs of one requester share: the model, where routes and drafters come from, what earlier runs learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from draft.base import Drafter
from swarm.ring.control import Controller
from swarm.ring.opening import StagePlan
from swarm.ring.proposals import Calibrations, fresh_calibrations
from swarm.ring.run import RunRequest
from swarm.ring.text import Decode


@dataclass(frozen=True)
class TargetFacts:
    """What a requester must know of the model: manifest digest, context, end tokens, and how ids become text.

    prompt_limit  longest prompt that the model answers as the reference does; None: the context
    vocab_size    token ids are below it; None: not known
    """

    model: str
    context: int
    eos: frozenset[int]
    decode: Decode
    prompt_limit: int | None = None
    vocab_size: int | None = None


@dataclass(frozen=True)
class Drafting:
    """The drafters of one run. `inline` answers on the spot, `deferred` in the draft thread; both may be absent.

    leaves    most nodes that a step of `deferred` expands
    threads   compute threads of `deferred`, on a CPU
    """

    name: str
    inline: Drafter | None = None
    deferred: Drafter | None = None
    leaves: int = 8
    threads: int = 1


RoutePlanner = Callable[[frozenset[bytes], int], Sequence[StagePlan]]
"""The best route without the nodes named, leaving out that many layers at either end. Raises CoverageError."""


class DraftingSource(Protocol):
    """Where runs get their drafters."""

    def make(self, request: RunRequest) -> Drafting:
        """Drafters for one run."""

    def give_back(self, drafting: Drafting) -> None:
        """The run is over and its draft thread idle."""


@dataclass
class Memory:
    """What runs over one ring learn for the next: measured costs, and how far each drafter is to be trusted."""

    controllers: dict[tuple[object, ...], Controller] = field(default_factory=dict)
    calibrations: Calibrations = field(default_factory=fresh_calibrations)

"""What the runs of one requester share: the model, where drafters come from, what earlier runs learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from draft.base import Drafter
from swarm.model.compiling import Compiler
from swarm.model.text.decoder import TokenDecoder
from swarm.run.api import RunRequest
from swarm.run.controller import Controller
from swarm.run.proposals import Calibrations, fresh_calibrations


@dataclass(frozen=True)
class TargetFacts:
    """What a requester must know of the model: manifest digest, context, end tokens, and how ids become text.

    vocab_size    token ids are below it; None: not known
    special       names of the ids that `decoder` leaves out
    compiler      holds answers to constraints; None: runs with one are refused
    taps          layers whose rows the requester's drafter reads; hidden: values of such a row
    tail_drafts   the model has a head that a tail can draft with (MTP, EAGLE)
    """

    model: str
    context: int
    eos: frozenset[int]
    decoder: TokenDecoder
    vocab_size: int | None = None
    special: Mapping[int, str] = field(default_factory=dict)
    compiler: Compiler | None = None
    tail_drafts: bool = False
    taps: tuple[int, ...] = ()
    hidden: int = 0


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


class DraftingSource(Protocol):
    """Where runs get their drafters."""

    def make(self, request: RunRequest) -> Drafting:
        """Drafters for one run."""

    def give_back(self, drafting: Drafting) -> None:
        """The run is over and its draft thread idle."""


MAX_CONTROLLERS = 64
"""Rings whose costs one requester remembers: nodes come and go, and each new route is a ring of its own."""


@dataclass
class LearnedCosts:
    """What runs over one ring learn for the next: measured costs, and how far each drafter is to be trusted."""

    controllers: dict[tuple[object, ...], Controller] = field(default_factory=dict)
    calibrations: Calibrations = field(default_factory=fresh_calibrations)

    def controller(self, key: tuple[object, ...], make: Callable[[], Controller]) -> Controller:
        """What was learned of the ring `key`, or `make()`; of MAX_CONTROLLERS rings, the least recently used goes."""
        found = self.controllers.pop(key, None) or make()
        self.controllers[key] = found
        while len(self.controllers) > MAX_CONTROLLERS:
            del self.controllers[next(iter(self.controllers))]
        return found

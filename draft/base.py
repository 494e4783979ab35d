"""What every drafter is: it is told how the token tree changed and proposes children for some of its nodes.

The requester owns the tree; a drafter only follows it. A node is one token at one position under one parent and
has an id that is never used twice in a run. Node ROOT (0) is the last token of the prompt. Everything that a
drafter must know travels in one `DraftStep`, so that a drafter may live in a thread of its own: steps are made
and answered strictly one after another, and nothing else is called in between.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from swarm.base.errors import ModelError

if TYPE_CHECKING:
    from swarm.model.held import Allowed
    from swarm.model.sampler import Sampling

ROOT = 0


class DraftNode(NamedTuple):
    """One token of the tree. Its children are proposals for position + 1.

    id        unique in the run; ROOT is the last prompt token
    parent    id of the node before it (a committed node or another drafted one)
    token     token id
    position  position in the sequence, prompt included
    """

    id: int
    parent: int
    token: int
    position: int


class Child(NamedTuple):
    """A proposed token and the drafter's own belief in it, in [0, 1]. Beliefs are calibrated outside the drafter."""

    token: int
    confidence: float


def children(tokens: Sequence[int], beliefs: Sequence[float]) -> tuple[Child, ...]:
    """Those that may follow at all, in the order given. Raises ModelError for NaN: what computed it is damaged."""
    if any(math.isnan(belief) for belief in beliefs):
        raise ModelError("expected numbers for what a drafter proposes, found NaN: its weights are damaged")
    return tuple(Child(token, belief) for token, belief in zip(tokens, beliefs, strict=True) if belief > 0)


@dataclass(frozen=True)
class DraftStep:
    """What changed since the step before, and what to expand now. Apply in the order of the fields.

    committed  nodes that became certain, by position: the next positions of the true sequence. One that was drafted
               carries the id under which it was known, so its key and value can be kept; one that was corrected has
               a new id. The last committed node is the parent of whatever lives on.
    dropped    ids of drafted nodes that will not be mentioned again (none of them was committed)
    nodes      drafted nodes mentioned for the first time, parents before children. A node may be a child that this
               drafter proposed (same parent and token: its state can be kept) or somebody else's proposal.
    expand     ids to propose children for, most wanted first: committed last node or any node told of. Every
               ancestor of them was committed or told of, in this step or before.
    depth      levels wanted below each: 1 is the children of the node; d > 1 goes on from the first child, d - 1
               times. A drafter may return fewer levels.
    width      most children wanted at each level, best first
    allowed    by id of `expand`, what may follow it; absent: any token. A drafter need not look at it: what may not
               follow is left out of its proposals anyhow
    """

    committed: tuple[DraftNode, ...] = ()
    dropped: tuple[int, ...] = ()
    nodes: tuple[DraftNode, ...] = ()
    expand: tuple[int, ...] = ()
    depth: int = 1
    width: int = 8
    allowed: Mapping[int, Allowed] = field(default_factory=dict)


@dataclass(frozen=True)
class Expansion:
    """Proposals below one node.

    levels[0] are children of node `id`, best first; levels[j] are children of the first child of levels[j - 1].
    An empty `levels` means: nothing to propose here, do not ask again.
    """

    id: int
    levels: tuple[tuple[Child, ...], ...]


class Drafter(Protocol):
    """Proposes tokens for one run.

    With sampling at temperature > 0 the tail draws the token of position p with Gumbel noise keyed by (seed, p). A
    drafter that adds the same noise to its own scores (`swarm.model.sampler.gumbel`) ranks as the tail will, and
    is right more often; its confidence then says how likely the perturbed first choice is to be the tail's.
    """

    @property
    def name(self) -> str:
        """Short name for output: "lm", "suffix", ..."""
        ...

    def begin(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """Forget everything and start a run after `prompt` (at least one token). May be slow (prefill)."""
        ...

    def step(self, step: DraftStep) -> list[Expansion]:
        """Apply the changes, then propose. One entry for each id of `expand` that was served, in any order.

        An id left out was not served (no room for its state, for example) and may be asked for again later.
        """
        ...

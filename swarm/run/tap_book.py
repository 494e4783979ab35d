"""Taps at the requester: which rows each frame asks for, and what comes of them, into the store that its drafter reads.

Stages are not trusted with more than a run's speed: what they send is held against what was asked of whom, and
anything else is dropped, row for row. Pure but for the store; no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from draft.taps import ReadsTaps, TapStore, at_position
from swarm.base.errors import PeerError
from swarm.ring.opening import OpenRun
from swarm.ring.taps import Taps
from swarm.run.planned_frame import PlannedFrame

DRAFTED_ROWS = 12
"""Drafted rows of a frame whose taps are asked for, the likeliest: a tree's others are seldom right, and each costs as
many bytes as a row does on a hop."""
MOST_BEHIND = 6
"""Frames that were answered while their taps have not all come: beyond, the line home is too narrow for them, and only
certain rows are asked for until it has caught up."""
MOST_FRAMES = 160
"""Frames remembered: what the core has in flight, and some that stages let drop."""


def tap_wire(wire: str) -> str:
    """The format of taps in a run whose rows travel as `wire`, which was chosen by measured bandwidth: never finer than
    what such drafters were trained on."""
    return "bfloat16" if wire == "float32" else wire


@dataclass
class _Asked:
    """A frame's rows that were asked for, by name; `rows` [n, layers x hidden_size] as far as they have come."""

    first: int
    names: tuple[int, ...]
    rows: torch.Tensor
    missing: set[int]
    answered: bool = False


@dataclass
class TapBook:
    """The taps of one run. `hidden`: values of a row."""

    reader: ReadsTaps
    hidden: int
    prompt: int
    dtype: torch.dtype = torch.float32
    _asked: dict[int, _Asked] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.store: TapStore = self.reader.store
        self.layers = tuple(self.reader.layers)
        self.store.clear()

    def ask(self, planned: PlannedFrame) -> tuple[int, int]:
        """Of which rows of a frame taps are wanted: the first, and how many. Remembered: they are then awaited."""
        count = len(planned.rows)
        certain = count - len(planned.nodes)
        first = int(np.searchsorted(planned.rows.position[:certain], max(0, self.prompt - self.reader.reach)))
        behind = sum(asked.answered for asked in self._asked.values())
        drafted = min(len(planned.nodes), DRAFTED_ROWS if behind <= MOST_BEHIND else 0)
        names = [at_position(int(p)) for p in planned.rows.position[first:certain]] + list(planned.nodes[:drafted])
        if not names:
            return 0, 0
        rows = torch.zeros(len(names), len(self.layers), self.hidden, dtype=self.dtype)
        self._asked[planned.seq] = _Asked(first, tuple(names), rows, set(self.layers))
        self.store.expect(names)
        while len(self._asked) > MOST_FRAMES:
            self._drop(next(iter(self._asked)))
        return first, len(names)

    def answered(self, seq: int) -> None:
        """Frame `seq` was answered: taps of much older ones will not come any more."""
        for old, asked in list(self._asked.items()):
            asked.answered |= old <= seq
            if old < seq - 2 * MOST_BEHIND:
                self._drop(old)

    def take_untrusted(self, opening: OpenRun, node: bytes, taps: Taps) -> bool:
        """Taps from a stage; whether rows are whole now. Raises PeerError for what was not asked of this stage, and for
        other shapes than were asked for."""
        held = {tap for plan in opening.stages if plan.node == node for tap in range(plan.first + 1, plan.last + 1)}
        if not held.issuperset(taps.layers) or not set(self.layers).issuperset(taps.layers):
            raise PeerError(f"expected taps of layers that this stage computes, found {taps.layers}")
        asked = self._asked.get(taps.seq)
        if asked is None or taps.epoch != opening.epoch:
            return False
        if taps.first != asked.first or tuple(taps.hidden.shape[1:]) != (len(asked.names), self.hidden):
            raise PeerError(
                f"expected taps of {len(asked.names)} rows of {self.hidden} values from row {asked.first}, found "
                f"{list(taps.hidden.shape[1:])} from row {taps.first}"
            )
        for place, tap in enumerate(taps.layers):
            asked.rows[:, self.layers.index(tap)] = taps.hidden[place]
            asked.missing.discard(tap)
        if asked.missing:
            return False
        del self._asked[taps.seq]
        for name, row in zip(asked.names, asked.rows.flatten(1), strict=True):
            self.store.put(name, row)
        return True

    def restart(self) -> None:
        """The ring was formed anew: what was in flight is lost, and asked for again with what is sent again."""
        for seq in list(self._asked):
            self._drop(seq)

    def _drop(self, seq: int) -> None:
        self.store.give_up(self._asked.pop(seq).names)


def whose_taps(opening: OpenRun) -> Sequence[int]:
    """Numbers of the stages that hold layers whose rows the run reads."""
    return [
        number
        for number, plan in enumerate(opening.stages)
        if any(plan.first < tap <= plan.last for tap in opening.taps)
    ]

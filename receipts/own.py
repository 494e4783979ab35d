"""What a requester keeps of the layers that it computes itself: counts, and the tokens that it drew behind them."""

from __future__ import annotations

from dataclasses import dataclass

from receipts.closing import Own
from receipts.edge import EdgeLog
from receipts.opening import Software
from receipts.stage import Opening
from receipts.tail import TailLog
from receipts.work import Work


@dataclass(frozen=True)
class OwnLayers:
    """Layers [0, count) and the last `count` at the requester; digests of their weights by the manifest."""

    count: int
    head_weights: str
    tail_weights: str
    software: Software


class OwnLog:
    """One epoch of one run: `computed` for every frame that went out, `tail` for what was drawn when it came back."""

    def __init__(self, opening: Opening, outbound: EdgeLog, inbound: EdgeLog) -> None:
        self.opening, self._outbound, self._inbound = opening, outbound, inbound
        self.tail = TailLog()
        self._work = Work()

    def computed(self, rows: int, first: int, last: int, compute_us: int) -> None:
        """One frame of `rows` rows at positions [first, last); `compute_us` microseconds, spent at the first end."""
        self._work.add(rows, first, last, compute_us)

    def drew(self, compute_us: int) -> None:
        """More time, spent at the other end."""
        self._work.compute_us += compute_us

    def statement(self, layers: OwnLayers, interrupted: bool) -> Own:
        """What the requester signs of this epoch. Waits for the hashing thread."""
        return Own(
            self.opening.epoch,
            self.opening.plan_digest,
            layers.count,
            self.opening.order.model.layers - layers.count,
            layers.head_weights,
            layers.tail_weights,
            layers.software,
            self._outbound.root(),
            self._inbound.root(),
            self._work.frames,
            self._work.rows,
            self._work.span,
            self._work.compute_us,
            self.tail.answers,
            interrupted,
        )

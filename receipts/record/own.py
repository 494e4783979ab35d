"""What a requester keeps of the layers that it computes itself: counts, and the tokens that it drew behind them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from receipts.format.closing import Own
from receipts.format.opening import Software
from receipts.record.edge import EdgeLog
from receipts.record.epoch import Opening
from receipts.record.tail import Drawn, TailLog
from receipts.record.work import Work


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


class OwnEpochs:
    """All epochs of one run. `layers`: None when the requester computes none; then there is nothing to log."""

    def __init__(self, layers: OwnLayers | None) -> None:
        self._layers = layers
        self._logs: list[OwnLog] = []
        self._signed = 0

    def begin(self, opening: Opening, outbound: EdgeLog, inbound: EdgeLog) -> OwnLog | None:
        """The log of a new epoch."""
        if self._layers is None:
            return None
        self._logs.append(OwnLog(opening, outbound, inbound))
        return self._logs[-1]

    def statements(self, until_last: bool) -> Iterator[Own]:
        """What is to be signed of the epochs that were not yet; `until_last`: the last one never closed."""
        for number, log in enumerate(self._logs[self._signed :], self._signed):
            assert self._layers is not None
            yield log.statement(self._layers, interrupted=until_last or number < len(self._logs) - 1)
        self._signed = len(self._logs)

    def drawn(self, until: int) -> list[Drawn]:
        """The tokens that each epoch drew up to where the next begins, or before position `until`."""
        starts = [log.opening.first_position for log in self._logs]
        stops = [*starts[1:], until]
        return [log.tail.drawn(start, stop) for log, start, stop in zip(self._logs, starts, stops, strict=False)]

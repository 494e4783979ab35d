"""The parts of a run that an audit has opened, and which of their frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from receipts.check.checks import short
from receipts.check.run import Epoch, ReceiptRun
from receipts.format.closing import End
from receipts.format.opening import PlannedStage
from receipts.record.row_opening import MAX_LEAVES


class Chooser(Protocol):
    """Chance that the nodes cannot foresee: `secrets.SystemRandom()`."""

    def randrange(self, n: int, /) -> int:
        """An integer in [0, n)."""


@dataclass(frozen=True)
class Part:
    """What one stage did in one epoch, by its own END."""

    epoch: Epoch
    index: int
    end: End

    @property
    def stage(self) -> PlannedStage:
        return self.epoch.plan[self.index]


def parts_of(run: ReceiptRun) -> list[Part]:
    """Every part that a node accounts for, those of the last epoch first."""
    epochs = sorted(run.epochs, key=lambda epoch: -epoch.number)
    return [
        Part(epoch, index, epoch.ends[stage.node])
        for epoch in epochs
        for index, stage in enumerate(epoch.plan)
        if stage.node in epoch.ends
    ]


def signed_alike(part: Part) -> bool:
    """Whether one root stands for what a part sent and what the next one took in, so that each frame is the same.

    Of an edge that was closed both ends signed that. Of an interrupted epoch each stage signs its own two roots: they
    are one where all that was sent came in. True, too, where the next one signed none: there is nothing to compare.
    """
    epoch, end = part.epoch, part.end
    following = epoch.plan[part.index + 1 : part.index + 2]
    taken = epoch.ends.get(following[0].node) if following else None
    return epoch.closed or taken is None or (taken.inbound, taken.came) == (end.outbound, end.sent)


def choose_rows(run: ReceiptRun, count: int, chooser: Chooser) -> list[tuple[Part, tuple[int, ...]]]:
    """`count` outbound leaves over all parts by how much each sent, at least one of each, in rising order.

    None of a part that sent nothing. Not by parts alone: whoever interrupts a run makes as many as it likes, and long
    ones would be left with a frame each.

    A tail opens all: an answer is a hundred bytes, says less of the computation than a row does, and every kept token
    has to be among them. So does a part whose frames another one signed otherwise (`signed_alike`): a sample would
    leave the others to chance. Every part opens its last frame besides, so that all that came in to it is shown: then
    no frame of it saw another text, and the tree holds as many frames as were signed.
    """
    parts = parts_of(run)
    shares = _shares([part.end.sent for part in parts], count)
    chosen = []
    for part, wanted in zip(parts, shares, strict=True):
        frames = part.end.sent
        share = min(max(1, wanted), frames, MAX_LEAVES - 1)
        leaves: set[int] = set()
        if part.stage.last == run.order.model.layers or not signed_alike(part):
            leaves = set(range(1, frames + 1))
        while len(leaves) < share:
            leaves.add(1 + chooser.randrange(frames))
        if frames:
            leaves.add(frames)
        chosen.append((part, tuple(sorted(leaves))))
    return chosen


def _shares(frames: Sequence[int], count: int) -> list[int]:
    """`count` in the proportion of `frames`; what is left goes to the largest remainders, the first of equals."""
    total = sum(frames) or 1
    shares = [count * sent // total for sent in frames]
    behind = sorted(range(len(frames)), key=lambda index: -(count * frames[index] % total))
    for index in behind[: count - sum(shares) if sum(frames) else 0]:
        shares[index] += 1
    return shares


def part_name(run: ReceiptRun, part: Part) -> str:
    return short(part.stage.node) + ("" if part.epoch is run.last else f" in epoch {part.epoch.number}")

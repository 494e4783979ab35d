"""A third node's word on opened rows: what `swarm verify --via NODE` asks for, and how it is told.

The node is a witness where it had no part in the run. That its rows are those of the stage says that two nodes agree,
not that either is right: they may be one owner's. That they differ convicts nobody. So nothing here changes what a
verdict rests on.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from receipts.check.verdict import Claim, Standing
from receipts.format.opening import PlannedStage
from swarm.base.errors import SwarmError
from swarm.model.rows import Layout
from swarm.net.channel.message import Message
from swarm.ring.frame import Frame
from swarm.ring.recomputing import RecomputeRequest, encode_request, rows_untrusted

SUBJECT = "second"


class Calls(Protocol):
    """Nodes that answer calls."""

    def call(self, node: str, message: Message) -> Message:
        """Raises SwarmError."""
        ...


@dataclass(frozen=True)
class Via:
    """The node (hex) that is asked, and how it is reached."""

    node: str
    calls: Calls

    def rows(
        self,
        model: str,
        fingerprint: str,
        stage: PlannedStage,
        layout: Layout,
        frames: Sequence[Frame],
        wanted: int,
        width: int,
    ) -> torch.Tensor:
        """Float32 [n, width] of frame `wanted`. Raises SwarmError, saying why there are none."""
        about = RecomputeRequest(
            model, fingerprint, stage.first, stage.last, layout.scratch, layout.context, (1,), (1,), 0
        )
        return rows_untrusted(self.calls.call(self.node, encode_request(about, frames, wanted)), width)


class Seconds:
    """What one node said of the stages of a run. `parties`: keys (hex) of those who took part: no witnesses."""

    def __init__(self, via: Via, parties: Collection[str] = ()) -> None:
        self.via = via
        self._standing, self._role = Standing.WITNESSED, "a witness,"
        if via.node in parties:
            self._standing, self._role = Standing.CLAIMED, "which took part in this run and is no witness,"
        self._same: dict[str, list[bool]] = {}
        self._refused: dict[str, str] = {}
        self._layers: dict[str, tuple[int, int]] = {}

    def note(self, stage: PlannedStage, same: Sequence[bool]) -> None:
        """By row of a frame, whether it came out as the stage sent it."""
        self._layers[stage.node] = stage.first, stage.last
        self._same.setdefault(stage.node, []).extend(same)

    def refuse(self, stage: PlannedStage, why: SwarmError | str) -> None:
        """Why the node said nothing of a frame; it is not asked about this stage again."""
        self._layers[stage.node] = stage.first, stage.last
        self._refused.setdefault(stage.node, str(why))

    def refused(self, stage: PlannedStage) -> bool:
        return stage.node in self._refused

    def claims(self) -> tuple[Claim, ...]:
        """For the report: witnessed where the node said something (claimed by a party), not checked where none."""
        found = []
        for stage, (first, last) in self._layers.items():
            same, layers = self._same.get(stage, []), f"layers {first}-{last - 1}"
            name, figures = self.via.node[:16], {"rows": float(len(same)), "equal": float(sum(same))}
            if same:
                equal = "all equal to the last bit" if all(same) else f"{len(same) - sum(same)} DIFFER"
                text = f"node {name}, {self._role} recomputed {len(same)} opened rows of {layers}: {equal}"
                found.append(Claim(self._standing, SUBJECT, text, stage, figures))
            if (why := self._refused.get(stage)) is not None:
                text = f"node {name} did not recompute {layers}: {why}"
                found.append(Claim(Standing.NOT_CHECKED, SUBJECT, text, stage))
        return tuple(found)

"""Routes of rings that are made for a test: nobody measures, and everybody is as fast as the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from swarm.base.errors import CoverageError
from swarm.model.block import load_block
from swarm.model.files.checkpoint import Checkpoint
from swarm.model.text.decoder import TokenDecoder
from swarm.planner.costs import Costs
from swarm.ring.opening import StagePlan
from swarm.run.api import StageInfo
from swarm.run.private_layers import PrivateBlocks
from swarm.run.routing import Router


def joined(plans: Sequence[StagePlan], excluded: frozenset[bytes], first: int, last: int) -> list[StagePlan]:
    """The first stages that fit, one after the other, over layers [first, last)."""
    route: list[StagePlan] = []
    while (at := route[-1].last if route else first) < last:
        fit = [plan for plan in plans if plan.first <= at < plan.last and plan.node not in excluded]
        if not fit:
            raise CoverageError(f"layer {at} is held by nobody")
        route.append(replace(fit[0], first=at, last=min(fit[0].last, last)))
    return route


@dataclass
class FixedRouter(Router):
    """Over whoever `plans` names at the time. wire: of hidden rows; unfit: nodes that would refuse a constraint."""

    plans: Callable[[], Sequence[StagePlan]]
    n_layers: int
    wire_format: str
    unfit: frozenset[bytes] = field(default_factory=frozenset)

    def plan(self, excluded: frozenset[bytes], private: int = 0) -> list[StagePlan]:
        return joined(self.plans(), excluded, private, self.n_layers - private)

    def costs(self, stages: Sequence[StagePlan], wire: str) -> Costs:
        return Costs(pass_ms=20.0, row_ms=0.1, frame_ms=2.0, frame_row_ms=0.1, draft_ms=1.0)

    def wire(self, request: Any, stages: Sequence[StagePlan]) -> str:
        return self.wire_format

    def cannot_hold(self, constraint: Any) -> frozenset[bytes]:
        return self.unfit

    def describe(self, plan: StagePlan, said: Mapping[str, object], compute_ms: float) -> StageInfo:
        return StageInfo(plan.node.hex(), str(said.get("device")), (plan.first, plan.last), compute_ms)


@dataclass
class PrivateFrom:
    """A requester's own ends, loaded anew each time."""

    checkpoint: Checkpoint
    dtype: torch.dtype = torch.float32

    async def get(self, count: int) -> PrivateBlocks:
        n = self.checkpoint.manifest.n_layers
        head, tail = (
            load_block(self.checkpoint, a, b, torch.device("cpu"), self.dtype) for a, b in ((0, count), (n - count, n))
        )
        return PrivateBlocks(head, tail)


@dataclass
class Decodes(TokenDecoder):
    """A tokenizer as far as a run needs one."""

    text: Callable[[Sequence[int]], str]

    def decode(self, ids: Sequence[int]) -> str:
        return self.text(ids)

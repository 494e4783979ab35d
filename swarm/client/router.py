"""Who takes part in a requester's runs: routes and witnesses, chosen and priced from what the mesh knows now."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from receipts.check.checks import MIXED, MIXED_STORED
from swarm.base.address import Address
from swarm.base.errors import CoverageError
from swarm.base.nodeid import NodeId, id_text, parse_id_untrusted
from swarm.client.route_policy import RouteRules
from swarm.discovery.connect import MemberConnector
from swarm.discovery.model_shape import model_shape
from swarm.discovery.planner_view import members_of, rtts_of
from swarm.mesh.gossip import Gossip
from swarm.model.constraint import Constraint
from swarm.model.files.manifest import Manifest
from swarm.model.weights_as import PACKED
from swarm.net.channel.message import Message
from swarm.net.switchboard import Switchboard
from swarm.planner.api import Ask, Member, Route, plan_route, usual_speed
from swarm.planner.costs import Costs, StageCost, expected_costs
from swarm.planner.coverage_need import free_bytes
from swarm.planner.wire_choice import choose_wire, edge_rates
from swarm.ring.connect import DIAL_TIMEOUT_S
from swarm.ring.opening import StagePlan
from swarm.ring.witness_service import WITNESS, WITNESS_ANSWER, WITNESS_REQUEST, WitnessRequest
from swarm.run.api import RunRequest, StageInfo

if TYPE_CHECKING:
    from swarm.model.own_kernels import KernelsHere

NEWS_WAIT_S = 2.0
PLANNED_ROWS = 8


def joint_dtype(found: Set[str]) -> str:
    """One word for what several stages compute in: the one they share, or which mixture it is."""
    if len(found) == 1:
        return next(iter(found))
    return MIXED_STORED if found & {PACKED, MIXED_STORED} else MIXED


def joint_wire(found: Set[str]) -> str:
    """The format that loses nothing of what the stages compute in: theirs where they share one. Rows of stages that
    differ may be as large as bfloat16's, and are as fine as no other's."""
    return next(iter(found)) if found in ({"float32"}, {"float16"}) else "bfloat16"


class Routes:
    """What an engine asks about routes and receipts (`swarm.run.routing.Router`, `swarm.run.receipt.Parties`), for one
    model and one requester's rules.

    `draft_ms`: milliseconds of a draft step on this machine.
    """

    def __init__(
        self, board: Switchboard, gossip: Gossip, manifest: Manifest, rules: RouteRules, draft_ms: float
    ) -> None:
        self._board, self._gossip, self._manifest = board, gossip, manifest
        self._rules, self._draft_ms = rules, draft_ms
        self._shape = model_shape(manifest, torch.bfloat16)
        self._spread = random.randrange(1 << 30)

    @cached_property
    def _own_kernels(self) -> KernelsHere:
        from swarm.model.own_kernels import (
            KernelsHere,  # computes with a model's own classes: for rules that ask for it
        )

        return KernelsHere(self._manifest)

    def plan(self, excluded: frozenset[bytes], private: int = 0) -> list[StagePlan]:
        """The best route without the nodes named, leaving out that many layers at either end. Raises CoverageError."""
        members = self._members()
        lost = self._kernels_of(excluded)
        ask = Ask(
            id_text(self._board.id),
            rows=PLANNED_ROWS,
            context=min(2048, self._manifest.context),
            exclude=frozenset(id_text(node) for node in excluded) | self._rules.excluded(members),
            min_owners=self._rules.owners,
            spread=self._spread,
            first=private,
            last=self._manifest.n_layers - private,
            kernels=lost,
        )
        route = self._cheapest(members, ask, lost)
        nodes = [parse_id_untrusted(stage.node) for stage in route.stages]
        return [
            StagePlan(node, self._addresses(node), stage.first, stage.last)
            for node, stage in zip(nodes, route.stages, strict=True)
        ]

    def memory_for(self, holes: Sequence[tuple[int, int]]) -> int:
        """Bytes of free memory that whoever takes these layers should have."""
        return round(free_bytes(self._shape, holes))

    def _cheapest(self, members: Sequence[Member], ask: Ask, lost: frozenset[str]) -> Route:
        """The best route, of nodes of one fingerprint where the rules ask for it. Raises CoverageError."""
        rtts = rtts_of(self._gossip, self._board.id)
        if not self._rules.kernels:
            return plan_route(self._shape, members, rtts, ask)
        routes, why = [], ""
        for digest in self._rules.fingerprints(members, lambda: self._own_kernels.all(), lost):
            others = frozenset(member.node for member in members if member.kernels != digest)
            try:
                routes.append(plan_route(self._shape, members, rtts, replace(ask, exclude=ask.exclude | others)))
            except CoverageError as error:
                why = f"{why}; fingerprint {digest[:8]}: {error}" if why else f"fingerprint {digest[:8]}: {error}"
        if not routes:
            raise CoverageError(f"no route of nodes that compute alike (--require-fingerprint): {why}")
        return min(routes, key=lambda route: route.pass_ms)

    def _kernels_of(self, nodes: Iterable[NodeId]) -> frozenset[str]:
        """Fingerprints of nodes that a run lost, as far as known: others of them take over with the same bits."""
        views = [self._gossip.member(node) for node in nodes]
        return frozenset(
            view.record.fingerprint.hex() for view in views if view is not None and view.record.fingerprint
        )

    def measure_own(self) -> None:
        """Measure this machine's fingerprints where the rules ask for one of them; takes seconds, once."""
        if self._rules.kernels == "own":
            self._own_kernels.all()

    def unlike(self, signed: Sequence[tuple[NodeId, str | None]]) -> tuple[NodeId, str] | None:
        """Of nodes and the kernel fingerprints that they signed when they took their parts, the first that the rules do
        not let pass, and why; None for nobody."""
        first = next((digest for _, digest in signed if digest is not None), None)
        for node, digest in signed if self._rules.kernels else ():
            view = self._gossip.member(node)
            told = view.record.fingerprint.hex() if view is not None else ""
            if digest is not None and digest == (told or digest) == first and self._fits(digest):
                continue
            found = f"{id_text(node)[:8]} signed {(digest or 'none')[:8]}, its record says {(told or 'none')[:8]}"
            return node, f"expected one kernel fingerprint as --require-fingerprint asks: {found}"
        return None

    def _fits(self, digest: str) -> bool:
        rule = self._rules.kernels
        return rule == "same" or (digest in self._own_kernels.all() if rule == "own" else digest.startswith(rule))

    async def await_news(self) -> None:
        """News of the members comes a moment after the hello: until then nobody is told that layers are missing."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(NEWS_WAIT_S):
                while True:
                    try:
                        self.plan(frozenset())
                        return
                    except CoverageError:
                        await self._gossip.wait_change()

    def costs(self, stages: Sequence[StagePlan], wire: str | None = None) -> Costs:
        """First guesses from what the nodes measured of themselves and from round trips known here.

        `wire`: the format of hidden rows; None leaves their bytes out.
        """
        by_name = {member.node: member for member in self._members()}
        usual = usual_speed(by_name.values())
        members = [by_name.get(id_text(stage.node)) for stage in stages]
        names = [id_text(self._board.id), *(id_text(stage.node) for stage in stages)]
        rtt = rtts_of(self._gossip, self._board.id)(names)
        ring = [*range(len(names)), 0]
        return expected_costs(
            [
                StageCost((member.speed if member is not None else None) or usual, stage.last - stage.first)
                for member, stage in zip(members, stages, strict=True)
            ],
            way_ms=sum(float(rtt[a, b]) / 2.0 for a, b in zip(ring, ring[1:], strict=False)),
            draft_ms=self._draft_ms,
            wire=wire,
            hidden=self._manifest.row_width,
            rates_mbps=edge_rates(members),
        )

    def wire(self, request: RunRequest, stages: Sequence[StagePlan]) -> str:
        """The format of hidden rows between stages: as asked; "model": what the stages compute in, never coarser."""
        if request.wire not in ("model", "auto"):
            return request.wire
        views = [self._gossip.member(stage.node) for stage in stages]
        own = joint_wire({view.record.dtype if view is not None else "" for view in views})
        if request.wire == "model":
            return own
        members = {member.node: member for member in self._members()}
        ring = [members.get(id_text(stage.node)) for stage in stages]
        if request.private:
            ring = [None, *ring, None]  # hidden rows cross this machine's edges too, whose rate nobody measured
        costs = self.costs(stages)
        # A pass answers at least one token, so this is at least the share of the prompt that a pass carries.
        rows = PLANNED_ROWS + len(request.prompt_ids) / request.max_tokens
        return choose_wire(own, edge_rates(ring), self._manifest.row_width, rows, costs.pass_ms + rows * costs.row_ms)

    def dtype(self, stages: Sequence[StagePlan]) -> str:
        """What the stages say they compute in; "mixed" when they differ."""
        views = [self._gossip.member(stage.node) for stage in stages]
        return joint_dtype({view.record.dtype for view in views if view is not None})

    def ordered_dtype(self, stages: Sequence[StagePlan]) -> str:
        """The same for the order; "mixed" also where another node that holds layers differs.

        A stage refuses an order for another type than its own, and any node may have to take over a lost one's part.
        """
        others = {
            member.record.dtype
            for member in self._gossip.members()
            if member.record.layers[0] < member.record.layers[1]
        }
        return joint_dtype({self.dtype(stages), *others})

    def cannot_hold(self, constraint: Constraint) -> frozenset[bytes]:
        """Nodes at the end of the model that do not say that they hold answers to constraints as this one is read."""
        members = self._gossip.members()
        tails = [view.record for view in members if view.record.layers[1] == self._manifest.n_layers]
        return frozenset(record.node for record in tails if constraint.engine not in record.software.split(", "))

    def describe(self, plan: StagePlan, said: Mapping[str, object], compute_ms: float) -> StageInfo:
        """A stage of a run for people; `said` is what it said of itself."""
        peer = self._board.get(plan.node)
        view = self._gossip.member(plan.node)
        rtt = peer.rtt_ms if peer is not None and peer.rtt_ms is not None else (view.rtt_ms if view else None)
        return StageInfo(
            node=id_text(plan.node),
            device=str(said.get("device") or (view.record.device if view else ""))[:80],
            layers=(plan.first, plan.last),
            compute_ms=round(compute_ms, 3),
            edge=peer.edge if peer is not None else "direct",
            rtt_ms=rtt,
        )

    def witnesses(self, stages: Sequence[StagePlan], count: int | None) -> list[bytes]:
        """Members outside the ring, nearest first: as many as asked, else one when there is one."""
        barred = self._rules.excluded(self._members())
        ring = {stage.node for stage in stages} | {self._board.id}
        up = [v for v in self._gossip.members() if v.standing == "up" and v.record.node not in ring]
        free = [v for v in up if id_text(v.record.node) not in barred]
        near = sorted(free, key=lambda view: (view.rtt_ms is None, view.rtt_ms or 0.0))
        return [view.record.node for view in near[: 1 if count is None else count]]

    async def ask_witness(self, node: NodeId, asked: WitnessRequest) -> bytes:
        """A member's signed word on an order or a close (`swarm.run.receipt.Parties`). Raises PeerError."""
        peer = await MemberConnector(self._board, self._gossip).connect(StagePlan(node, self._addresses(node), 0, 1))
        answer = await peer.call(Message(WITNESS, WITNESS_REQUEST.header(asked)), DIAL_TIMEOUT_S)
        return WITNESS_ANSWER.read_untrusted(answer.header).envelope

    def _members(self) -> list[Member]:
        return members_of(self._gossip, bytes.fromhex(self._manifest.digest))

    def _addresses(self, node: NodeId) -> tuple[Address, ...]:
        view = self._gossip.member(node)
        return tuple(view.record.addresses) if view is not None else ()

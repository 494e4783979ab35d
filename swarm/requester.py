"""A requester: in a swarm as a guest, with tokenizer and drafter, ready to run. Wires the rooms; decides nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from swarm.atlas import members_of, rtts_of
from swarm.config import MemberConfig
from swarm.drafters import Drafters, load_drafters
from swarm.entry import enter_as_guest
from swarm.errors import CoverageError, ModelError, PeerError, UsageError
from swarm.events import Report, silent
from swarm.greeting import greeting
from swarm.identity import Identity
from swarm.introduce import introducing
from swarm.mesh.gossip import Gossip
from swarm.mesh.invite import parse_invite_untrusted
from swarm.mesh.saved import Saved
from swarm.model.block import load_block
from swarm.model.checkpoint import Checkpoint, end_tokens, load_tokenizer, open_model
from swarm.model.device import choose_device
from swarm.model.manifest import Manifest
from swarm.model.store import ModelStore
from swarm.net.message import Message
from swarm.net.nodeid import id_text, parse_id_untrusted
from swarm.net.reach import Reach
from swarm.net.switchboard import Switchboard
from swarm.ring.control import Costs
from swarm.ring.notary import Notary, open_log, software
from swarm.ring.opening import StagePlan
from swarm.ring.plan import Ask, Member, plan_route, usual_speed
from swarm.ring.plan_costs import StageCost, expected_costs
from swarm.ring.plan_wire import choose_wire, edge_rates
from swarm.ring.private import PrivateBlocks
from swarm.ring.reach import DIAL_TIMEOUT_S
from swarm.ring.receipt import ReceiptPlan
from swarm.ring.request import Desk, TargetFacts
from swarm.ring.run import Draft, RunEvent, RunRequest, StageInfo
from swarm.ring.witness import WITNESS
from swarm.rules import RouteRules
from swarm.scout import keep_scouting_ends, scout_first
from swarm.serve.mesh import mesh_status
from swarm.shape import model_shape
from swarm.state import remember_swarm, requester_folder

COVERAGE_WAIT_S = 4.0
PLANNED_ROWS = 8


@dataclass(frozen=True)
class RequesterConfig:
    """Who asks, and with which drafter.

    draft_model    None: the one that ships for the model
    keep_s         how long stages are asked to hold a closed run, for one that begins alike; 0: not at all
    rules          whom requests may pass through
    wait_covered   connecting fails while layers are missing; without it, runs do
    """

    member: MemberConfig
    draft: Draft = "auto"
    draft_model: str | None = None
    draft_gpu: int | None = None
    wait_covered: bool = True
    keep_s: float = 0.0
    rules: RouteRules = RouteRules()


@dataclass(frozen=True)
class Target:
    """The model that the swarm serves, as far as a requester needs it on this machine."""

    ref: str
    checkpoint: Checkpoint
    tokenizer: PreTrainedTokenizerBase
    eos: frozenset[int]
    drafters: Drafters
    models: Path


def load_target(config: RequesterConfig, ref: str, report: Report = silent) -> Target:
    """Tokenizer, embedding and drafter of a model. Raises UsageError for a drafter that does not fit."""
    store = ModelStore(config.member.models)
    checkpoint = open_model(ref, store, (0, 1), report)
    tokenizer = load_tokenizer(ref, store, report)
    drafters = load_drafters(config.draft, config.draft_model, config.draft_gpu, checkpoint, tokenizer, store, report)
    return Target(ref, checkpoint, tokenizer, end_tokens(checkpoint, store, ref), drafters, config.member.models)


class Requester:
    """`async with await Requester.connect(config, report) as r`: then any number of `r.run(...)` at once."""

    def __init__(
        self,
        stack: AsyncExitStack,
        target: Target,
        board: Switchboard,
        gossip: Gossip,
        state: Path,
        notary: Notary,
        keep_s: float,
        rules: RouteRules,
    ) -> None:
        self._stack = stack
        self._target, self._board, self.gossip = target, board, gossip
        self.receipts_dir = state / "receipts"
        self._spread = random.randrange(1 << 30)
        self._private: dict[int, PrivateBlocks] = {}
        self._models, self._rules = target.models, rules
        self._shape = model_shape(self.manifest, torch.bfloat16)
        self.desk = Desk(
            board,
            TargetFacts(self.manifest.digest, self.manifest.context, target.eos, self.decode),
            self._plan,
            target.drafters,
            self._costs,
            self._describe,
            self._wire,
            greeting(board, gossip),
            ReceiptPlan(
                folder=self.receipts_dir,
                notary=notary,
                model=target.ref[:100],
                n_layers=self.manifest.n_layers,
                dtype=self._dtype,
                witnesses=self._witnesses,
                ask=self._ask_witness,
            ),
            self._private_blocks,
            keep_s,
        )

    @classmethod
    async def connect(cls, config: RequesterConfig, report: Report = silent) -> Requester:
        """Enter the swarm and wait until its members are known. Raises SwarmError."""
        target: Target | None = None
        if config.member.invite is not None:
            # What is wrong on this side is said before anybody is dialled.
            invite = parse_invite_untrusted(config.member.invite)
            target = await asyncio.to_thread(load_target, config, invite.ref, report)
            invite.require_model(bytes.fromhex(target.checkpoint.manifest.digest), invite.ref)
        async with AsyncExitStack() as stack:
            folder = stack.enter_context(requester_folder(config.member.state))
            identity = Identity.load_or_create(folder)
            board = await stack.enter_async_context(Switchboard(identity))
            saved = await enter_as_guest(board, config.member, folder, identity, report)
            if target is None:
                target = await asyncio.to_thread(load_target, config, saved.ref, report)
            _require_model(saved, target)
            gossip = await stack.enter_async_context(
                Gossip(board, identity.sign, saved, kept=lambda what: remember_swarm(folder, what))
            )
            manifest = target.checkpoint.manifest
            kept = open_log(folder / "log", identity.id)
            author = kept.author(identity.sign)
            notary = Notary(author, kept, software(), manifest.digest, manifest.weights_digest)
            stack.callback(notary.close)
            requester = cls(stack, target, board, gossip, config.member.state, notary, config.keep_s, config.rules)
            if config.member.punch:
                Reach(
                    board,
                    relay=config.member.relay,
                    admitted=gossip.admitted,
                    introduce=introducing(board, gossip),
                )
            for kind, handler in requester.desk.handlers().items():
                board.handle(kind, handler)
            await stack.enter_async_context(requester.desk)
            for member, _ in saved.peers[:1]:
                await gossip.link(member)
            if config.wait_covered:
                await requester._wait_covered()
            where = gossip, board.id, bytes.fromhex(manifest.digest), manifest.n_layers
            await scout_first(*where)
            scouting = asyncio.create_task(keep_scouting_ends(*where))
            stack.push_async_callback(_ended, scouting)
            requester._stack = stack.pop_all()
            return requester

    async def __aenter__(self) -> Requester:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    # What a caller asks

    @property
    def manifest(self) -> Manifest:
        """The model's content identity."""
        return self._target.checkpoint.manifest

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._target.tokenizer

    @property
    def node_id(self) -> bytes:
        return self._board.id

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of raw text."""
        return tuple(int(t) for t in self.tokenizer(text)["input_ids"])

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> tuple[int, ...]:
        """Token ids of a conversation by the model's chat template. Raises ModelError when it has none."""
        if not self.tokenizer.chat_template:
            raise ModelError(f"{self._target.ref} has no chat template; use --raw")
        ids = self.tokenizer.apply_chat_template(
            [dict(m) for m in messages],
            tools=[dict(t) for t in tools] if tools else None,
            add_generation_prompt=True,
            return_dict=False,
        )
        return tuple(int(t) for t in ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    async def run(self, request: RunRequest, receipt: Path | None = None) -> AsyncGenerator[RunEvent]:
        """The events of one run, `Finished` last."""
        async with aclosing(self.desk.run(request, receipt)) as events:
            async for event in events:
                yield event

    def view(self) -> dict[str, Any]:
        """The swarm as the dashboard shows it: no addresses, measured distances only."""
        flights = {run: {"rows_in_flight": rows} for run, rows in self.desk.flights().items()}
        return {**mesh_status(self.gossip, self._board), "runs": flights}

    # What the desk asks

    def _members(self) -> list[Member]:
        return members_of(self.gossip, bytes.fromhex(self.manifest.digest))

    def _plan(self, excluded: frozenset[bytes], private: int = 0) -> list[StagePlan]:
        members = self._members()
        ask = Ask(
            id_text(self._board.id),
            rows=PLANNED_ROWS,
            context=min(2048, self.manifest.context),
            exclude=frozenset(id_text(node) for node in excluded) | self._rules.excluded(members),
            min_owners=self._rules.owners,
            spread=self._spread,
            first=private,
            last=self.manifest.n_layers - private,
        )
        route = plan_route(self._shape, members, rtts_of(self.gossip, self._board.id), ask)
        stages = []
        for stage in route.stages:
            node = parse_id_untrusted(stage.node)
            view = self.gossip.member(node)
            addresses = view.record.addresses if view is not None else ()
            stages.append(StagePlan(node, tuple(addresses), stage.first, stage.last))
        return stages

    def _costs(self, stages: Sequence[StagePlan], wire: str | None = None) -> Costs:
        """First guesses from what the nodes measured of themselves and from round trips known here.

        `wire`: the format of hidden rows; None leaves their bytes out.
        """
        by_name = {member.node: member for member in self._members()}
        usual = usual_speed(by_name.values())
        members = [by_name.get(id_text(stage.node)) for stage in stages]
        names = [id_text(self._board.id), *(id_text(stage.node) for stage in stages)]
        rtt = rtts_of(self.gossip, self._board.id)(names)
        ring = [*range(len(names)), 0]
        return expected_costs(
            [
                StageCost((member.speed if member is not None else None) or usual, stage.last - stage.first)
                for member, stage in zip(members, stages, strict=True)
            ],
            way_ms=sum(float(rtt[a, b]) / 2.0 for a, b in zip(ring, ring[1:], strict=False)),
            draft_ms=self._target.drafters.step_ms,
            wire=wire,
            hidden=self.manifest.hidden_size,
            rates_mbps=edge_rates(members),
        )

    def _describe(self, plan: StagePlan, said: Mapping[str, object], compute_ms: float) -> StageInfo:
        peer = self._board.get(plan.node)
        view = self.gossip.member(plan.node)
        rtt = peer.rtt_ms if peer is not None and peer.rtt_ms is not None else (view.rtt_ms if view else None)
        return StageInfo(
            node=id_text(plan.node),
            device=str(said.get("device") or (view.record.device if view else ""))[:80],
            layers=(plan.first, plan.last),
            compute_ms=round(compute_ms, 3),
            edge=peer.edge if peer is not None else "direct",
            rtt_ms=rtt,
        )

    def _wire(self, request: RunRequest, stages: Sequence[StagePlan]) -> str:
        """The format of hidden rows between stages: as asked; "model": what the stages compute in, never coarser."""
        if request.wire not in ("model", "auto"):
            return request.wire
        views = [self.gossip.member(stage.node) for stage in stages]
        exact = all(view is not None and view.record.dtype == "float32" for view in views)
        own = "float32" if exact else "bfloat16"
        if request.wire == "model":
            return own
        members = {member.node: member for member in self._members()}
        ring = [members.get(id_text(stage.node)) for stage in stages]
        if request.private:
            ring = [None, *ring, None]  # hidden rows cross this machine's edges too, whose rate nobody measured
        costs = self._costs(stages)
        # A pass answers at least one token, so this is at least the share of the prompt that a pass carries.
        rows = PLANNED_ROWS + len(request.prompt_ids) / request.max_tokens
        return choose_wire(own, edge_rates(ring), self.manifest.hidden_size, rows, costs.pass_ms + rows * costs.row_ms)

    async def _private_blocks(self, count: int) -> PrivateBlocks:
        """The first and the last `count` layers on this machine, loaded once. Raises UsageError, ModelError."""
        n = self.manifest.n_layers
        if 2 * count >= n:
            raise UsageError(f"expected --private under {(n + 1) // 2} for a model of {n} layers, found {count}")
        if count not in self._private:
            self._private[count] = await asyncio.to_thread(self._load_private, count)
        return self._private[count]

    def _load_private(self, count: int) -> PrivateBlocks:
        n, device = self.manifest.n_layers, choose_device(None)
        store, ref = ModelStore(self._models), self._target.ref
        dtype = torch.float32 if self._dtype(self._plan(frozenset(), count)) == "float32" else torch.bfloat16
        head, tail = (
            load_block(open_model(ref, store, span), *span, device, dtype) for span in ((0, count), (n - count, n))
        )
        return PrivateBlocks(head, tail)

    def _dtype(self, stages: Sequence[StagePlan]) -> str:
        """What the stages say they compute in, for the order."""
        views = [self.gossip.member(stage.node) for stage in stages]
        found = {view.record.dtype for view in views if view is not None}
        return found.pop() if len(found) == 1 else "mixed"

    def _witnesses(self, stages: Sequence[StagePlan], count: int | None) -> list[bytes]:
        """Members outside the ring, nearest first: as many as asked, else one when there is one."""
        barred = self._rules.excluded(self._members())
        ring = {stage.node for stage in stages} | {self._board.id}
        up = [v for v in self.gossip.members() if v.standing == "up" and v.record.node not in ring]
        free = [v for v in up if id_text(v.record.node) not in barred]
        near = sorted(free, key=lambda view: (view.rtt_ms is None, view.rtt_ms or 0.0))
        return [view.record.node for view in near[: 1 if count is None else count]]

    async def _ask_witness(self, node: bytes, header: dict[str, bytes | str]) -> bytes:
        view = self.gossip.member(node)
        addresses = view.record.addresses if view is not None else ()
        peer = await greeting(self._board, self.gossip)(StagePlan(node, tuple(addresses), 0, 1))
        envelope = (await peer.call(Message(WITNESS, header), DIAL_TIMEOUT_S)).header.get("envelope")
        if not isinstance(envelope, bytes):
            raise PeerError("expected a witness's envelope, found none")
        return envelope

    async def _wait_covered(self) -> None:
        """News of the members comes a moment after the hello. Raises CoverageError naming the layers that miss."""
        try:
            async with asyncio.timeout(COVERAGE_WAIT_S):
                while True:
                    try:
                        self._plan(frozenset())
                        return
                    except CoverageError:
                        await self.gossip.wait_change()
        except TimeoutError:
            self._plan(frozenset())


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _require_model(saved: Saved, target: Target) -> None:
    digest = bytes.fromhex(target.checkpoint.manifest.digest)
    if saved.model != digest:
        raise ModelError(
            f"the swarm serves {saved.ref} with digest {saved.model.hex()[:16]}, but the copy on this machine has "
            f"{digest.hex()[:16]}; remove it and pull it again: swarm model pull {saved.ref}"
        )

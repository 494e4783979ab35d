"""A requester: in a swarm as a guest, with tokenizer and drafter, ready to run. Wires the rooms; decides nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import torch

from swarm.base.events import Notice, Report, silent
from swarm.base.swarm_state import SwarmState
from swarm.client.config import RequesterConfig as RequesterConfig
from swarm.client.recording import RunNotes, may_be_kept
from swarm.client.router import Routes
from swarm.client.target_model import Target
from swarm.discovery.bootstrap import enter_as_guest
from swarm.discovery.connect import MemberConnector
from swarm.discovery.introducers import MemberIntroducer
from swarm.discovery.rtt_probing import keep_scouting_ends, scout_first
from swarm.discovery.state_dir import LAST_INVITE, RememberedSwarm, requester_folder
from swarm.mesh.gossip import Gossip
from swarm.mesh.invite import Invite, parse_invite_untrusted, passed_on
from swarm.mesh.membership import InviteError
from swarm.mesh.messages import HELLO
from swarm.mesh.status import mesh_status
from swarm.model.constraint import Constraint
from swarm.model.files.manifest import Manifest
from swarm.model.text.template import PLAIN_CHAT, TemplateOptions
from swarm.model.text.tokenizer import Tokenizer
from swarm.net.identity import Identity
from swarm.net.switchboard import Switchboard
from swarm.net.traversal.reach import Reach
from swarm.ring.signer import ReceiptSigner, open_log, open_published, software
from swarm.run.api import RunEvent, RunRequest
from swarm.run.engine import RunEngine, TargetFacts
from swarm.run.private_layers import PrivateBlocks, PrivateShelf
from swarm.run.receipt import ReceiptPlan
from swarm.run.receipt_pruning import Pruner


class PrivateHere:
    """The first and the last layers of the target, loaded on this machine in what the stages compute in."""

    def __init__(self, target: Target, routes: Routes) -> None:
        self._target, self._routes = target, routes

    async def get(self, count: int) -> PrivateBlocks:
        """`count` layers at either end. Raises UsageError, ModelError."""
        self._target.require_private(count)
        exact = self._routes.dtype(self._routes.plan(frozenset(), count)) == "float32"
        return await asyncio.to_thread(self._target.private_blocks, count, torch.float32 if exact else torch.bfloat16)


class Requester:
    """`async with await Requester.connect(config, report) as r`: then any number of `r.run(...)` at once."""

    def __init__(
        self,
        stack: AsyncExitStack,
        target: Target,
        board: Switchboard,
        gossip: Gossip,
        notary: ReceiptSigner,
        config: RequesterConfig,
    ) -> None:
        self._stack = stack
        self._target, self._board, self.gossip = target, board, gossip
        self._member = config.member
        self.state_dir = config.member.state
        self.receipts_dir = self.state_dir / "receipts"
        self._shelf = config.shelf() if config.keep_for_learning else None
        self._routes = Routes(board, gossip, self.manifest, config.rules, target.drafters.step_ms)
        self.desk = RunEngine(
            board,
            TargetFacts(
                self.manifest.digest,
                self.manifest.context,
                target.eos,
                target,
                vocab_size=self.manifest.vocab_size,
                special=target.special,
                compiler=target.compiler,
                tail_drafts=target.drafters.at_tail,
                taps=target.drafters.taps,
                hidden=self.manifest.hidden_size,
            ),
            self._routes,
            target.drafters,
            MemberConnector(board, gossip),
            ReceiptPlan(
                folder=self.receipts_dir,
                notary=notary,
                model=target.ref[:100],
                n_layers=self.manifest.n_layers,
                parties=self._routes,
                pruner=Pruner(self.receipts_dir, config.keep_receipts_s),
            ),
            PrivateShelf(PrivateHere(target, self._routes)),
            config.keep_s,
        )

    @classmethod
    async def connect(cls, config: RequesterConfig, report: Report = silent) -> Requester:
        """Enter the swarm and wait until its members are known. Raises SwarmError."""
        if config.keep_for_learning:
            kept_in = config.shelf().folder
            report(Notice(f"prompts and answers are kept in {kept_in} (swarm draft learn --forget deletes them)"))
        target: Target | None = None
        if config.member.invite is not None:
            # What is wrong on this side is said before anybody is dialled.
            invite = parse_invite_untrusted(config.member.invite)
            target = await asyncio.to_thread(config.load, invite.ref, report)
            invite.require_model(target.digest, invite.ref)
        async with AsyncExitStack() as stack:
            folder = stack.enter_context(requester_folder(config.member.state))
            identity = Identity.load_or_create(folder)
            board = await stack.enter_async_context(
                Switchboard(identity, proxy=config.member.http_proxy, open_kinds=(HELLO,))
            )
            saved = await enter_as_guest(board, config.member, folder, identity, report)
            if target is None:
                target = await asyncio.to_thread(config.load, saved.ref, report)
            stack.callback(target.templates.close)
            stack.callback(target.compiler.close)
            target.require_served(saved)
            store = RememberedSwarm(folder) if config.member.remember else None
            gossip = await stack.enter_async_context(Gossip(board, saved, store=store))
            manifest = target.manifest
            kept = open_log(folder / "log", identity.id)
            author = kept.author(identity.sign)
            published = open_published(config.log, kept, identity, report)
            notary = ReceiptSigner(
                author, kept, software(), manifest.digest, manifest.weights_digest, published=published
            )
            stack.callback(notary.close)
            requester = cls(stack, target, board, gossip, notary, config)
            if config.member.punch:
                Reach(board, relay=config.member.relay, introducer=MemberIntroducer(board, gossip))
            for kind, handler in requester.desk.handlers().items():
                board.handle(kind, handler)
            await stack.enter_async_context(requester.desk)
            for member, _ in saved.peers[:1]:
                await gossip.link(member)
            await asyncio.to_thread(requester._routes.measure_own)
            if config.await_news:
                await requester._routes.await_news()
            where = gossip, board.id, target.digest, manifest.n_layers
            routes = requester._routes
            await scout_first(*where, lambda: [stage.node for stage in routes.plan(frozenset())])
            scouting = asyncio.create_task(keep_scouting_ends(*where))
            stack.push_async_callback(_ended, scouting)
            requester._stack = stack.pop_all()
            return requester

    async def __aenter__(self) -> Requester:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    @property
    def manifest(self) -> Manifest:
        """The model's content identity."""
        return self._target.manifest

    @property
    def ref(self) -> str:
        """What the model is opened by on this machine."""
        return self._target.ref

    @property
    def tokenizer(self) -> Tokenizer:
        return self._target.tokenizer

    @property
    def generation_defaults(self) -> Mapping[str, float]:
        """Sampling options that the model's makers want where a request names none."""
        return self._target.generation_defaults

    @property
    def swarm_id(self) -> bytes:
        """Of the swarm that it entered."""
        return self.gossip.saved().membership.swarm

    @property
    def node_id(self) -> bytes:
        return self._board.id

    def memory_for(self, holes: Sequence[tuple[int, int]]) -> int:
        """Bytes of free memory that whoever takes these layers, [first, last) each, should have: as errors say it."""
        return self._routes.memory_for(holes)

    def invite(self) -> tuple[str, bool] | None:
        """An invite that lets a node in, and whether it is a secret; None where this requester knows none."""
        saved = self.gossip.saved()
        given = None if saved.membership.open else self._given_invite()
        found = passed_on(given, saved, time.time())
        return None if found is None else (found.text(), found.token is not None)

    def _given_invite(self) -> Invite | None:
        """The one that this requester came in by, now or before."""
        last = self._member.state / LAST_INVITE
        try:
            text = self._member.invite or last.read_text("utf-8")
            return parse_invite_untrusted(text)
        except (OSError, ValueError, InviteError):
            return None

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of raw text."""
        return self._target.encode(text)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        options: TemplateOptions = PLAIN_CHAT,
    ) -> tuple[int, ...]:
        """Token ids of a conversation by the model's chat template.

        Raises ModelError when it has none, UsageError when it refuses the conversation.
        """
        return self._target.encode_chat(messages, options)

    @property
    def drafts(self) -> str:
        """What drafts for this model, and why that, in one line."""
        return self._target.drafters.why

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        return self._target.decode(ids)

    async def compile(self, constraint: Constraint, of: str | None = "") -> None:
        """Whether answers can be held to this; takes a second at most. Raises UsageError, saying why not. `of`: as
        `RunRequest.prefix`, for whom it is kept."""
        compiler = self._target.compiler
        await asyncio.to_thread(lambda: compiler.vocabulary)
        await compiler.held_soon(compiler.ready(constraint, 0), of)

    async def run(self, request: RunRequest, receipt: Path | None = None) -> AsyncGenerator[RunEvent]:
        """The events of one run, `Finished` last."""
        keeps = self._shelf is not None and may_be_kept(request)
        notes = RunNotes(self._shelf, self.manifest.digest, request) if keeps and self._shelf is not None else None
        async with aclosing(self.desk.run(request, receipt)) as events:
            async for event in events:
                if notes is not None:
                    await notes.heard(event)
                yield event

    def view(self) -> SwarmState:
        """The swarm as it is seen from here: measured distances only."""
        return mesh_status(self.gossip, self._board)

    def rows_in_flight(self) -> Mapping[str, int]:
        """Of runs under way, by run id."""
        return self.desk.flights()


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])

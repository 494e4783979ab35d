"""The requester's half: turns requests into runs over rings, any number at once."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from draft.taps import ReadsTaps
from receipts import ReceiptError
from swarm.base.errors import PeerError, SwarmError, UsageError, let_go
from swarm.model.held import Matcher
from swarm.model.rows import Layout
from swarm.net.channel.message import Message
from swarm.net.peer import Handler, Peer
from swarm.net.switchboard import Switchboard
from swarm.ring.connect import PlainConnector, StageConnector
from swarm.ring.frame import ANSWER, parse_answer_untrusted
from swarm.ring.guide import ConstraintGuide, DictatedGuide, Guide
from swarm.ring.opening import TAIL, UP, OpenRun, StagePlan, parse_word_untrusted
from swarm.ring.order_check import CONTEXT_STEP, exact
from swarm.ring.taps import TAPS, parse_taps_untrusted
from swarm.ring.words import parse_tail_untrusted
from swarm.run.api import Finished, FinishReason, RunEvent, RunRequest, RunResult
from swarm.run.controller import Controller, Setting
from swarm.run.detokenizer import TextStream
from swarm.run.learned_costs import Drafting, DraftingSource, LearnedCosts, TargetFacts
from swarm.run.prefix_cache import KeptRun, PrefixCache
from swarm.run.private_layers import PrivateEnds, PrivateLayers
from swarm.run.prompt_parts import prompt_rows
from swarm.run.receipt import ReceiptPlan, ReceiptUnwritten, RunAccount
from swarm.run.ring_client import RingLink
from swarm.run.routing import Router, RunRoutes
from swarm.run.run_loop import RunLoop, RunParts
from swarm.run.run_stats import for_receipt, summed_up
from swarm.run.speculation import Speculation, StopRule
from swarm.run.tap_book import TapBook, tap_wire
from swarm.run.wait_for_coverage import patiently

_TAP_DTYPE = torch.bfloat16
"""What the drafter's rows are kept in: what such drafters were trained on."""
_VOCAB = 1 << 20
"""More tokens than any model has: where a target does not tell how many it has."""
SCRATCH: Mapping[str, int] = {"plain": 0, "chain": 64, "tree": 128, "stream": 192}


class RunEngine:
    """Starts runs and hands their answers to them. Use as an async context; leaving it cancels what is open.

    `drafting` makes the drafters of a run from its request; `private` has this machine's own ends of the model.
    """

    def __init__(
        self,
        switchboard: Switchboard,
        target: TargetFacts,
        router: Router,
        drafting: DraftingSource,
        connector: StageConnector | None = None,
        receipts: ReceiptPlan | None = None,
        private: PrivateLayers | None = None,
        keep_s: float = 0.0,
    ) -> None:
        self.switchboard, self.target = switchboard, target
        self.router, self._drafting = router, drafting
        self._receipts = receipts
        self._private = private
        self._keep_s = keep_s
        self._prefixes = PrefixCache()
        self._connector = connector or PlainConnector(switchboard)
        self.links: dict[bytes, RingLink] = {}
        self.loops: dict[bytes, RunLoop] = {}
        self.memory = LearnedCosts()
        self._group: asyncio.TaskGroup | None = None
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> RunEngine:
        self._group = await self._stack.enter_async_context(asyncio.TaskGroup())
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    def handlers(self) -> Mapping[str, Handler]:
        """What the switchboard calls for answers and bad news."""
        return {ANSWER: self._on_answer, UP: self._on_up, TAIL: self._on_tail, TAPS: self._on_taps}

    def flights(self) -> dict[str, int]:
        """Rows that are under way now, by run."""
        return {run.hex(): loop.core.rows_in_flight for run, loop in self.loops.items()}

    async def _on_answer(self, peer: Peer, message: Message) -> None:
        run = message.header.get("r")
        link = self.links.get(run) if isinstance(run, bytes) else None
        if link is None:
            parse_answer_untrusted(message)  # a malformed one is told of; one of a run that is over is late
            return
        if peer.id != link.opening.stages[-1].node:
            raise PeerError("expected an answer from the tail of the ring, found another's")
        try:
            link.take_answer(parse_answer_untrusted(message), message)
        except (PeerError, ReceiptError) as error:
            link.lose_tail(link.opening.epoch, str(error))

    async def _on_taps(self, peer: Peer, message: Message) -> None:
        run = message.header.get("r")
        link = self.links.get(run) if isinstance(run, bytes) else None
        if link is not None and link.opening.taps and peer.id in {stage.node for stage in link.opening.stages}:
            link.take_taps(peer.id, parse_taps_untrusted(message, _TAP_DTYPE))

    async def _on_tail(self, peer: Peer, message: Message) -> None:
        word = parse_tail_untrusted(message.header)
        link = self.links.get(word.run)
        if link is not None and peer.id == link.opening.stages[-1].node:
            link.take_end(word)

    async def _on_up(self, peer: Peer, message: Message) -> None:
        word = parse_word_untrusted(message.header)
        link = self.links.get(word.run)
        if link is not None and peer.id == link.opening.stages[0].node:
            link.take_word(word)

    async def run(self, request: RunRequest, receipt: Path | None = None) -> AsyncGenerator[RunEvent]:
        """The events of one run, `Finished` last. Closing the iterator ends the run and frees the ring.

        `receipt`: where its receipt goes, None for the usual folder.
        """
        self._check(request)
        request = replace(request, sampling=exact(request.sampling))
        events: asyncio.Queue[RunEvent | BaseException] = asyncio.Queue()
        assert self._group is not None, "the desk is not open"
        task = self._group.create_task(self._guarded(request, receipt, events))
        try:
            while True:
                event = await events.get()
                if isinstance(event, BaseException):
                    try:
                        raise event
                    finally:
                        del event  # it has this frame
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            del task

    def _check(self, request: RunRequest) -> None:
        prompt, context = len(request.prompt_ids), self.target.context
        if prompt >= context:
            raise UsageError(f"the prompt has {prompt} tokens, but the model's context holds {context}; shorten it")
        most = self.target.vocab_size
        said = (*request.prompt_ids, *request.given)
        worst = next((token for token in said if token < 0 or (most is not None and token >= most)), None)
        if worst is not None:
            known = f"0 to {most - 1}" if most is not None else "0 or more"
            raise UsageError(
                f"expected token ids of {known}, which the model knows, found {worst} in the prompt: "
                "the tokenizer has tokens that the model's embedding lacks; use the model's own tokenizer"
            )

    async def _guarded(
        self, request: RunRequest, receipt: Path | None, events: asyncio.Queue[RunEvent | BaseException]
    ) -> None:
        """A failed run fails its own reader, never the other runs of the desk."""
        try:
            await self._drive(request, receipt, events)
        except asyncio.CancelledError as error:
            let_go(error)  # its frames have this task, which would have them: a whole run would wait for the collector
            raise
        except BaseException as error:
            events.put_nowait(_single(error))

    async def _drive(
        self, request: RunRequest, where: Path | None, events: asyncio.Queue[RunEvent | BaseException]
    ) -> None:
        request = await self._compiled(request)
        routes = RunRoutes(self.router, request, self._connector)
        opening = await patiently(lambda: self._opening(request, routes), request.patience_s, events.put_nowait)
        drafting = self._drafting.make(request)
        if opening.drafts:
            drafting = replace(drafting, name="tail" if drafting.name == "none" else f"{drafting.name}+tail")
        core = self._core(request, opening, drafting, await asyncio.to_thread(self._held_to, request))
        link = self.links[opening.run] = await self._link(request, opening)
        thread = ThreadPoolExecutor(1, "draft", torch.set_num_threads, (drafting.threads,))
        parts = RunParts(
            link=link,
            opening=opening,
            request=request,
            routes=routes,
            core=core,
            text=self._text(request),
            drafter=drafting.deferred,
            draft_thread=thread,
            events=events,
            vocab_size=None if request.private else self.target.vocab_size,
            receipts=self._receipts if request.receipt else None,
            taps=self._tap_book(request, opening, drafting),
        )
        loop = self.loops[opening.run] = RunLoop(parts)
        try:
            reason = await loop.run()
            loop.flush()
            await self._close(request, link, loop, collect=reason != "swarm_incomplete")
            result = self._result(request, loop, drafting.name, reason)
            if link.account is not None:
                result = await self._receipted(link.account, loop, result, where)
            await loop.settle()
            parts.emit(Finished(result))
        except BaseException as error:
            reason = "cancelled" if isinstance(error, asyncio.CancelledError) else "swarm_incomplete"
            await self._account_for(request, loop, drafting.name, reason, where)
            raise
        finally:
            await self._close(request, link, loop, collect=False)
            await loop.settle()
            thread.shutdown(wait=False, cancel_futures=True)
            self.loops.pop(opening.run, None)
            if link.private is not None:
                link.private.close()
            self._drafting.give_back(drafting)

    def _text(self, request: RunRequest) -> TextStream:
        return TextStream(
            self.target.decoder,
            request.stop,
            before=(*request.prompt_ids, *request.given),
            special=self.target.special,
            keep_stop=request.keep_stop,
            stop_tokens=frozenset(request.stop_token_ids),
            least=request.sampling.shaping.least if request.sampling.shaping is not None else 0,
        )

    async def _link(self, request: RunRequest, opening: OpenRun) -> RingLink:
        """To the ring, with this machine's own ends of the model where the run is private."""
        link = RingLink(self._connector, opening)
        if request.private and self._private is not None:
            blocks = await self._private.get(request.private)
            held_to = await asyncio.to_thread(self._held_to, request)
            link.private = PrivateEnds(blocks, opening.layout, request.sampling, opening.wire, held_to)
        return link

    async def _account_for(
        self, request: RunRequest, loop: RunLoop, drafter: str, reason: FinishReason, where: Path | None
    ) -> None:
        """A run that has no result has a receipt all the same: who took part, and how far it came."""
        link = loop.link
        if link.account is None or link.opening.run not in self.links:
            return
        await self._close(request, link, loop, collect=reason == "cancelled")
        with contextlib.suppress(SwarmError, ReceiptError):
            await self._write(link.account, loop, self._result(request, loop, drafter, reason), where)

    async def _receipted(self, account: RunAccount, loop: RunLoop, result: RunResult, where: Path | None) -> RunResult:
        """The result with its receipt; a full disk takes away the receipt, not the answer."""
        try:
            return replace(result, receipt=str(await self._write(account, loop, result, where)))
        except ReceiptUnwritten as error:
            return replace(result, receipt_unwritten=str(error))

    async def _write(self, account: RunAccount, loop: RunLoop, result: RunResult, where: Path | None) -> Path:
        """The receipt, and the trace beside it."""
        tally, order = loop.tally, account.record.order.digest
        trace = loop.tracer.trace(result.run_id, order, result.new_tokens, tally.first_token, tally.ended)
        rows = for_receipt(tally, loop.core.counts)
        return await account.write(self._as_signed(result), rows, trace, where)

    async def _close(self, request: RunRequest, link: RingLink, loop: RunLoop, collect: bool) -> None:
        """Once: every stage frees the run's memory before its reader hears that it is over."""
        if link.opening.run in self.links:
            until = loop.prompt_tokens + len(loop.emitted)
            commits = loop.core.closing_commits()
            holds = loop.core.finished and not link.private and request.prefix is not None
            hold_s = self._keep_s if holds else 0.0
            await link.close(until, commits, collect, hold_s)
            if hold_s:
                held = tuple(loop.core.tokens[: loop.core.held])
                route = _route(link.opening.stages)
                until_s = time.monotonic() + hold_s
                self._prefixes.add(
                    KeptRun(link.opening.run, route, held, until_s, request.prefix or "", request.public)
                )
            self.links.pop(link.opening.run, None)

    def _opening(self, request: RunRequest, routes: RunRoutes) -> OpenRun:
        stages = tuple(routes.plan(frozenset()))
        wire = routes.wire(stages)
        taps = self._taps(request)
        want = len(request.prompt_ids) + request.max_tokens
        context = min(-(-want // CONTEXT_STEP) * CONTEXT_STEP, self.target.context)
        base, keep = b"", 0
        if self._keep_s and not request.private and request.prefix is not None:
            base, keep = self._prefixes.best(
                request.prompt_ids, _route(stages), time.monotonic(), request.prefix, request.public
            )
        return OpenRun(
            run=secrets.token_bytes(16),
            epoch=0,
            requester=self.switchboard.id,
            model=self.target.model,
            wire=wire,
            layout=Layout(SCRATCH[request.speculation], context),
            sampling=request.sampling,
            stages=stages,
            keep=keep,
            base=base,
            drafts=self._tail_drafts(request),
            taps=taps,
            taps_wire=tap_wire(wire) if taps else "",
        )

    def _taps(self, request: RunRequest) -> tuple[int, ...]:
        """Layers whose rows stages send home. Not in private runs: the drafter would need the text's own layers."""
        wanted = request.draft in ("auto", "lm") and request.speculation != "plain" and not request.private
        return self.target.taps if wanted else ()

    def _tap_book(self, request: RunRequest, opening: OpenRun, drafting: Drafting) -> TapBook | None:
        """Where the rows go that the run's drafter reads."""
        if not opening.taps or not isinstance(drafting.deferred, ReadsTaps):
            return None
        return TapBook(drafting.deferred, self.target.hidden, len(request.prompt_ids), _TAP_DTYPE)

    def _tail_drafts(self, request: RunRequest) -> bool:
        """Whether the tail should follow the run with the model's own head: it learns the run's token ids by that."""
        return (
            self.target.tail_drafts
            and request.draft == "auto"
            and request.speculation != "plain"
            and not request.private
        )

    async def _compiled(self, request: RunRequest) -> RunRequest:
        """The request with its constraint as it stands in the order, once it is known to compile, and the shaping with
        what it is counted from. Raises UsageError."""
        shaping = request.sampling.shaping
        if shaping is not None:
            ends = tuple(sorted({*self.target.eos, *request.stop_token_ids})) if shaping.least else ()
            shaping = replace(shaping, ends=ends, after=len(request.prompt_ids))
            request = replace(request, sampling=replace(request.sampling, shaping=shaping))
        constraint, compiler = request.sampling.constraint, self.target.compiler
        if constraint is None:
            return request
        if compiler is None:
            raise UsageError("expected a model whose tokenizer can spell grammars for an answer that is held to one")
        vocabulary = await asyncio.to_thread(lambda: compiler.vocabulary)
        assert vocabulary is not None
        ready = compiler.ready(constraint, len(request.prompt_ids))
        await compiler.held_soon(ready, request.prefix)
        return replace(request, sampling=replace(request.sampling, constraint=ready))

    def _held_to(self, request: RunRequest) -> Matcher | None:
        """A matcher of its own for the request's constraint, which was compiled."""
        constraint, compiler = request.sampling.constraint, self.target.compiler
        if constraint is None or compiler is None:
            return None
        return compiler.held(constraint, request.prefix)

    def _core(
        self, request: RunRequest, opening: OpenRun, drafting: Drafting, held_to: Matcher | None = None
    ) -> Speculation:
        key = (request.speculation, drafting.name, opening.wire, *(s.node for s in opening.stages))
        setting = Setting(mode=request.speculation, leaves=drafting.leaves)
        controller = self.memory.controller(
            key, lambda: Controller(self.router.costs(opening.stages, opening.wire), setting)
        )
        return Speculation(
            request.prompt_ids,
            opening.layout,
            StopRule(request.max_tokens, self.target.eos, request.ignore_eos, len(request.given)),
            controller,
            inline=drafting.inline,
            deferred=drafting.deferred is not None,
            calibrations=self.memory.calibrations,
            chunk=prompt_rows(len(request.prompt_ids) - opening.keep, len(opening.stages), controller.costs),
            held=opening.keep,
            guide=self._guide(request, held_to),
            tail=opening.drafts,
        )

    def _guide(self, request: RunRequest, held_to: Matcher | None) -> Guide | None:
        shaping = request.sampling.shaping
        if shaping is not None and (shaping.given or shaping.thought is not None):
            return DictatedGuide(shaping, self.target.vocab_size or _VOCAB)
        return ConstraintGuide(held_to) if held_to is not None else None

    def _result(self, request: RunRequest, loop: RunLoop, drafter: str, reason: FinishReason) -> RunResult:
        return summed_up(
            request,
            loop.tally,
            loop.core.counts,
            reason,
            text=loop.parts.text.text,
            tokens=loop.emitted,
            ring=loop.ring,
            drafter=drafter,
            run_id=loop.link.opening.run.hex(),
            cached=loop.parts.opening.keep,
        )

    def _as_signed(self, result: RunResult) -> RunResult:
        """The text of a receipt is what its tokens decode to by themselves, so that a replay finds the same: what was
        shown may be cut at a stop string, and begins as the end of the prompt wants it."""
        return replace(result, text=self.target.decoder.decode(result.token_ids))


def _route(stages: Sequence[StagePlan]) -> tuple[tuple[bytes, int, int], ...]:
    return tuple((stage.node, stage.first, stage.last) for stage in stages)


def _single(error: BaseException) -> BaseException:
    """The one error inside a group of one; task groups wrap what a run raises."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


__all__ = ["RunEngine", "Drafting", "TargetFacts"]

"""The loop of one run: frames out, answers in, drafts beside, another route when a stage is lost."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from draft.base import Drafter
from swarm.base.errors import CoverageError, PeerError, RunError
from swarm.base.nodeid import short_id
from swarm.ring.frame import Answer, Frame
from swarm.ring.opening import OpenRun, StagePlan
from swarm.run.answer_check import Sent, check_answer_untrusted, within_pass
from swarm.run.api import (
    CommittedTokens,
    FinishReason,
    PromptRead,
    Recovering,
    RingOpened,
    RunEvent,
    RunRequest,
    StageInfo,
)
from swarm.run.blame import Blame
from swarm.run.detokenizer import TextStream
from swarm.run.draft_steps import DraftSteps
from swarm.run.exclusions import Exclusions
from swarm.run.receipt import ReceiptPlan, RunAccount
from swarm.run.ring_client import Loss, RingLink, StageRefused
from swarm.run.routing import RunRoutes
from swarm.run.run_stats import Tally
from swarm.run.speculation import Speculation
from swarm.run.tap_book import TapBook
from swarm.run.tracer import Tracer

log = logging.getLogger(__name__)

KEEP_EVERY_S = 10.0
REPLAN_EVERY_S = 0.5
LEAST_DEADLINE_S = 4.0
DEADLINE_PASSES = 8.0


@dataclass(frozen=True)
class RunParts:
    """What a run is made of; built by the engine.

    events    what the reader of the run is told, in order
    receipts  how its receipt is made; None: it leaves none
    taps      what stages send to its drafter; None: it reads none
    """

    link: RingLink
    opening: OpenRun
    request: RunRequest
    routes: RunRoutes
    core: Speculation
    text: TextStream
    drafter: Drafter | None
    draft_thread: ThreadPoolExecutor
    events: asyncio.Queue[RunEvent | BaseException]
    vocab_size: int | None = None
    receipts: ReceiptPlan | None = None
    taps: TapBook | None = None

    def emit(self, event: RunEvent) -> None:
        """Tell the reader."""
        self.events.put_nowait(event)


class RunLoop:
    """Drives one run to its end. `run()` returns why it ended; the sums are in `tally`."""

    def __init__(self, parts: RunParts) -> None:
        self.parts = parts
        self.core = parts.core
        self.link = parts.link
        self.tally = Tally(time.monotonic())
        self.tracer = Tracer(self.tally.started, len(parts.core.tokens))
        self.ring: tuple[StageInfo, ...] = ()
        self.prompt_tokens = len(parts.core.tokens)
        self.emitted: list[int] = []
        self._absent = Exclusions()
        self._blame = Blame(self._absent, parts.routes)
        self._drafting: DraftSteps | None = None
        self._opening: asyncio.Task[StageRefused | None] | None = None
        self._in_flight: dict[int, Sent] = {}
        self._last_reason = ""
        self._announced = -1
        self._prompt_read = -1
        self._last_sent = time.monotonic()
        self._untapped: set[tuple[int, bytes]] = set()

    async def run(self) -> FinishReason:
        """Generate until the core is finished or the swarm is. Frees nothing: the desk closes the link."""
        parts = self.parts
        self._drafting = DraftSteps(self.core, parts.drafter, parts.draft_thread, parts.request, self.link.wake)
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                if not await self._form(parts.opening):
                    return "swarm_incomplete"
                reason = await self._generate()
                if self._opening is not None:
                    self._opening.cancel()
                return reason
        finally:
            self.tally.ended = time.monotonic()
            self._blame.close()

    async def settle(self) -> None:
        """Wait until the drafter is idle. After the ring is closed: a long draft step must not keep it working."""
        if self._drafting is not None:
            await self._drafting.settle()

    def flush(self) -> None:
        """Give out the text that was held back for a stop string that did not come."""
        rest, pieces = self.parts.text.finish(), self.parts.text.take_pieces()
        if rest or pieces:
            self.parts.emit(CommittedTokens((), rest, (), pieces=pieces))

    async def _generate(self) -> FinishReason:
        while self.core.finished is None:
            loss = await self._turn()
            if loss is not None and not await self._recover(loss):
                return "swarm_incomplete"
        return "stop" if self.core.finished == "stop" else "length"

    async def _turn(self) -> Loss | None:
        """Send what may go, draft what is wanted, then take in what came. Returns a loss instead of going on."""
        link = self.link
        try:
            while (planned := self.core.next_frame(time.monotonic())) is not None:
                opening = link.opening
                self._last_sent = time.monotonic()
                self._in_flight[planned.seq] = Sent(self._last_sent, np.flatnonzero(planned.rows.want), planned.drafts)
                self.tally.passes += 1
                self.tally.rows += len(planned.rows)
                self.tracer.sent(opening.epoch, planned, self._last_sent)
                frame = Frame(
                    opening.run, opening.epoch, planned.seq, planned.commits, planned.rows, drafts=planned.drafts
                )
                if self.parts.taps is not None:
                    first, count = self.parts.taps.ask(planned)
                    frame = replace(frame, tap_first=first, tap_rows=count)
                await link.send(frame)
        except StageRefused as error:
            return Loss(link.opening.epoch, 0, str(error))
        if time.monotonic() - self._last_sent > KEEP_EVERY_S:
            self._last_sent = time.monotonic()
            await link.keep()
        if self._drafting is not None:
            self._drafting.go_on()
        loss = await self._wait()
        self._take_taps()
        while link.answers and loss is None and self.core.finished is None:
            answer, at = link.answers.popleft()
            try:
                check_answer_untrusted(answer, self._in_flight, self.parts.vocab_size)
                self._take(answer, at)
            except PeerError as error:
                loss = Loss(link.opening.epoch, len(link.opening.stages) - 1, str(error))
        return loss

    async def _wait(self) -> Loss | None:
        """Until something happens; a pass that is overdue is a loss."""
        link = self.link
        now = time.monotonic()
        wakeup = self.core.next_wakeup()
        until = now + KEEP_EVERY_S if wakeup is None else max(now, wakeup)
        if self._in_flight:
            until = min(until, self._due())
        try:
            async with asyncio.timeout(max(0.0, until - now)):
                await link.wake.wait()
        except TimeoutError:
            pass
        link.wake.clear()
        if self._opening is not None and self._opening.done():
            refusal, self._opening = self._opening.result(), None
            if refusal is not None:
                return self._loss_of(refusal)
            self._announce()
        while link.losses:
            loss = link.losses.popleft()
            if loss.epoch == link.opening.epoch:  # of an older one it may name a newcomer's place
                return loss
        if link.head is not None and link.head.closed_reason is not None:
            return Loss(link.opening.epoch, 0, "the connection to the head was lost")
        if link.tail is not None and link.tail.closed_reason is not None:
            return Loss(link.opening.epoch, len(link.opening.stages) - 1, "the connection to the tail was lost")
        overdue = self._in_flight and time.monotonic() > self._due()
        if overdue and not link.answers:
            return Loss(link.opening.epoch, -1, f"no answer for {self._deadline_s():.1f} s")
        return None

    def _due(self) -> float:
        """When the oldest frame in flight is overdue. Each answer is to another frame, so this moves on or comes."""
        return min(sent.at for sent in self._in_flight.values()) + self._deadline_s()

    def _deadline_s(self) -> float:
        usual = max(self.tally.pass_ms[-16:], default=2000.0) / 1000.0
        return LEAST_DEADLINE_S + DEADLINE_PASSES * usual

    def _take(self, answer: Answer, at: float) -> None:
        sent = self._in_flight.pop(answer.seq, None)
        for seq in [s for s in self._in_flight if s < answer.seq]:
            del self._in_flight[seq]
        if sent is not None:
            answer = within_pass(answer, round((at - sent.at) * 1e6))
        if sent is not None and len(answer.token):
            self.tally.pass_ms.append((at - sent.at) * 1000.0)
            self.tally.took((at - sent.at) * 1000.0, answer.timings)
            if not self._in_flight:
                self.tally.lone_pass_ms.append((at - sent.at) * 1000.0)
        if self.parts.taps is not None:
            self.parts.taps.answered(answer.seq)
        self.tally.stage_us.append([computed for _, computed in answer.timings])
        stages = [(queued / 1000.0, computed / 1000.0) for queued, computed in answer.timings]
        drawn = [int(t) for t in answer.token]
        settled = self.core.on_answer(answer.seq, drawn, at, stages, answer.drafts, answer.drafts_us)
        self.tracer.answered(answer.seq, answer.timings, len(settled.tokens), settled.right, at)
        if self.tally.first_token is None:
            self._tell_prompt(self.prompt_tokens if settled.tokens else self.core.held, at)
        tokens, drafted, logprobs, added = [], [], [], []
        for token in settled.tokens:
            if self.tally.first_token is None:
                self.tally.first_token = at
            tokens.append(token.token)
            drafted.append(token.drafted)
            top = zip(answer.top_token[token.answer], answer.top_logprob[token.answer], strict=True)
            logprobs.append((float(answer.logprob[token.answer]), tuple((int(t), float(v)) for t, v in top)))
            if len(self.emitted) + len(tokens) <= len(self.parts.request.given):
                continue
            added.append(self.parts.text.feed(token.token))
            if self.parts.text.stopped:
                self.core.finish("stop")
                break
        self.emitted += tokens
        if tokens:
            self._announce_once()
            pieces = self.parts.text.take_pieces()
            self.parts.emit(CommittedTokens(tuple(tokens), "".join(added), tuple(drafted), tuple(logprobs), pieces))

    def _tell_prompt(self, read: int, at: float) -> None:
        """Tell how much of the prompt is read, where that is news."""
        if read > self._prompt_read:
            self._announce_once()
            self._prompt_read = read
            self.parts.emit(
                PromptRead(read, self.parts.opening.keep, self.prompt_tokens, max(0.0, at - self.tally.started))
            )

    def _announce_once(self) -> None:
        """The answer comes straight home, the news that the ring stands by every stage: tell that first."""
        if self._announced != self.link.opening.epoch:
            self._announce()

    def _take_taps(self) -> None:
        """Rows that the drafter reads. One that sends others than were asked is not listened to any more in this ring:
        that costs drafts, and nothing else."""
        book, link = self.parts.taps, self.link
        while link.taps:
            node, taps = link.taps.popleft()
            if book is None or (link.opening.epoch, node) in self._untapped:
                continue
            try:
                if book.take_untrusted(link.opening, node, taps):
                    self.core.tapped()
            except PeerError as error:
                self._untapped.add((link.opening.epoch, node))
                log.warning("node %s sends no fit taps, drafting without them: %s", short_id(node), error)

    # Forming and re-forming the ring

    async def _form(self, opening: OpenRun) -> bool:
        """Open a ring, planning again while stages refuse. False when patience ran out with layers missing."""
        deadline = time.monotonic() + self.parts.request.patience_s
        while True:
            now = time.monotonic()
            try:
                stages = tuple(self.parts.routes.plan(self._absent.now(now)))
            except CoverageError:
                if not self._absent:
                    raise
                if now > deadline:
                    if self.tally.first_token is None:
                        raise RunError(f"no ring could be formed: {self._last_reason}; try again later") from None
                    return False
                await asyncio.sleep(REPLAN_EVERY_S)
                continue
            opening = replace(opening, stages=stages, record=self._signed(stages))
            self.link.turn_to(opening)
            self.tracer.planned(opening.epoch, stages, opening.keep, now)
            told = asyncio.Event()
            tokens = self.core.tokens[: opening.keep]
            self._opening = self._group.create_task(_refusal(self.link.open(told.set, tokens)))
            self._opening.add_done_callback(lambda _: self.link.wake.set())
            waiter = self._group.create_task(told.wait())
            await asyncio.wait({self._opening, waiter}, return_when=asyncio.FIRST_COMPLETED)
            waiter.cancel()
            if told.is_set():
                return True
            refusal, self._opening = self._opening.result(), None
            assert refusal is not None
            self._last_reason = str(refusal)
            by_word = refusal.told and not refusal.busy
            await self._blame.named(opening.stages, refusal.node, self._progress, by_word, briefly=refusal.busy)
            opening = replace(opening, epoch=opening.epoch + 1)

    def _signed(self, stages: Sequence[StagePlan]) -> Mapping[str, Any] | None:
        """The order, or the plan that replaces the one before, for the opening."""
        receipts, request, link = self.parts.receipts, self.parts.request, self.link
        if receipts is None:
            return None
        account = link.account
        if account is None:
            opening = self.parts.opening
            account = link.account = RunAccount(receipts, request, stages, opening.wire, opening.run.hex())
            self._group.create_task(account.witness_order(stages))
        else:
            lost = self._absent.ever(stage.node for stage in link.opening.stages)
            account.replan(stages, self.core.drawn, lost, self._last_reason)
        return account.header

    def _loss_of(self, refusal: StageRefused) -> Loss:
        nodes = [stage.node for stage in self.link.opening.stages]
        index = nodes.index(refusal.node) if refusal.node in nodes else -1
        return Loss(self.link.opening.epoch, index, str(refusal), refusal.busy, told=refusal.told)

    async def _recover(self, loss: Loss) -> bool:
        """Leave the lost stage out and go on from what every stage is known to hold."""
        link, stages = self.link, self.link.opening.stages
        if loss.leaving and not self._blame.can_do_without(stages[loss.stage].node):
            return True  # it works until it goes, and then the run waits for another
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None
        self._last_reason, progress, seen = loss.reason, self._progress, time.monotonic()
        lost = frozenset[bytes]()
        if loss.crowded:
            self.core.ease()
            self._blame.crowded(stages, progress)
        elif 0 <= loss.stage < len(stages):
            lost = frozenset({stages[loss.stage].node})
            told, briefly = loss.told and not loss.busy, loss.busy or loss.leaving
            await self._blame.named(stages, stages[loss.stage].node, progress, told, briefly)
        else:
            lost = await self._blame.nobody_named(stages, progress)
        name = ", ".join(short_id(node) for node in lost) or "no stage in particular"
        self.parts.emit(Recovering(name, loss.reason, loss.leaving))
        self.tally.recoveries += not loss.leaving
        self.tracer.lost(loss.epoch, tuple(lost), loss.reason, loss.leaving, seen)
        if (stuck_s := self._blame.stuck_s(progress)) > self.parts.request.patience_s:
            times = self._blame.times(progress)
            raise RunError(
                f"the run made no progress for {stuck_s:.0f} s while its ring broke {times} times, the last time "
                f"because: {loss.reason}; try again, or --exclude nodes that were in it"
            )
        self.core.restart()
        if self.parts.taps is not None:
            self.parts.taps.restart()
        self._in_flight.clear()
        return await self._form(link.next_epoch(keep=self.core.held))

    @property
    def _progress(self) -> int:
        """Rises with every token, and with every part of the prompt that is known to be held."""
        return len(self.core.tokens) + self.core.held

    def _announce(self) -> None:
        """Note what the stages said of themselves, and tell the reader once per ring who forms it."""
        infos = []
        stages = self.link.opening.stages
        for index, (plan, said) in enumerate(zip(stages, self.link.said or ({},) * len(stages), strict=True)):
            infos.append(self.parts.routes.describe(plan, dict(said), self.tally.compute_ms(index, last=64) or 0.0))
        self.ring = tuple(infos)
        self.tracer.stands(self.link.opening.epoch, self.link.said, time.monotonic())
        if self._announced != self.link.opening.epoch:
            self._announced = self.link.opening.epoch
            self.parts.emit(RingOpened(self.link.opening.run.hex(), self.ring))
            if self._prompt_read < 0:
                self._tell_prompt(self.parts.opening.keep, self.tally.started)


async def _refusal(opening: Awaitable[None]) -> StageRefused | None:
    """None when the ring stands. A refusal is a result here: it must not end the run's task group."""
    try:
        await opening
    except StageRefused as refusal:
        return refusal
    return None

"""The requester's end of one ring: opened through the head, answered by the tail."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from receipts import ReceiptError
from swarm.base.errors import BusyError, PeerError, RunError
from swarm.model.rows import Commits, no_commits
from swarm.net.channel.message import Message
from swarm.net.channel.wire import encode_tensor
from swarm.net.peer import Peer
from swarm.ring.certain_rows import REPLAY_ROWS, certain_rows, leading_fresh
from swarm.ring.connect import StageConnector
from swarm.ring.frame import Answer, Frame, encode_commits, encode_frame
from swarm.ring.opening import OpenRun, RingSignal, StagePlan, encode_open, encode_release
from swarm.ring.receipt_log import measure, note_commits
from swarm.ring.taps import Taps
from swarm.ring.words import (
    MAX_HOLD_MS,
    AcceptedHome,
    ClosedHome,
    CloseRun,
    CollectedHome,
    CollectRun,
    HalfOfEdge,
    KeepRun,
    TailWord,
    encode_down,
)
from swarm.run.private_layers import PrivateEnds
from swarm.run.receipt import RunAccount, UnlikeStageError
from swarm.run.tap_book import whose_taps

log = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 30.0
GONE = "gone"
End = TypeVar("End", ClosedHome, CollectedHome)
MOST_TAPS = 256
CLOSE_TIMEOUT_S = 10.0


class StageRefused(RunError):
    """A stage could not take its part: `node` says which, so that the next plan leaves it out."""

    def __init__(self, node: bytes, text: str, busy: bool = False, told: bool = False) -> None:
        super().__init__(text)
        self.node = node
        self.busy = busy
        self.told = told
        """It is said so by the ring; else the requester found out for itself."""


@dataclass(frozen=True)
class Loss:
    """Stage number `stage` of epoch `epoch` is gone or failing; -1: nobody knows which.

    leaving  it still works
    crowded  it has no room for so much in flight, and works on with less
    told     it is said so by another stage, or by itself
    """

    epoch: int
    stage: int
    reason: str
    busy: bool = False
    leaving: bool = False
    crowded: bool = False
    told: bool = False


@dataclass
class RingLink:
    """One run's traffic with its ring. The desk feeds it; `wake` is set with whatever comes.

    taps      what stages sent for the drafter, beside who did; the oldest go
    said      what the stages said of themselves when the ring opened; empty until all have
    """

    connector: StageConnector
    opening: OpenRun
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    answers: deque[tuple[Answer, float]] = field(default_factory=deque)
    losses: deque[Loss] = field(default_factory=deque)
    taps: deque[tuple[bytes, Taps]] = field(default_factory=lambda: deque(maxlen=MOST_TAPS))
    said: tuple[Mapping[str, object], ...] = ()
    account: RunAccount | None = None
    private: PrivateEnds | None = None
    head: Peer | None = None
    tail: Peer | None = None
    _before: OpenRun | None = None
    _word: asyncio.Future[RingSignal] | None = None
    _ended: asyncio.Queue[ClosedHome | CollectedHome | None] = field(default_factory=asyncio.Queue)
    _pings: list[asyncio.Task[None]] = field(default_factory=list)
    _watches: list[asyncio.Task[None]] = field(default_factory=list)
    _closing: bool = False
    _warmth: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def turn_to(self, opening: OpenRun) -> None:
        """From now on only what belongs to the ring of `opening` counts; what came of the one before is forgotten.

        In one step with the record's turn to it: an answer that comes between the two would stand in both.
        """
        self._before, self.opening, self.said = self.opening, opening, ()
        self.answers.clear()
        self.losses.clear()
        self.taps.clear()

    async def open(self, told: Callable[[], None], tokens: Sequence[int]) -> None:
        """Dial head and tail and form the ring. Frames may follow once `told` is called, before all have answered.

        `tokens`: the committed tokens, for a head that must be replayed. Raises StageRefused.
        """
        opening = self.opening
        self._end_watches()
        if self.head is not None and self.head.id not in {stage.node for stage in opening.stages}:
            with contextlib.suppress(PeerError):
                self.head.post(encode_release(self._before or opening), flow=opening.run)
        if self.private is not None:
            self.private.restart()
            self.private.log = self.account.record.own_log if self.account is not None else None
        self._word = asyncio.get_running_loop().create_future()
        head, tail = opening.stages[0], opening.stages[-1]
        try:
            with _naming(head.node):
                self.head = await self.connector.connect(head)
            with _naming(tail.node):
                self.tail = await self.connector.connect(tail)
            self._watch()
            self._reach_taps()
            self._measure()
            with _naming(head.node):
                await self.head.send(encode_open(opening), flow=opening.run)
            if not opening.keep:
                told()
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                word = await self._word
        except TimeoutError:
            raise StageRefused(head.node, f"the ring did not open within {OPEN_TIMEOUT_S:g} s") from None
        if word.refused:
            raise StageRefused(word.refused, word.reason, word.busy, told=word.do != GONE)
        if len(word.said) != len(opening.stages):
            raise StageRefused(head.node, f"expected {len(opening.stages)} stages to answer, found {len(word.said)}")
        if self.account is not None:
            with _naming(head.node):
                self.account.opened(word.record or {})
        self.said = word.said
        if opening.keep:
            await self._replay_head(tokens)
            told()

    async def _replay_head(self, tokens: Sequence[int]) -> None:
        opening, newcomers = self.opening, leading_fresh(self.said)
        if not newcomers:
            return
        for seq, first in enumerate(range(0, opening.keep, REPLAY_ROWS)):
            last = min(first + REPLAY_ROWS, opening.keep)
            hidden = None
            if self.private is not None:
                hidden = encode_tensor(self.private.sent.committed(first, last), opening.wire)
                tokens = [-1] * opening.keep
            rows = certain_rows(opening.layout, first, tokens[first:last])
            frame = Frame(opening.run, opening.epoch, seq, no_commits(), rows, replay=newcomers - 1, hidden=hidden)
            await self._give(frame)

    def _watch(self) -> None:
        """Hear at once when the head or the tail is gone; their neighbours tell of the other stages."""
        for stage, peer in ((self.opening.stages[0], self.head), (self.opening.stages[-1], self.tail)):
            assert peer is not None
            self._watches.append(asyncio.create_task(self._gone(stage.node, peer)))

    def _reach_taps(self) -> None:
        """Be there for the stages in the middle that have rows for the drafter. Who cannot be reached sends none."""
        for number in whose_taps(self.opening):
            if 0 < number < len(self.opening.stages) - 1:
                self._watches.append(asyncio.create_task(self._reach(self.opening.stages[number])))

    async def _reach(self, stage: StagePlan) -> None:
        with contextlib.suppress(PeerError):
            await self.connector.connect(stage)

    def take_taps(self, node: bytes, taps: Taps) -> None:
        """Rows for the drafter came; those of another epoch are ignored."""
        if taps.epoch == self.opening.epoch:
            self.taps.append((node, taps))
            self.wake.set()

    async def _gone(self, node: bytes, peer: Peer) -> None:
        await peer.wait_closed()
        if self._word is not None and not self._word.done():
            reason = f"the connection was lost: {peer.closed_reason}"
            opening = self.opening
            self._word.set_result(RingSignal(GONE, opening.run, opening.epoch, refused=node, reason=reason))
        if self._closing:
            self._ended.put_nowait(None)
        self.wake.set()

    def _end_watches(self) -> None:
        for task in self._watches:
            task.cancel()
        self._watches.clear()

    def _measure(self) -> None:
        """Ping along the requester's two edges, and keep the first one warm, while this epoch lasts."""
        self.stop_pings()
        if self.head is not None:
            self._warmth.enter_context(self.head.warm())
        if self.account is not None and self.head is not None and self.tail is not None:
            record = self.account.record
            for peer, log in ((self.head, record.outbound), (self.tail, record.inbound)):
                self._pings.append(asyncio.create_task(measure(peer, log)))

    def stop_pings(self) -> None:
        """End the pings and the padding."""
        self._warmth.close()
        for task in self._pings:
            task.cancel()
        self._pings.clear()

    async def send(self, frame: Frame) -> None:
        """A frame to the head. Raises StageRefused when the head is gone."""
        await self._give(frame if self.private is None else await self.private.outward(frame))

    async def _give(self, frame: Frame) -> None:
        assert self.head is not None
        message = encode_frame(frame)
        with _naming(self.opening.stages[0].node):
            if self.account is not None:
                self.account.sent(frame.seq, message)
            await self.head.send(message, flow=self.opening.run)

    def take_answer(self, answer: Answer, message: Message) -> None:
        """An answer came in; one of an older epoch is ignored. Raises PeerError for one that nothing asked for."""
        if answer.epoch == self.opening.epoch:
            if self.account is not None:
                self.account.received(answer.seq, message)
            if self.private is not None:
                self.private.homeward(answer, self._take, lambda reason: self.lose_tail(answer.epoch, reason))
            else:
                self._take(answer)

    def lose_tail(self, epoch: int, reason: str) -> None:
        """What the tail of that epoch answered is not an answer: it is lost, and nobody else."""
        self.losses.append(Loss(epoch, len(self.opening.stages) - 1, reason))
        self.wake.set()

    def _take(self, answer: Answer) -> None:
        if answer.epoch == self.opening.epoch:
            self.answers.append((answer, time.monotonic()))
            self.wake.set()

    def take_word(self, word: RingSignal) -> None:
        """News came up the ring; that of an older epoch is ignored."""
        if word.epoch != self.opening.epoch:
            return
        if self._closing and word.do == "lost":
            self._ended.put_nowait(None)
            return
        if word.do == "half":
            if self.account is not None:
                self.account.record.closed_untrusted(word.record or {})
            return
        awaited = self._word is not None and not self._word.done()
        if word.do in ("lost", "leave") and not 0 <= word.stage < len(self.opening.stages):
            word = replace(word, stage=0)  # it came from the head, which passes on no such thing
        crowded = word.do == "lost" and word.busy
        if word.do == "lost" and awaited and not crowded:
            word = replace(word, refused=self.opening.stages[word.stage].node)
        elif word.do == "lost":
            self.losses.append(Loss(word.epoch, word.stage, word.reason, crowded=crowded, told=True))
        elif word.do == "leave" and not awaited:
            self.losses.append(Loss(word.epoch, word.stage, word.reason, leaving=True, told=True))
        if awaited and word.do != "leave" and not crowded:
            assert self._word is not None
            self._word.set_result(word)
        self.wake.set()

    async def keep(self) -> None:
        """Tell the stages that the run is alive though nothing is sent."""
        if self.head is not None and self.head.closed_reason is None:
            with contextlib.suppress(PeerError):
                await self.head.send(encode_down(KeepRun(self.opening.run)))

    def take_end(self, word: TailWord) -> None:
        """What all stages accepted, that the run is closed at every one, or what they signed. Raises PeerError."""
        if word.epoch != self.opening.epoch:
            return
        if not isinstance(word, AcceptedHome):
            self._ended.put_nowait(word)
        elif self.account is not None:
            try:
                self.account.opened(word.record or {})
            except UnlikeStageError as error:
                nodes = [stage.node for stage in self.opening.stages]
                stage = nodes.index(error.node) if error.node in nodes else -1
                self.losses.append(Loss(self.opening.epoch, stage, str(error)))
                self.wake.set()

    async def close(self, until: int, commits: Commits, collect: bool, hold_s: float = 0.0) -> None:
        """End the run at every stage: memory is freed when this returns. A ring that is already gone says nothing.

        `until` is the position after the last token that the run keeps, `commits` what no frame carried any more.
        With `collect` the stages' statements are brought home for the receipt. With `hold_s` the stages keep the
        session so many seconds, for a run that begins with the same tokens.
        """
        self.stop_pings()
        if self.head is None or self.tail is None:
            return
        self._closing = True
        if self.private is not None and self.private.log is not None:
            note_commits(self.private.log.tail, commits)
        account = self.account if collect else None
        record = account.record.close_header(until) if account is not None else None
        hold_ms = min(int(hold_s * 1000), MAX_HOLD_MS)
        word = CloseRun(self.opening.run, encode_commits(commits), record, self.opening.epoch, hold_ms)
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self.head.send(encode_down(word), flow=self.opening.run)
                closed = await self._next_end(ClosedHome)
                if account is not None:
                    await self._collect(account, closed)
        except (PeerError, ReceiptError, TimeoutError) as error:
            log.info("the ring did not close in good order: %s", error)
        finally:
            self._end_watches()

    async def _collect(self, account: RunAccount, closed: ClosedHome) -> None:
        assert self.head is not None and self.tail is not None
        run = self.opening.run
        half = account.record.closing_untrusted(closed.record or {})
        await self.tail.send(encode_down(HalfOfEdge(run, half)), flow=run)
        await self.head.send(encode_down(CollectRun(run, account.record.collect_header())), flow=run)
        account.record.collected_untrusted((await self._next_end(CollectedHome)).record or {})

    async def _next_end(self, what: type[End]) -> End:
        while True:
            word = await self._ended.get()
            if word is None:
                raise PeerError("a stage is gone")
            if isinstance(word, what):
                return word

    def next_epoch(self, **changes: Any) -> OpenRun:
        """The opening of the next epoch of the same run."""
        return replace(self.opening, epoch=self.opening.epoch + 1, base=b"", **changes)


@contextlib.contextmanager
def _naming(node: bytes) -> Iterator[None]:
    """Turns the failure of a peer into the refusal of one stage."""
    try:
        yield
    except BusyError as error:
        raise StageRefused(node, str(error), busy=True) from error
    except PeerError as error:
        raise StageRefused(error.node if isinstance(error, UnlikeStageError) else node, str(error)) from error

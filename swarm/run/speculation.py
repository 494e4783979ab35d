"""One run's tokens in flight: what to send next, what answers mean, what to draft.

The core of the requester. It owns the KV slots of the run's session on every stage, and is pure: no clock, no I/O,
no model; `now` is in seconds. A thin shell moves frames, answers and draft steps (see `Speculation`).

How slots stay right, with several frames in flight and no rollback message. Links are FIFO, so every stage applies
the frames in the order in which they were made here; each frame applies its commits, then writes its rows, then
attends. Call the tokens known to be true `tokens`, and the leading ones whose KV sits (by the frames made so far) in
committed slots `placed`.

1. A frame with drafted rows first brings `placed` up to all of `tokens`: tokens that were drafted and sent are
   committed out of their scratch slots, the others (prompt, corrected tokens) go as certain rows.
2. A drafted row sees the prefix `placed` and the scratch slots of its path below the root, which were all sent in this
   frame or before and, being live, were not reused. So it sees exactly its own path.
3. A slot is taken by one live node. It is freed when its node is dropped (nothing made later mentions it) or when its
   commit is put in a frame (everything later sees the committed copy). Rows that did see the slot are in earlier
   frames, or earlier rows of the path, and by FIFO are done before it is written again.

Plain, chain, tree and stream are settings of this same code.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from draft.base import Drafter, DraftStep, Expansion
from draft.tree import Node, TokenTree
from swarm.base.errors import PeerError
from swarm.model.rows import Commits, Layout
from swarm.ring.frame import Drafts
from swarm.ring.guide import Guide
from swarm.run.controller import Controller
from swarm.run.echo_proposals import Echoing
from swarm.run.planned_frame import Counts, Flight, PlannedFrame, Settled, SettledToken, StopRule, check_run, lay_rows
from swarm.run.proposals import DEFERRED, ECHO, INLINE, Calibrations, Proposals, fresh_calibrations

__all__ = ["Settled", "Counts", "StopRule", "PlannedFrame", "Speculation", "SettledToken"]

_UNMEASURED_FRAMES = 3
MOST_ROWS = 8192
"""Rows in flight, certain ones too: half of what every stage lets wait, so that none ever has to refuse one. A ring of
ten stages is kept busy by a tenth of it."""
MOST_FRAMES = 128


class Speculation:
    """The tokens of one run.

    The shell, whenever something happened or `next_wakeup` came: calls `next_frame(now)` until it gives None and sends
    each frame; passes each answer to `on_answer`; when no draft step is out, calls `draft_work(now)`, runs it in a
    thread of its own and passes the result to `drafted`. `inline` is a drafter cheap enough to be asked on the spot
    (suffix); `deferred` says whether there is one behind `draft_work`. Both must have been begun with the same prompt.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        layout: Layout,
        ending: StopRule,
        controller: Controller,
        *,
        inline: Drafter | None = None,
        deferred: bool = False,
        calibrations: Calibrations | None = None,
        chunk: int = 256,
        held: int = 0,
        guide: Guide | None = None,
        tail: bool = False,
    ) -> None:
        """`layout` of the session; `chunk` most prompt rows of a frame; `held` prompt tokens that all stages hold;
        `guide` what the answer is held to; `tail`: the tail drafts where it is asked to.

        Raises UsageError for an empty prompt, one that does not fit the context, or max_tokens under 1.
        """
        check_run(prompt, layout, ending)
        self.tokens = list(prompt)
        self.counts = Counts()
        self.finished: str | None = None
        self._layout = layout
        self._ending = ending
        self._control = controller
        self._setting = controller.setting
        self._chunk = chunk
        self._prompt = len(prompt)
        # The last token is never sent; it may be one position past the context.
        self._end = min(len(prompt) + ending.max_tokens, layout.context + 1)
        self._tree = self._planted(prompt[-1])
        plain = self._setting.mode == "plain"
        calibrations = calibrations or fresh_calibrations()
        self._guide = guide
        self._proposals = Proposals(
            self._tree, controller, calibrations, None if plain else inline, deferred and not plain, guide, tail
        )
        self._behind: Node | None = None
        """The node whose answer became the root last."""
        drafts = deferred or inline is not None or tail
        self._echoing = Echoing(self._tree, self.tokens, controller, calibrations[ECHO], drafts, guide)
        self._placed = min(held, len(prompt) - 1)
        self._answered = self._placed
        self._moves: list[tuple[int, int]] = []
        self._right: list[int] = []
        self._owed: deque[tuple[Node, Node]] = deque()
        """Forced tokens (the node before, its own) that the tail has not drawn yet, in order."""
        self._closed = False
        """The last token is known, though it is not drawn yet: it is not sent, and nothing is drafted after it."""
        self._flights: deque[Flight] = deque()
        self._rows_in_flight = 0
        self._most_rows, self._most_frames = MOST_ROWS, MOST_FRAMES
        self._seq = 0
        self._next_send = 0.0
        self._settled = -1.0
        # Whether what is unsent is worth a frame; None when something changed since it was weighed.
        self._worth: bool | None = None
        self._force()
        self._supply()

    def _planted(self, root: int) -> TokenTree:
        """The tree of what may follow the prompt, whose last token is the root."""
        return TokenTree(
            root,
            self._prompt - 1,
            self._layout.scratch,
            drafters=(INLINE, DEFERRED),
            horizon=self._end - 2,
            ends=frozenset() if self._ending.ignore_stop else self._ending.stop,
            narrow=self._setting.mode == "chain",
            refiner=ECHO,
        )

    # Sending

    def next_frame(self, now: float) -> PlannedFrame | None:
        """The frame to send now, or None. Call again until None."""
        if self.finished is not None:
            return None
        if self._full():
            return None
        certain = self._certain()
        if certain == 0 and not self._may_speculate(now):
            return None
        if certain > 0 and self._placed >= self._prompt - 1 and self._control.waits:
            if self._proposals.better_wait(now):
                return None
        self._worth = None
        commits = self._take_moves()
        rows = self._certain_rows(min(certain, self._chunk))
        nodes: list[Node] = []
        if self._placed == len(self.tokens):
            nodes = self._tree.take(self._room(), self._control.row_floor)
        return self._frame(now, commits, rows, nodes)

    def next_wakeup(self) -> float | None:
        """When `next_frame` may have something to send though nothing else happens; None: only after an event.

        Always later than the `now` for which `next_frame` gave None.
        """
        if self.finished is not None or self._full() or self._certain() > 0:
            return None
        if self._closed or self._pausing() or not self._worth_sending():
            return None
        return self._next_send

    def _certain(self) -> int:
        """Tokens known to be true that no frame placed yet and no commit will."""
        return len(self.tokens) - self._closed - self._placed - len(self._moves)

    def _full(self) -> bool:
        """Whether as much is in flight as stages let wait. The next frame must fit; alone, one always does."""
        if not self._flights:
            return False
        next_rows = min(self._certain(), self._chunk) + self._room()
        return len(self._flights) >= self._most_frames or self._rows_in_flight + next_rows > self._most_rows

    def ease(self) -> None:
        """A stage had no room for what was in flight: keep it to half of that from now on."""
        self._most_rows = max(1, min(self._most_rows, self._rows_in_flight) // 2)
        self._most_frames = max(1, min(self._most_frames, len(self._flights)) // 2)

    def _may_speculate(self, now: float) -> bool:
        return not self._closed and not self._pausing() and now >= self._next_send and self._worth_sending()

    def _pausing(self) -> bool:
        most = 0 if self._control.waits else _UNMEASURED_FRAMES if not self._control.measured else len(self._flights)
        return len(self._flights) > most

    def _worth_sending(self) -> bool:
        if self._worth is None:
            self._worth = self._weigh()
        return self._worth

    def _weigh(self) -> bool:
        room = min(self._room(), self._tree.free_slots + len(self._moves))
        chances = self._tree.unsent(room, self._control.row_floor)
        return bool(chances) and sum(chances) >= self._control.frame_floor

    def _room(self) -> int:
        if self._setting.mode == "plain":
            return 0
        return max(0, min(self._setting.rows, self._setting.in_flight - self._rows_in_flight))

    @property
    def rows_in_flight(self) -> int:
        """Rows that were sent and are not answered."""
        return self._rows_in_flight

    def closing_commits(self) -> Commits:
        """What was accepted and no frame has committed: when the run is over, its closing carries it."""
        return self._take_moves()

    def _take_moves(self) -> Commits:
        moves = np.array(self._moves, np.uint32).reshape(-1, 2)
        for slot, _ in self._moves:
            self._tree.release(slot)
        self._placed += len(self._moves)
        self._moves = []
        return Commits(moves[:, 0].copy(), moves[:, 1].copy())

    def _certain_rows(self, count: int) -> range:
        rows = range(self._placed, self._placed + count)
        self._placed += count
        return rows

    def _frame(self, now: float, commits: Commits, certain: range, nodes: list[Node]) -> PlannedFrame:
        root, n = self._tree.root, len(certain) + len(nodes)
        undrawn = self._undrawn(certain)
        wanted = [*undrawn, *nodes]
        rows = lay_rows(self._layout, self.tokens, certain, root, nodes, len(wanted))
        for node in undrawn:
            node.sent = True
        # The pass of a long prompt, and of what queues behind it, says nothing about passes of a few rows.
        long = len(certain) > max(1, len(undrawn))
        timed = not long and not any(before.long for before in self._flights)
        flight = Flight(self._seq, now, n, tuple(wanted), self._placed, not self._flights, long, timed)
        self._flights.append(flight)
        self._rows_in_flight += n
        self._seq += 1
        self._next_send = max(now, self._next_send) + self._control.interval_ms(n) / 1000.0
        self.counts.add(
            sum(1 for p in certain if p < self._prompt), n, [node.position - root.position for node in nodes]
        )
        drafts = self._proposals.ask_tail(now) if wanted else 0
        parents = tuple(node.parent.id if node.parent is not None else root.id for node in nodes)
        return PlannedFrame(flight.seq, commits, rows, drafts, tuple(node.id for node in nodes), parents)

    def _undrawn(self, certain: range) -> list[Node]:
        """Of certain rows, those after which the tail has not drawn yet: the last token's, and forced ones' before it.

        All tokens are drawn by a tail, forced ones too: so a receipt says of each who drew it.
        """
        before = [old for old, _ in self._owed] + [self._tree.root]
        return [before[position - before[0].position] for position in certain if position >= before[0].position]

    # Answers

    def on_answer(
        self,
        seq: int,
        answers: Sequence[int],
        now: float,
        stages: Sequence[tuple[float, float]] | None = None,
        drafts: Drafts | None = None,
        drafts_us: int = 0,
    ) -> Settled:
        """The tail's answers for the wanted rows of frame `seq`, in order of rows.

        `stages`: (queued, computed) ms of the frame at each stage, where they tell; better than latency alone.
        `drafts`: what the tail expects further on, found in `drafts_us` microseconds.
        Frames are answered in order; one without wanted rows may be passed over. An answer to a frame that a restart
        forgot is ignored. Raises PeerError when the number of answers is wrong or a frame was skipped.
        """
        if self.finished is not None or not self._flights or seq < self._flights[0].seq:
            return Settled()
        while self._flights[0].seq < seq and not self._flights[0].wanted and len(self._flights) > 1:
            self._rows_in_flight -= self._flights.popleft().rows
        flight = self._flights[0]
        if flight.seq != seq:
            raise PeerError(f"expected the answer to frame {flight.seq}, found one to frame {seq}")
        if len(answers) != len(flight.wanted) or any(token < 0 for token in answers):
            raise PeerError(f"frame {seq} wants {len(flight.wanted)} tokens, found {len(answers)}")
        self._flights.popleft()
        self._rows_in_flight -= flight.rows
        self._worth = None
        self._answered = max(self._answered, flight.placed)
        if flight.timed:
            self._control.answered((now - flight.sent) * 1000.0, flight.rows, flight.alone, stages)
        index = {}
        for i, (node, token) in enumerate(zip(flight.wanted, answers, strict=True)):
            if node.answer not in (-1, token):
                raise PeerError(
                    f"expected token {node.answer} at position {node.position + 1}, which the constraint of this run "
                    f"leaves alone, found {token}: the tail does not hold to it"
                )
            node.answer = token
            index[node.id] = i
            self._echoing.heard(node, token)
        drafted = drafts.row - (flight.rows - len(flight.wanted)) if drafts is not None else -1
        settled = self._settle(index, now)
        if drafts is not None and 0 <= drafted < len(flight.wanted) and self._behind is flight.wanted[drafted]:
            if self.finished is None and not self._owed:
                self._proposals.from_tail(self._tree.root, drafts, drafts_us)
                self._supply()
        return settled

    def _settle(self, index: dict[int, int], now: float) -> Settled:
        tokens = []
        while self._owed and self._owed[0][0].id in index:
            old, new = self._owed.popleft()
            tokens.append(SettledToken(new.token, new.position, True, index[old.id]))
            self.finished = self._last(new)
        if not self._owed and not self._closed:
            for old, new in self._tree.advance():
                self._moved(old, new)
                tokens.append(SettledToken(new.token, new.position, new.sent, index[old.id]))
                self.finished = self._last(new)
                if self.finished:
                    break
        if self.finished is None:
            self._force()
        if tokens:
            if self._settled >= 0:
                self._control.committed(len(tokens), (now - self._settled) * 1000.0, self._proposals.coverage)
            self._settled = now
        self._proposals.settled()
        self._supply()
        right, self._right = tuple(self._right), []
        return Settled(tuple(tokens), self.finished, right)

    def _moved(self, old: Node, new: Node) -> None:
        """The root moved on to `new`."""
        self._behind = old
        self._proposals.advanced(old, new)
        if self._guide is not None:
            self._guide.advanced(new.token)
        self.tokens.append(new.token)
        if new.slot >= 0:
            self._moves.append((new.slot, new.position))
            new.slot = -1
            self.counts.accept(new.depth)
            self._right.append(new.id)

    def _last(self, node: Node) -> str | None:
        """Why the run ends with the token of `node`; None when it goes on."""
        given = node.position < self._prompt + self._ending.given
        if node.token in self._ending.stop and not self._ending.ignore_stop and not given:
            return "stop"
        return "length" if node.position + 1 >= self._end else None

    def _force(self) -> None:
        """Tokens that the order leaves no choice about are known at once, and go to the ring as certain rows."""
        while self._guide is not None and not self._closed and self._tree.root.answer < 0:
            forced = self._guide.after(self._tree, self._tree.root).forced
            if forced < 0:
                return
            self._tree.root.answer = forced
            for old, new in self._tree.advance():
                self._moved(old, new)
                self._owed.append((old, new))
                self._closed = self._last(new) is not None

    @property
    def drawn(self) -> int:
        """Leading tokens, prompt included, that are given or were drawn by a tail."""
        return len(self.tokens) - len(self._owed)

    def finish(self, reason: str) -> None:
        """The shell ends the run (a stop string, a cancel): nothing is sent any more."""
        self.finished = self.finished or reason

    # Drafting

    def draft_work(self, now: float) -> DraftStep | None:
        """A step for the deferred drafter, or None when it has nothing worth doing or a step is out already."""
        return self._proposals.work(now) if self.finished is None and not self._closed else None

    def drafted(self, expansions: Sequence[Expansion], now: float) -> None:
        """The result of the step that `draft_work` gave."""
        self._proposals.drafted(expansions, now)
        self._supply()

    def tapped(self) -> None:
        """Rows that the deferred drafter reads have come: what it could not serve may be asked again."""
        self._proposals.reask()

    def drafter_failed(self) -> None:
        """The deferred drafter is gone: the run goes on without it."""
        self._proposals.failed()

    def _supply(self) -> None:
        self._worth = None
        if self.finished is None and not self._closed:
            self._proposals.spell_root()
            self._echoing.propose()
            self._proposals.ask_inline()

    # Recovery

    @property
    def held(self) -> int:
        """Leading tokens whose committed KV every stage is known to hold: those placed by answered frames."""
        return self._answered

    def restart(self, held: int | None = None) -> None:
        """The ring was rebuilt and all in flight is lost; stages hold the first `held` tokens (default: `self.held`).

        What is certain beyond them goes again as certain rows; the tree stays, all unsent.
        """
        self._placed = max(0, min(self._answered if held is None else held, len(self.tokens) - 1))
        self._answered = self._placed
        self._moves.clear()
        self._flights.clear()
        self._rows_in_flight = 0
        self._next_send = 0.0
        self._settled = -1.0
        self._worth = None
        self._tree.forget_sent()

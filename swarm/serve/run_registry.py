"""What the gateway remembers of its runs: the active ones, and the last few with their receipts. No prompt, no text."""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from swarm.run.api import (
    CommittedTokens,
    Finished,
    Recovering,
    RingOpened,
    RunEvent,
    RunResult,
    StageInfo,
    WaitingForCoverage,
)

log = logging.getLogger(__name__)
RunState = Literal["queued", "opening", "waiting", "answering", "recovering", "done", "failed", "cancelled", "refused"]
KEPT = 200
_WINDOW_S = 3.0


@dataclass
class RunNote:
    """One run. Times are Unix seconds for `started`, seconds of the monotonic clock for the rest.

    `user` asked for it and alone may have its receipt, which tells what was said. `awaited`: what it waits or waited
    for before there was a route.
    """

    key: int
    user: str
    started: float
    prompt_tokens: int
    max_tokens: int
    request: str = ""
    """Id of the HTTP request that it answers."""
    state: RunState = "queued"
    run_id: str = ""
    tokens: int = 0
    drafted: int = 0
    ring: tuple[StageInfo, ...] = ()
    awaited: str | None = None
    lost: str | None = None
    recoveries: int = 0
    error: str | None = None
    result: RunResult | None = None
    recent: deque[tuple[float, int]] = field(default_factory=deque)

    def forget(self, now: float) -> None:
        """Drop what came before the last seconds."""
        while self.recent and self.recent[0][0] < now - _WINDOW_S:
            self.recent.popleft()

    def rate(self, now: float) -> float:
        """Tokens per second: of the whole run once it is over, else over the last seconds."""
        if self.result is not None:
            return self.result.tokens_per_second
        self.forget(now)
        if len(self.recent) < 2:
            return 0.0
        span = now - self.recent[0][0]
        return sum(count for _, count in self.recent) / span if span > 0 else 0.0


class RunBook:
    """State changes through `begin`, `apply` and `end` alone; watchers are called after each."""

    def __init__(self) -> None:
        self.active: OrderedDict[int, RunNote] = OrderedDict()
        self.past: deque[RunNote] = deque(maxlen=KEPT)
        self._watchers: list[Callable[[], None]] = []
        self._next = 1

    def watch(self, changed: Callable[[], None]) -> None:
        self._watchers.append(changed)

    def _changed(self) -> None:
        for changed in self._watchers:
            changed()

    def begin(self, user: str, prompt_tokens: int, max_tokens: int, wall: float, request: str = "") -> RunNote:
        note = RunNote(self._next, user, wall, prompt_tokens, max_tokens, request)
        self._next += 1
        self.active[note.key] = note
        self._changed()
        return note

    def apply(self, note: RunNote, event: RunEvent, now: float) -> None:
        match event:
            case WaitingForCoverage(reason):
                note.state, note.awaited = "waiting", reason
            case RingOpened(run_id, ring):
                note.run_id, note.ring, note.state = run_id, ring, "answering"
            case CommittedTokens(tokens, _, drafted):
                note.state = "answering"
                note.tokens += len(tokens)
                note.drafted += sum(drafted)
                note.recent.append((now, len(tokens)))
                note.forget(now)
            case Recovering(lost, _, leaving):
                note.state, note.lost = "recovering", lost
                note.recoveries += not leaving
            case Finished(result):
                # Of a long prompt the tokens alone are a megabyte, and hundreds of runs are remembered.
                note.result = replace(result, text="", token_ids=(), prompt_token_ids=())
                note.ring = result.ring
                note.run_id = result.run_id or note.run_id
                note.tokens = result.new_tokens
                note.state = "failed" if result.finish_reason == "swarm_incomplete" else "done"
                if result.receipt_unwritten:
                    note.error = "the receipt could not be written; the gateway's log says why"  # with its path
                    log.warning("run %s: %s", note.run_id, result.receipt_unwritten)
        self._changed()

    def end(self, note: RunNote, error: str | None = None) -> None:
        """The run is over, however it ended. One that was refused a turn never was a run, and is forgotten."""
        if note.result is None:
            refused = note.state == "queued"
            note.state = ("refused" if refused else "failed") if error else "cancelled"
            note.error = error
        self.active.pop(note.key, None)
        note.recent.clear()
        if note.state != "refused":
            self.past.appendleft(note)
        self._changed()

    def of(self, user: str) -> frozenset[int]:
        """Keys of the runs that this user asked for."""
        return frozenset(note.key for note in (*self.active.values(), *self.past) if note.user == user)

    def find(self, run_id: str) -> RunNote | None:
        notes = [*self.active.values(), *self.past]
        return next((note for note in notes if note.run_id and note.run_id == run_id), None)

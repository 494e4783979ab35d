"""What the requester saw of a run, pass by pass: kept beside the receipt as RECEIPT.trace.json, and drawn from there.

A receipt holds sums, and what others can check. When each pass went out and came home, which drafted rows were right
and how a loss was healed is the requester's own knowledge: signed by nobody, sent to nobody. No token and no text is in
it.

Times are microseconds since the run began, by one monotonic clock. Of a long run the first and the last passes are
kept; the sums are over all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from receipts import ReceiptError
from receipts.format.codec import Count, Digest, Hex, Key, Many, Micros, Range, Text, decode_untrusted, encode
from receipts.format.opening import Epoch, PlannedStage, Position
from swarm.base.errors import UsageError

TRACE = ".trace.json"
FORMAT, VERSION = "wanswarm-run-trace", 1
MOST_ENDS = 2048
"""Passes kept of a run's beginning, and as many of its end: some 2 MB of file at most."""
MOST_RINGS = 256
MOST_ROWS = 16_384
MOST_STAGES = 128
MAX_BYTES = 64 << 20

Rows = Many(0, MOST_ROWS)
Stages = Many(0, MOST_STAGES)


@dataclass(frozen=True)
class TracedPass:
    """One pass. Certain rows are at `certain` positions from `first` on; the drafted ones are behind them.

    answered_us  when its answer came, or that of a later pass where it has none of its own; None: it was lost
    rows         ids of drafted rows, whose `parents` are ids too, at `positions`; a row sent again has its old id
    right        ids of those that turned out to be what the model says
    queued_us    how long it waited at each stage, and `computed_us` was computed by it, by their words; empty where
                 it has no answer of its own
    tokens       how many its answer made certain
    """

    ring: Epoch
    seq: Count
    sent_us: Micros
    answered_us: Micros | None
    first: Position
    certain: Count
    rows: Annotated[tuple[Count, ...], Rows]
    parents: Annotated[tuple[Count, ...], Rows]
    positions: Annotated[tuple[Position, ...], Rows]
    right: Annotated[tuple[Count, ...], Rows]
    queued_us: Annotated[tuple[Micros, ...], Stages]
    computed_us: Annotated[tuple[Micros, ...], Stages]
    tokens: Count


@dataclass(frozen=True)
class TracedRing:
    """A plan that the run turned to. `stands_us`: when every stage had said yes; None: it never stood.

    kept   leading positions whose keys and values the stages were to have already
    fresh  numbers of the stages that had none of them, and were given them again
    """

    ring: Epoch
    planned_us: Micros
    stands_us: Micros | None
    kept: Position
    stages: Annotated[tuple[PlannedStage, ...], Many(1, MOST_STAGES)]
    fresh: Annotated[tuple[Annotated[int, Range(0, 127)], ...], Stages]


@dataclass(frozen=True)
class TracedLoss:
    """Stages of ring `ring` were lost, or are leaving.

    seen_us        when the requester knew, `heard_us` when the last answer before had come (or the run begun)
    passes         that were under way and lost, with `rows` rows
    again          rows sent after it that had been sent before
    next_token_us  when the answer went on; None: it never did
    """

    ring: Epoch
    seen_us: Micros
    heard_us: Micros
    nodes: Annotated[tuple[Key, ...], Stages]
    reason: Annotated[str, Text(1000)]
    leaving: bool
    passes: Count
    rows: Count
    again: Count
    next_token_us: Micros | None


@dataclass(frozen=True)
class RunTrace:
    """One run. `order` is the digest of the order in its receipt; sums are over all passes, kept here or not."""

    format: Annotated[str, Text(32, (FORMAT,))]
    version: Annotated[int, Range(VERSION, VERSION)]
    run: Annotated[str, Hex(16)]
    order: Digest
    prompt_tokens: Count
    new_tokens: Count
    first_token_us: Micros | None
    elapsed_us: Micros
    passes_sent: Count
    rows_sent: Count
    drafted: Count
    accepted: Count
    rings: Annotated[tuple[TracedRing, ...], Many(1, MOST_RINGS)]
    losses: Annotated[tuple[TracedLoss, ...], Many(0, MOST_RINGS)]
    passes: Annotated[tuple[TracedPass, ...], Many(0, 2 * MOST_ENDS)]

    @property
    def left_out(self) -> int:
        """Passes that are in the sums alone."""
        return self.passes_sent - len(self.passes)

    def to_bytes(self) -> bytes:
        """The file."""
        return json.dumps(encode(self), separators=(",", ":"), sort_keys=True).encode() + b"\n"


def parse_trace(data: bytes) -> RunTrace:
    """Read a trace. Raises UsageError, which says what is wrong with the file."""
    try:
        trace = decode_untrusted(RunTrace, json.loads(data), "trace")
    except (ValueError, RecursionError, ReceiptError) as error:
        raise UsageError(f"expected a trace of a run, found something else ({error}); remove the file") from error
    if wrong := _contradiction(trace):
        raise UsageError(f"expected a trace of a run that agrees with itself, found {wrong}; remove the file")
    return trace


def read_trace(receipt: Path) -> RunTrace | None:
    """The trace beside a receipt; None where there is none. Raises UsageError for one that cannot be read."""
    path = receipt.with_suffix(TRACE)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"expected a trace of at most {MAX_BYTES} bytes at {path}, found more; remove the file")
    return parse_trace(data)


def _contradiction(trace: RunTrace) -> str:
    """What makes it impossible to draw; empty when nothing does."""
    rings = {ring.ring: len(ring.stages) for ring in trace.rings}
    if trace.left_out < 0:
        return "more passes than were sent"
    for one in trace.passes:
        stages = rings.get(one.ring)
        if stages is None:
            return f"a pass of ring {one.ring}, which it does not tell of"
        if not len(one.rows) == len(one.parents) == len(one.positions):
            return "rows without a place"
        if not set(one.right) <= set(one.rows):
            return "a right row that was not sent"
        if len(one.queued_us) != len(one.computed_us) or len(one.computed_us) not in (0, stages):
            return f"a pass with times of {len(one.computed_us)} stages in a ring of {stages}"
        if one.answered_us is not None and one.answered_us < one.sent_us:
            return "an answer before its pass"
    return ""


def disagreement(trace: RunTrace, order: str, draft: dict[str, int]) -> str:
    """Why a trace does not belong to the receipt with that order and those sums (see `for_receipt`); empty: it does."""
    if trace.order != order:
        return "it is of another run"
    sums = {
        "passes": trace.passes_sent,
        "rows_sent": trace.rows_sent,
        "drafted": trace.drafted,
        "accepted": trace.accepted,
        "recoveries": sum(not loss.leaving for loss in trace.losses),
    }
    for name, count in sums.items():
        if name in draft and draft[name] != count:
            return f"the receipt counts {draft[name]} for {name}, it {count}"
    return ""

"""Statements made when a ring closes: edges by both ends, each stage's end, the tail's tokens, close and witness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from receipts.format.codec import Count, Digest, Key, Many, Micros, Name, Range, Text
from receipts.format.opening import Epoch, Layer, Position, Software

MAX_SAMPLES = 64
MAX_STATEMENTS = 4096
MAX_HISTORY = 64
EDGE_KINDS = ("direct", "reverse", "punched", "http", "relay", "local")


@dataclass(frozen=True)
class RttSeries:
    """Round-trip times that one end measured, in microseconds, each ping under a fresh nonce.

    `count` pings were made; `min_us` and `median_us` are over all of them, the median of more than 4,096 over evenly
    spaced ones; `samples_us` are at most 64 of them in the order they were made.
    """

    count: Count
    min_us: Micros
    median_us: Micros
    samples_us: Annotated[tuple[Micros, ...], Many(0, MAX_SAMPLES)]


@dataclass(frozen=True)
class Edge:
    """One end's account of one directed edge. Both ends sign one; everything but `end`, `observed` and `kind` is equal.

    Edges of an epoch are numbered in the direction of travel: 0 is requester to head, n is tail to requester.
    """

    kind: ClassVar[str] = "edge"
    epoch: Epoch
    plan: Digest
    index: Annotated[int, Range(0, 128)]
    end: Annotated[str, Text(8, ("sender", "receiver"))]
    sender: Key
    receiver: Key
    link: Annotated[str, Text(8, EDGE_KINDS)]
    """How the two reached each other."""
    sender_rtt: RttSeries
    receiver_rtt: RttSeries
    frames: Count
    bytes: Count
    root: Digest
    """Merkle root over what crossed, leaf 0 being a salt that both ends know."""
    observed: Digest | None
    """Salted digest of the other end's address as this end sees it."""


@dataclass(frozen=True)
class Span:
    """Positions [first, last)."""

    first: Position
    last: Position


@dataclass(frozen=True)
class History:
    """Where a stage's keys and values of positions [0, kept) came from: frames that came in before this epoch.

    They are the first `frames` of an earlier epoch, or of another run of the same beginning; `root` is over them, with
    that edge's salt as leaf 0. Whether the other end sent these frames, nobody else says here.
    """

    kept: Position
    frames: Count
    root: Digest


@dataclass(frozen=True)
class End:
    """A stage's account of one epoch. `inbound` and `outbound` are the roots of its two edges."""

    kind: ClassVar[str] = "end"
    epoch: Epoch
    plan: Digest
    first: Layer
    last: Layer
    inbound: Digest
    outbound: Digest
    came: Count
    """Frames under `inbound`, those that came too late to be computed included."""
    sent: Count
    """Frames under `outbound`."""
    history: Annotated[tuple[History, ...], Many(0, MAX_HISTORY)]
    """What its keys and values were before this epoch, oldest first; empty when it began with none."""
    frames: Count
    rows: Count
    positions: Span | None
    """The positions whose rows it computed, drafted rows included; None when no frame came."""
    compute_us: Micros
    interrupted: bool
    """The epoch ended by a failure, so its edges were not closed at both ends."""


@dataclass(frozen=True)
class Tail:
    """The last stage's account of what it drew: a Merkle root over (position, token, top-2 margin)."""

    kind: ClassVar[str] = "tail"
    epoch: Epoch
    plan: Digest
    first: Position
    """Position of the first token drawn in this epoch that was kept."""
    count: Count
    root: Digest
    answers: Count
    """All tokens drawn, rejected branches included."""
    span_us: Micros
    """From its first answer to its last, by its monotonic clock."""


@dataclass(frozen=True)
class Own:
    """The requester's account of the layers that it computed itself in one epoch: its word, co-signed by nobody."""

    kind: ClassVar[str] = "own"
    epoch: Epoch
    plan: Digest
    head: Layer
    """It computed layers [0, head), and drew the tokens behind layers [tail, all)."""
    tail: Layer
    head_weights: Digest
    tail_weights: Digest
    software: Software
    outbound: Digest
    """Root of its edge to the first node, and `inbound` of the last node's edge to it."""
    inbound: Digest
    frames: Count
    rows: Count
    positions: Span | None
    compute_us: Micros
    answers: Count
    """All tokens drawn, rejected branches included."""
    interrupted: bool


@dataclass(frozen=True)
class Served:
    """Which positions a node's layers served in one epoch, by the requester's account."""

    node: Key
    epoch: Epoch
    first: Layer
    last: Layer
    positions: Span | None
    outcome: Annotated[str, Text(8, ("ended", "lost"))]


@dataclass(frozen=True)
class Close:
    """The requester's account of the run, over the digests of every statement before it, in order."""

    kind: ClassVar[str] = "close"
    outcome: Annotated[str, Text(12, ("complete", "failed", "cancelled"))]
    finish_reason: Name
    time_us: Micros
    """Unix time in microseconds, by the requester's clock."""
    first_position: Position
    new_tokens: Count
    tokens: Digest
    """Salted digest of {"first", "tokens", "margins_ppm"}."""
    text: Digest
    """Salted digest of the text."""
    first_token_us: Micros
    """From the order to the first token, monotonic; 0 when there was none."""
    last_token_us: Micros
    elapsed_us: Micros
    draft: Annotated[Mapping[str, Count], Many(0, 32)]
    """Counts of the speculation: passes, rows_sent, accepted, drafted, ..."""
    drafter: Name
    speculation: Name
    served: Annotated[tuple[Served, ...], Many(1, 1024)]
    witnesses: Annotated[tuple[Key, ...], Many(0, 16)]
    """Keys that will countersign this close; a receipt without their statements is incomplete."""
    statements: Annotated[tuple[Digest, ...], Many(1, MAX_STATEMENTS)]


@dataclass(frozen=True)
class Witness:
    """A node outside the ring saw the order (phase "order") or the close (phase "close") at these times."""

    kind: ClassVar[str] = "witness"
    phase: Annotated[str, Text(8, ("order", "close"))]
    order_seen_us: Micros
    """Unix time by the witness's clock."""
    close_seen_us: Micros
    """0 in phase "order"."""
    observed: Digest | None
    """Salted digest of the requester's address as the witness sees it."""

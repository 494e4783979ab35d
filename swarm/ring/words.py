"""The short words of a run under way and at its end: down the ring from the requester, and from the tail home."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, TypeAlias

from swarm.base.bounds import AtMost, Between, MayLack, by_name
from swarm.base.codec import Codec
from swarm.model.rows import MAX_ROWS
from swarm.net.channel.message import Message
from swarm.ring.frame import DOWN, Epoch, RunId
from swarm.ring.opening import TAIL, OpenRun, Record, ReleaseRun

MAX_HOLD_MS = 3_600_000


@by_name(tag=("do", "keep"))
@dataclass(frozen=True)
class KeepRun:
    """The run is alive though nothing is sent."""

    run: RunId


@by_name(tag=("do", "halt"))
@dataclass(frozen=True)
class HaltRun:
    """A closing follows: what waits is not wanted any more."""

    run: RunId
    epoch: Epoch


@by_name(tag=("do", "close"))
@dataclass(frozen=True)
class CloseRun:
    """The run is over.

    commits  those that no frame carried any more (`swarm.ring.frame.parse_commits_untrusted`)
    record   the receipt's part: the half of the sender's edge; None: no receipt
    hold_ms  how long the session is to be held, for a run with the same beginning; 0: not at all
    """

    run: RunId
    commits: Annotated[bytes, AtMost(8 * MAX_ROWS)] = b""
    record: Record | None = None
    epoch: Annotated[Epoch, MayLack()] = 0
    hold_ms: Annotated[int, Between(0, MAX_HOLD_MS), MayLack()] = 0


@by_name(tag=("do", "half"))
@dataclass(frozen=True)
class HalfOfEdge:
    """To the tail: what the requester measured on the edge between them."""

    run: RunId
    record: Record


@by_name(tag=("do", "collect"))
@dataclass(frozen=True)
class CollectRun:
    """Each stage adds what it signs to `record`."""

    run: RunId
    record: Record


@by_name(tag=("do", "accepted"))
@dataclass(frozen=True)
class AcceptedHome:
    """From the tail: every stage's acceptance of the order."""

    run: RunId
    epoch: Epoch
    record: Record | None


@by_name(tag=("do", "closed"))
@dataclass(frozen=True)
class ClosedHome:
    """From the tail: the closing has gone round."""

    run: RunId
    epoch: Epoch
    record: Record | None


@by_name(tag=("do", "collected"))
@dataclass(frozen=True)
class CollectedHome:
    """From the tail: what every stage signed."""

    run: RunId
    epoch: Epoch
    record: Record | None


DownWord: TypeAlias = OpenRun | KeepRun | HaltRun | CloseRun | HalfOfEdge | CollectRun | ReleaseRun
"""What walks down beside frames (`swarm.ring.frame`)."""
TailWord: TypeAlias = AcceptedHome | ClosedHome | CollectedHome

_DOWN: Codec[DownWord] = Codec.any_of(
    "word of a ring", OpenRun, KeepRun, HaltRun, CloseRun, HalfOfEdge, CollectRun, ReleaseRun
)
_TAIL: Codec[TailWord] = Codec.any_of("word of a tail", AcceptedHome, ClosedHome, CollectedHome)


def encode_down(word: DownWord) -> Message:
    """The message that carries a word down the ring."""
    return Message(DOWN, _DOWN.header(word))


def encode_tail(word: TailWord) -> Message:
    """The message that carries a word from the tail home."""
    return Message(TAIL, _TAIL.header(word))


def parse_down_untrusted(header: Mapping[str, object]) -> DownWord:
    """A word from the stage before, other than a frame. Raises PeerError."""
    return _DOWN.read_untrusted(header)


def parse_tail_untrusted(header: Mapping[str, object]) -> TailWord:
    """A word from the tail. Raises PeerError."""
    return _TAIL.read_untrusted(header)

"""Whether a stage takes a run, and the session that it then gets."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass

from swarm.base.errors import BusyError, PeerError, UsageError
from swarm.model.compiling import Compiler
from swarm.model.overflow import AnyBlock, AnyPool
from swarm.net.channel.wire import WIRE_FORMATS
from swarm.net.peer import Peer
from swarm.ring.drawing import needs_tokens
from swarm.ring.frame import Frame
from swarm.ring.kept_rows import SentRows, SlotTokens
from swarm.ring.opening import OpenRun
from swarm.stage.mtp_session import MTPHost, MTPSession
from swarm.stage.session import StageSession
from swarm.stage.session_owner import Owner, owner_untrusted
from swarm.stage.sessions import Register
from swarm.stage.unsent import Unsent


@dataclass(frozen=True)
class StageLimits:
    """Bounds of one stage.

    row_budget     rows of one forward
    sessions       open sessions in all, and of one requester
    queue_frames   frames of one session that may wait, and queue_rows their rows
    lease_s        longest silence of a requester before its session is freed, in seconds
    kv_share       of the memory for sessions that one requester may hold
    sent_bytes     memory for the rows kept for replay, of one session
    """

    row_budget: int = 512
    sessions: int = 64
    sessions_per_peer: int = 32
    queue_frames: int = 256
    queue_rows: int = 16_384
    kv_share: float = 0.75
    lease_s: float = 45.0
    sent_bytes: int = 512 << 20


@dataclass(frozen=True)
class HostedModel:
    """What this node serves: manifest digest, block, memory for sessions, and the device in words.

    compiler  holds answers to constraints, where the block is a tail and the model's tokenizer is at hand
    fingerprint  of the kernels that the block computes with (`model.fingerprint`), 64 hex digits; "": not measured
    mtp       the model's multi-token prediction or EAGLE head, where the block is a tail and there is one
    """

    model: str
    block: AnyBlock
    pool: AnyPool
    device: str
    node: bytes
    compiler: Compiler | None = None
    fingerprint: str = ""
    mtp: MTPHost | None = None


def admit(
    sessions: Register,
    hosted: HostedModel,
    limits: StageLimits,
    opening: OpenRun,
    peer: Peer,
    draining: bool,
) -> tuple[StageSession, bool]:
    """The session of a run, new or carried over from an older epoch; and whether its KV starts empty.

    Raises PeerError for an opening that is not for this node, BusyError when there is no room.
    """
    _check_addressed_untrusted(hosted, opening, peer)
    owner = owner_untrusted(opening, peer.id)
    old = sessions.get(opening.run)
    if old is not None:
        if old.opening.requester != opening.requester or (old.owner.signed and not owner.signed):
            raise PeerError("that run belongs to another requester")
        if old.opening.epoch >= opening.epoch:
            raise PeerError(f"expected an epoch after {old.opening.epoch}, found {opening.epoch}")
        if opening.keep and _same_work(old, opening):
            _carry_over(old, opening, owner, peer)
            return old, False
        sessions.free(old)
    session = _new(sessions, hosted, limits, opening, owner, peer, draining)
    base = sessions.get(opening.base)
    begun = (
        base is not None
        and opening.keep > 0
        and (base.opening.requester, base.owner.node) == (opening.requester, owner.node)
        and session.begin_from(base, opening.keep)
    )
    return session, not begun


def check_room(session: StageSession, limits: StageLimits, frame: Frame) -> None:
    """Whether a frame may wait here. Raises BusyError; one always may.

    A replay comes as fast as the stage before can send it, so it is bounded by what the run's session holds anyway.
    What is computed and not sent counts as well: whoever comes next may read slowly, or not at all.
    """
    replay, rows = frame.replay >= 0, len(frame.rows)
    waiting = [len(arrived.frame.rows) for arrived in session.queue if (arrived.frame.replay >= 0) == replay]
    unsent, unsent_rows = (0, 0) if replay else (session.outbox.qsize(), session.outbox.rows)
    frames, rows_here = len(waiting) + unsent, sum(waiting) + unsent_rows
    most_frames = max(limits.queue_frames, session.opening.keep) if replay else limits.queue_frames
    most_rows = max(limits.queue_rows, session.opening.keep) if replay else limits.queue_rows
    if frames and (frames >= most_frames or rows_here + rows > most_rows):
        raise BusyError(
            f"busy: {frames} frames of {rows_here} rows wait here and {rows} rows more came; "
            f"expected at most {most_frames} frames of {most_rows} rows in flight"
        )


def _check_addressed_untrusted(hosted: HostedModel, opening: OpenRun, peer: Peer) -> None:
    if opening.me.node != hosted.node or peer.id != opening.upstream():
        raise PeerError("expected the opening of a ring from the node before this one, found another's")
    if opening.model != hosted.model:
        raise PeerError(f"expected a ring for model {hosted.model[:16]}, found one for {opening.model[:16]}")
    if opening.wire not in WIRE_FORMATS:
        raise PeerError(f"expected a wire format of {', '.join(WIRE_FORMATS)}, found {opening.wire[:40]!r}")
    block, me = hosted.block, opening.me
    if not block.first <= me.first < me.last <= block.last:
        raise PeerError(
            f"expected layers within {block.first}-{block.last - 1}, which this node holds, found "
            f"{me.first}-{me.last - 1}; plan the route again"
        )
    if not block.ties.forbidden.isdisjoint((me.first, me.last)):
        raise PeerError(f"expected a stage that the model can be cut into, found layers {me.first}-{me.last - 1}")
    if opening.taps and opening.taps_wire not in WIRE_FORMATS:
        raise PeerError(f"expected a wire format of {', '.join(WIRE_FORMATS)}, found {opening.taps_wire[:40]!r}")
    _check_constraint_untrusted(hosted, opening)


def _check_constraint_untrusted(hosted: HostedModel, opening: OpenRun) -> None:
    """Whether this node, where it is the tail, can hold answers to what the run asks for. Raises PeerError."""
    constraint = opening.sampling.constraint
    if constraint is None or opening.me.last != hosted.block.last or not hosted.block.tail:
        return
    if hosted.compiler is None:
        raise PeerError(
            f"this node holds no answer to a {constraint.kind}: it has no tokenizer of the model; take another tail"
        )
    try:
        hosted.compiler.check(constraint)
    except UsageError as error:
        raise PeerError(f"this node cannot hold answers to the run's constraint: {error}") from error


def _same_work(old: StageSession, opening: OpenRun) -> bool:
    """Whether the KV of the old epoch serves the new one: the same layers and slots, filled as far as is kept,
    and not so far beyond it that recurrent layers cannot go back."""
    then, now = old.opening, opening
    same = (then.me.first, then.me.last, then.layout) == (now.me.first, now.me.last, now.layout)
    same = same and then.drafts == now.drafts
    same = same and then.sampling == now.sampling  # what is kept beside keys and values follows from it
    return same and old.held >= now.keep >= old.kv.floor


def _carry_over(session: StageSession, opening: OpenRun, owner: Owner, peer: Peer) -> None:
    session.opening, session.owner, session.upstream, session.downstream = opening, owner, peer, None
    session.taps = session.block.taps(opening.taps)
    session.last_seq, session.last_replay, session.refused = -1, -1, False
    session.heard, session.measured_back = time.monotonic(), False
    session.ready, session.outbox = asyncio.Event(), Unsent()
    session.queue.clear()


def _new(
    sessions: Register,
    hosted: HostedModel,
    limits: StageLimits,
    opening: OpenRun,
    owner: Owner,
    peer: Peer,
    draining: bool,
) -> StageSession:
    if draining:
        raise BusyError("busy: this node is leaving; take another")
    layout, me = opening.layout, opening.me
    pool, need = hosted.pool, hosted.pool.session_bytes(opening.layout, me.first, me.last)

    def mine() -> int:
        return sum(s.owner.node == owner.node for s in sessions.values())

    def held() -> int:
        return sum(s.kv.nbytes for s in sessions.values() if s.owner.node == owner.node)

    most = int(pool.budget_bytes * limits.kv_share)
    while (
        len(sessions) >= limits.sessions
        or mine() >= limits.sessions_per_peer
        or need > min(pool.free_bytes, most - held())
    ):
        if not _let_one_go(sessions, opening):
            break
    if len(sessions) >= limits.sessions or mine() >= limits.sessions_per_peer:
        raise BusyError(f"busy: {len(sessions)} sessions are open, {mine()} of them yours; try later")
    if need > most - held() and held():
        raise BusyError(
            f"busy: your sessions hold {held() >> 20} of {most >> 20} MiB that one requester may; try later"
        )
    block = hosted.block.view(me.first, me.last)
    kv = pool.open(layout, me.first, me.last)
    session = StageSession(opening, block, kv, peer, time.monotonic(), owner=owner, fingerprint=hosted.fingerprint)
    session.taps = block.taps(opening.taps)
    last = opening.index + 1 == len(opening.stages)
    if not last and SentRows.size_bytes(layout, block.hidden_size, block.dtype) <= limits.sent_bytes:
        session.sent = SentRows(layout, block.hidden_size, block.dtype)
    if block.tail and needs_tokens(opening.sampling):
        session.tokens = SlotTokens(layout)
    if block.tail and opening.drafts and hosted.mtp is not None:
        with contextlib.suppress(BusyError):  # the run goes on without drafts of ours
            session.mtp = MTPSession(hosted.mtp, layout, opening.sampling)
    return session


def _let_one_go(sessions: Register, opening: OpenRun) -> bool:
    """Free the session that is kept only for its beginning and runs out first; never the one now wanted."""
    kept = [s for s in sessions.values() if s.kept_until and s.account is None and s.run != opening.base]
    if not kept:
        return False
    sessions.free(min(kept, key=lambda s: s.kept_until))
    return True

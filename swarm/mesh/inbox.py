"""From a neighbour's message to an event, with everything checked that a stranger could have made up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from swarm.base.errors import PeerError
from swarm.base.nodeid import NodeId, short_id
from swarm.mesh import messages
from swarm.mesh.event import DeltaHeard, DigestHeard, Event, HintsHeard, WantHeard
from swarm.mesh.membership import Membership, Revocation
from swarm.mesh.record import ClockError, parse_record_untrusted, peek_record_untrusted
from swarm.mesh.state import State
from swarm.mesh.table import Held
from swarm.net.channel.message import Message

log = logging.getLogger(__name__)

SLICE = 16


@dataclass(frozen=True)
class Known:
    """What a node holds a neighbour's message against. now: monotonic seconds; now_wall: Unix time."""

    state: State
    membership: Membership
    revoked: Mapping[bytes, Revocation]
    now: float
    now_wall: float


async def read_untrusted(peer: NodeId, message: Message, known: Known) -> Event:
    """HINTS, WANT, DIGEST or DELTA as an event; signatures and proofs of what is new are checked. Raises PeerError.

    Yields to the event loop now and then: a signature takes 0.1 ms, and frames of a run must pass.
    """
    match message.kind:
        case messages.HINTS:
            return HintsHeard(peer, *messages.parse_hints_untrusted(message))
        case messages.WANT:
            return WantHeard(peer, *messages.parse_want_untrusted(message))
        case messages.DIGEST:
            return DigestHeard(peer, messages.parse_digest_untrusted(message))
        case messages.DELTA:
            return await _read_delta_untrusted(peer, message, known)
        case _:
            raise PeerError(f"expected a message of membership, found {message.kind!r}")


async def _read_delta_untrusted(peer: NodeId, message: Message, known: Known) -> DeltaHeard:
    parcel = messages.parse_delta_untrusted(message, known.membership)
    found: list[Held] = []
    for i, (age, wire) in enumerate(parcel.records):
        held = _check_untrusted(wire, known.now - age, known)
        if held is not None:
            found.append(held)
        if i % SLICE == SLICE - 1:
            await asyncio.sleep(0)
    notices = await _news_untrusted(parcel.revocations, known)
    return DeltaHeard(peer, tuple(found), parcel.suspicions, notices)


async def _news_untrusted(notices: Sequence[Revocation], known: Known) -> tuple[Revocation, ...]:
    """The revocations that say more than is known, genuine each. Raises PeerError.

    A proof of twelve links takes 1 ms, and a neighbour may bring thousands.
    """
    found = tuple(notice for notice in notices if notice.outlasts(known.revoked.get(notice.id)))
    for notice in found:
        messages.check_revocation(notice, known.membership)
        await asyncio.sleep(0)
    return found


def _check_untrusted(wire: bytes, born: float, known: Known) -> Held | None:
    """The record if it is new and genuine; None if it is old news, its clock is off, or its invite is revoked.

    Whoever passes the last on may not have heard of it yet. Raises PeerError.
    """
    record = peek_record_untrusted(wire)
    before = known.state.table.get(record.key)
    if before is not None and before.record.version >= record.version and record.node != known.state.node:
        return None
    try:
        signed = parse_record_untrusted(wire, known.membership.swarm, known.now_wall)
    except ClockError as error:
        log.info("%s", error)
        return None
    if not known.membership.proves(record.node, record.proof, "node"):
        raise PeerError(f"the record of node {short_id(record.node)} shows no admission to this swarm")
    if known.membership.admission_untrusted(record.proof).void(known.revoked, known.now_wall):
        return None
    return Held.of(signed, born)

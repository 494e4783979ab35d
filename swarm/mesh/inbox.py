"""From a neighbour's message to an event, with everything checked that a stranger could have made up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Container

from swarm.base.errors import PeerError
from swarm.base.nodeid import NodeId, short_id
from swarm.mesh import messages
from swarm.mesh.event import DeltaHeard, DigestHeard, Event, HintsHeard, WantHeard
from swarm.mesh.membership import Membership
from swarm.mesh.record import ClockError, parse_record_untrusted, peek_record_untrusted
from swarm.mesh.state import State
from swarm.mesh.table import Held
from swarm.net.channel.message import Message

log = logging.getLogger(__name__)

SLICE = 16


async def read_untrusted(
    peer: NodeId,
    message: Message,
    state: State,
    membership: Membership,
    revoked: Container[bytes],
    now: float,
    now_wall: float,
) -> Event:
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
            return await _read_delta_untrusted(peer, message, state, membership, revoked, now, now_wall)
        case _:
            raise PeerError(f"expected a message of membership, found {message.kind!r}")


async def _read_delta_untrusted(
    peer: NodeId,
    message: Message,
    state: State,
    membership: Membership,
    revoked: Container[bytes],
    now: float,
    now_wall: float,
) -> DeltaHeard:
    parcel = messages.parse_delta_untrusted(message, membership)
    found: list[Held] = []
    for i, (age, wire) in enumerate(parcel.records):
        held = _check_untrusted(wire, now - age, state, membership, revoked, now_wall)
        if held is not None:
            found.append(held)
        if i % SLICE == SLICE - 1:
            await asyncio.sleep(0)
    return DeltaHeard(peer, tuple(found), parcel.suspicions, parcel.revocations)


def _check_untrusted(
    wire: bytes, born: float, state: State, membership: Membership, revoked: Container[bytes], now_wall: float
) -> Held | None:
    """The record if it is new and genuine; None if it is old news, its clock is off, or its invite is revoked.

    Whoever passes the last on may not have heard of it yet. Raises PeerError.
    """
    record = peek_record_untrusted(wire)
    known = state.table.get(record.key)
    if known is not None and known.record.version >= record.version and record.node != state.node:
        return None
    try:
        signed = parse_record_untrusted(wire, membership.swarm, now_wall)
    except ClockError as error:
        log.info("%s", error)
        return None
    if not membership.proves(record.node, record.proof, "node"):
        raise PeerError(f"the record of node {short_id(record.node)} shows no admission to this swarm")
    if membership.admission_untrusted(record.proof).void(revoked, now_wall):
        return None
    return Held.of(signed, born)

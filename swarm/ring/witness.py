"""A node's services to receipts that are not its own run's: countersigning, and opening kept rows for an audit."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from receipts import ReceiptError, WitnessRecord
from receipts.sign import sha256
from swarm.errors import BusyError, PeerError
from swarm.net.address import format_address
from swarm.net.message import Message
from swarm.net.peer import Handler, Peer
from swarm.ring.notary import Notary, unix_us

WITNESS = "receipt.witness"
AUDIT = "receipt.audit"
MOST_WITNESSED = 256
WITNESSED_FOR_S = 6 * 3600.0
MAX_REQUEST = 64 << 10


class NotaryServer:
    """Answers `receipt.witness` calls ({"order"} then {"close"}: an envelope each) and `receipt.audit` calls.

    Bounded: the oldest witnessed order is forgotten when there are too many, and an audit reads in a thread.
    """

    def __init__(self, notary: Notary, admitted: Callable[[bytes], bool]) -> None:
        self._notary, self._admitted = notary, admitted
        self._orders: OrderedDict[tuple[bytes, str], tuple[WitnessRecord, float]] = OrderedDict()

    def handlers(self) -> Mapping[str, Handler]:
        """What the node's switchboard calls."""
        return {WITNESS: self._on_witness, AUDIT: self._on_audit}

    async def _on_witness(self, peer: Peer, message: Message) -> Message:
        if not self._admitted(peer.id):
            raise PeerError("expected a member of the swarm to ask for a witness, found a stranger")
        header = message.header
        try:
            if isinstance(order := header.get("order"), bytes):
                return Message(WITNESS, {"envelope": self._witness_order(peer, order)})
            close, digest = header.get("close"), header.get("about")
            if not isinstance(close, bytes) or not isinstance(digest, str):
                raise PeerError("expected an order or a close to witness, found neither")
            self._forget(time.monotonic())
            # Remembered still: when another witness fails, the requester signs a close without it and comes again.
            found = self._orders.get((peer.id, digest))
            if found is None:
                raise BusyError("this node does not remember that order; it may have restarted")
            return Message(WITNESS, {"envelope": found[0].sign_close(close, unix_us())})
        except ReceiptError as error:
            raise PeerError(f"expected something to witness, found {error}") from error

    def _witness_order(self, peer: Peer, order: bytes) -> bytes:
        now = time.monotonic()
        record = WitnessRecord(
            self._notary.author, order, unix_us(), format_address(peer.address), secrets.token_bytes(32)
        )
        self._orders[peer.id, sha256(order)] = (record, now)
        self._forget(now)
        return record.sign_order()

    def _forget(self, now: float) -> None:
        """Drop the oldest orders beyond what is kept."""
        while self._orders:
            _, seen = next(iter(self._orders.values()))
            if len(self._orders) <= MOST_WITNESSED and now - seen <= WITNESSED_FOR_S:
                return
            self._orders.popitem(last=False)

    async def _on_audit(self, peer: Peer, message: Message) -> Message:
        """Any peer that holds a receipt may ask: what is opened is what its proofs cover."""
        if self._notary.rows is None:
            raise BusyError("this node keeps no rows")
        request = bytes(message.body)
        if len(request) > MAX_REQUEST:
            raise PeerError(f"expected an audit request of at most {MAX_REQUEST} bytes, found {len(request)}")
        try:
            return Message(AUDIT, {}, await asyncio.to_thread(self._notary.rows.answer, request))
        except ReceiptError as error:
            raise PeerError(f"that cannot be opened: {error}") from error

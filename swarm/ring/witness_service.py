"""A node's services to receipts that are not its own run's: countersigning, and opening kept rows for an audit."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from receipts import ReceiptError, WitnessRecord
from receipts.format.errors import Refusal
from receipts.format.sign import sha256
from receipts.record.kept_frames import RECORD_BYTES
from receipts.record.opening_answer import OpeningAnswer
from receipts.record.row_opening import MAX_OPENING
from receipts.record.rows import RowStore
from swarm.base.address import format_address
from swarm.base.bounds import AtMost, Between, MayLack, by_name
from swarm.base.codec import Codec
from swarm.base.errors import BusyError, PeerError
from swarm.net.channel.message import Message
from swarm.net.members import Members
from swarm.net.peer import Handler, Peer
from swarm.ring.opening_limits import WORK_BYTES_S, OpeningQuota
from swarm.ring.signer import ReceiptSigner, unix_us

WITNESS = "receipt.witness"
AUDIT = "receipt.audit"
MOST_WITNESSED = 256
WITNESSED_FOR_S = 6 * 3600.0
MAX_REQUEST = 64 << 10
MAX_ENVELOPE = 2 << 20
PIECE_BYTES = 4 << 20
"""Of an opening, in one message: small beside what a peer may have under way, so that runs pass it."""
WHOLE_BYTES = 48 << 20
"""The most that is opened in one message, for verifiers that do not ask in pieces."""
MOST_ASKING = 16
READ_TIMEOUT_S = 60.0


@by_name()
@dataclass(frozen=True)
class WitnessRequest:
    """An order to countersign, or the close of the order whose SHA-256 is `about`; envelopes."""

    order: Annotated[bytes | None, AtMost(MAX_ENVELOPE), MayLack(unsaid=True)] = None
    close: Annotated[bytes | None, AtMost(MAX_ENVELOPE), MayLack(unsaid=True)] = None
    about: Annotated[str, AtMost(64), MayLack(unsaid=True)] = ""

    def contradiction(self) -> str:
        """What its fields say against each other, "" for nothing."""
        if self.order is None and (self.close is None or not self.about):
            return "an order, or a close and what it is about, to witness, found neither"
        return ""


@by_name()
@dataclass(frozen=True)
class WitnessAnswer:
    """The countersigned envelope."""

    envelope: Annotated[bytes, AtMost(MAX_ENVELOPE)]


@by_name()
@dataclass(frozen=True)
class AuditRequest:
    """Which piece of an opening, by its first byte; None: the whole. The body says of what."""

    offset: Annotated[int | None, Between(0, 2**53), MayLack(unsaid=True)] = None


@by_name()
@dataclass(frozen=True)
class AuditAnswer:
    """Of how many bytes the body is a piece; None: it is the whole."""

    size: Annotated[int | None, Between(1, MAX_OPENING), MayLack(unsaid=True)] = None


WITNESS_REQUEST, WITNESS_ANSWER = Codec(WitnessRequest, "request for a witness"), Codec(WitnessAnswer, "witness")
AUDIT_REQUEST, AUDIT_ANSWER = Codec(AuditRequest, "request for an opening"), Codec(AuditAnswer, "opening")


def _signed(envelope: bytes) -> Message:
    return Message(WITNESS, WITNESS_ANSWER.header(WitnessAnswer(envelope)))


class NotaryServer:
    """Answers `receipt.witness` calls ({"order"} then {"close"}: an envelope each) and `receipt.audit` calls.

    Bounded: the oldest witnessed order is forgotten when there are too many; audits are read in a thread, one at a
    time. Only members are witnessed for.
    """

    def __init__(self, notary: ReceiptSigner, members: Members) -> None:
        self._notary, self._members = notary, members
        self._quota, self._reading, self._asking = OpeningQuota(), asyncio.Lock(), 0
        self._orders: OrderedDict[tuple[bytes, str], tuple[WitnessRecord, float]] = OrderedDict()

    def handlers(self) -> Mapping[str, Handler]:
        """What the node's switchboard calls."""
        return {WITNESS: self._on_witness, AUDIT: self._on_audit}

    async def _on_witness(self, peer: Peer, message: Message) -> Message:
        if not self._members.admitted(peer.id):
            raise PeerError("expected a member of the swarm to ask for a witness, found a stranger")
        asked = WITNESS_REQUEST.read_untrusted(message.header)
        try:
            if asked.order is not None:
                return _signed(self._witness_order(peer, asked.order))
            assert asked.close is not None
            self._forget(time.monotonic())
            # Remembered still: when another witness fails, the requester signs a close without it and comes again.
            found = self._orders.get((peer.id, asked.about))
            if found is None:
                raise BusyError("this node does not remember that order; it may have restarted")
            return _signed(found[0].sign_close(asked.close, unix_us()))
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
        """Any peer that holds a receipt may ask: the digest of its order names the run, and nobody guesses that.

        Header {"offset"}: the answer is a piece, with {"size"} of the whole. Without: the whole, where one message
        holds it. One request is read at a time, within the asker's quota.
        """
        if self._notary.rows is None:
            raise BusyError("this node keeps no rows")
        request, offset = bytes(message.body), AUDIT_REQUEST.read_untrusted(message.header).offset
        if len(request) > MAX_REQUEST:
            raise PeerError(f"expected an audit request of at most {MAX_REQUEST} bytes, found {len(request)}")
        if self._asking >= MOST_ASKING:
            raise BusyError(f"busy: {self._asking} audits wait already; ask again later")
        asker = peer.id if self._members.admitted(peer.id) else b""
        self._asking += 1
        try:
            async with asyncio.timeout(READ_TIMEOUT_S), self._reading:
                if (wait := self._quota.wait_s(asker, time.monotonic())) > 0:
                    raise BusyError(f"busy: enough was opened for now; ask again in {wait:.0f} s")
                began, size = time.monotonic(), 0
                try:
                    answer, data = await asyncio.to_thread(_read, self._notary.rows, request, offset)
                    size = len(data) + RECORD_BYTES * len(answer.frames)
                finally:  # whatever came of it: a row that is not there is looked for in all records
                    now = time.monotonic()
                    self._quota.charge(asker, max(size, int((now - began) * WORK_BYTES_S)), now)
        except ReceiptError as error:
            raise PeerError(f"that cannot be opened: {error}") from error
        except TimeoutError as error:
            raise BusyError("busy: the disk of this node did not answer in time; ask again later") from error
        finally:
            self._asking -= 1
        return Message(AUDIT, AUDIT_ANSWER.header(AuditAnswer(None if offset is None else answer.size)), data)


def _read(rows: RowStore, request: bytes, offset: int | None) -> tuple[OpeningAnswer, bytes]:
    """In a thread. Raises ReceiptError(OPENING)."""
    answer = rows.answer(request)
    if offset is not None:
        return answer, answer.read(offset, PIECE_BYTES)
    if answer.size > WHOLE_BYTES:
        raise ReceiptError(Refusal.OPENING, f"{answer.size} bytes are too many for one message; ask in pieces")
    return answer, answer.whole()

"""Statements: who says what about which run (in-toto Statement v1, one DSSE envelope per signer).

Every statement but the order has the order's digest as its subject, so it can serve in no other run. Every statement
carries its author's run counter, sequence number and the digest of that author's previous statement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from receipts.format.canonical import emit, parse_untrusted
from receipts.format.closing import Close, Edge, End, Own, Tail, Witness
from receipts.format.codec import Count, Digest, Text, decode_untrusted, encode
from receipts.format.errors import ReceiptError, Refusal
from receipts.format.opening import Accept, Order, Replan
from receipts.format.sign import MAX_PAYLOAD, Sign, SignedEnvelope, envelope_untrusted, seal

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
Body = Order | Replan | Accept | Edge | End | Tail | Own | Close | Witness
BODIES: Mapping[str, type[Body]] = {
    body.kind: body for body in (Order, Replan, Accept, Edge, End, Tail, Own, Close, Witness)
}


@dataclass(frozen=True)
class Chain:
    """A statement's place among all statements of its author."""

    run: Count
    """The author's own run counter: which of its runs this statement is about."""
    sequence: Count
    """How many statements the author had signed before."""
    previous: Digest | None
    """Digest of the author's previous statement; None for its first."""


@dataclass(frozen=True)
class Statement:
    """One signed statement, read back. `about` maps "model", "order", "close" to hex digests."""

    about: Mapping[str, str]
    chain: Chain
    body: Body
    signer: str
    """Public key in hex."""
    digest: str
    """Hex SHA-256 of the payload."""


def payload_type(kind: str) -> str:
    """DSSE payload type of one kind of statement; the signature covers it."""
    return f"application/vnd.wanswarm.{kind}.v1+json"


def predicate_type(kind: str) -> str:
    """in-toto predicate type of one kind of statement."""
    return f"urn:wanswarm:receipt:{kind}:v1"


def statement_payload(about: Mapping[str, str], chain: Chain, body: Body) -> bytes:
    """The exact bytes that are signed: canonical JSON of an in-toto statement."""
    return emit(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": name, "digest": {"sha256": about[name]}} for name in sorted(about)],
            "predicateType": predicate_type(body.kind),
            "predicate": encode(body) | {"chain": encode(chain)},
        }
    )


@dataclass(frozen=True)
class _Sha256:
    sha256: Digest


@dataclass(frozen=True)
class _Subject:
    name: Annotated[str, Text(8, ("model", "order", "close"))]
    digest: _Sha256


def statement_untrusted(envelope: SignedEnvelope) -> Statement:
    """Read an envelope's payload. The caller has checked the signature. Raises ReceiptError."""
    kind = next((kind for kind in BODIES if envelope.payload_type == payload_type(kind)), None)
    if kind is None:
        raise ReceiptError(Refusal.PAYLOAD_TYPE, f"payload type {envelope.payload_type[:80]!r} is not known")
    value = parse_untrusted(envelope.payload, MAX_PAYLOAD, 10)
    if not isinstance(value, dict) or set(value) != {"_type", "subject", "predicateType", "predicate"}:
        raise ReceiptError(Refusal.SHAPE, f"{kind}: not an in-toto statement")
    if value["_type"] != STATEMENT_TYPE:
        raise ReceiptError(Refusal.VERSION, f"{kind}: statement type is not {STATEMENT_TYPE}")
    if value["predicateType"] != predicate_type(kind):
        raise ReceiptError(Refusal.PAYLOAD_TYPE, f"signed as {kind}, but says {str(value['predicateType'])[:60]!r}")
    predicate = value["predicate"]
    if not isinstance(predicate, dict) or "chain" not in predicate:
        raise ReceiptError(Refusal.SHAPE, f"{kind}: no chain in the predicate")
    chain = decode_untrusted(Chain, predicate.pop("chain"), f"{kind}.chain")
    body = decode_untrusted(BODIES[kind], predicate, kind)
    about = _subjects_untrusted(value["subject"], body)
    return Statement(about, chain, body, envelope.key.hex(), envelope.digest)


def _subjects_untrusted(value: Any, body: Body) -> dict[str, str]:
    if not isinstance(value, list) or not 0 < len(value) <= 2:
        raise ReceiptError(Refusal.SHAPE, f"{body.kind}: one or two subjects")
    subjects = [decode_untrusted(_Subject, item, f"{body.kind}.subject") for item in value]
    about = {subject.name: subject.digest.sha256 for subject in subjects}
    if isinstance(body, Order):
        wanted = {"model"}
    elif isinstance(body, Witness) and body.phase == "close":
        wanted = {"order", "close"}
    else:
        wanted = {"order"}
    if about.keys() != wanted or len(subjects) != len(wanted):
        raise ReceiptError(Refusal.SHAPE, f"{body.kind}: subjects {sorted(wanted)} expected")
    return about


def signed_statement_untrusted(data: Any) -> tuple[SignedEnvelope, Statement]:
    """One envelope from a peer's bytes: signature checked, then read. Raises ReceiptError."""
    envelope = envelope_untrusted(data)
    return envelope, statement_untrusted(envelope)


@dataclass(frozen=True)
class ChainHead:
    """Where an author stands: what its next statement continues. Kept across restarts by `receipts.record.log`."""

    runs: int = 0
    statements: int = 0
    previous: str | None = None


class StatementKeeper(Protocol):
    """Where an author's statements are kept; `receipts.record.log.StatementLog` is one."""

    def append(self, envelope: SignedEnvelope) -> None:
        """Keep one. What it raises means that the statement was not made."""


class Author:
    """One identity and its hash chain: every statement of a node or requester is signed here, in order.

    Not thread-safe: one author belongs to one event loop. `log` keeps each new envelope.
    """

    def __init__(
        self,
        key: bytes,
        sign: Sign,
        head: ChainHead | None = None,
        log: StatementKeeper | None = None,
    ) -> None:
        self.key = key
        self._sign = sign
        self.head = head or ChainHead()
        self._log = log

    @property
    def id(self) -> str:
        return self.key.hex()

    def begin_run(self) -> int:
        """Count one more run that this author takes part in; the number goes into each of its statements."""
        run = self.head.runs
        self.head = ChainHead(run + 1, self.head.statements, self.head.previous)
        return run

    def issue(self, run: int, about: Mapping[str, str], body: Body) -> SignedEnvelope:
        """Sign one statement and move the chain on. Raises ReceiptError(SHAPE) for a body no verifier would read."""
        decode_untrusted(type(body), encode(body), body.kind)
        chain = Chain(run, self.head.statements, self.head.previous)
        envelope = seal(payload_type(body.kind), statement_payload(about, chain, body), self.key, self._sign)
        if self._log is not None:
            self._log.append(envelope)  # first: a statement that cannot be kept is as if it had never been made
        self.head = ChainHead(self.head.runs, self.head.statements + 1, envelope.digest)
        return envelope

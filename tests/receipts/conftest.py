"""A ring in one process that uses the real recorders: what the tests of this folder forge, cut and verify."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
from nacl.signing import SigningKey

from receipts import (
    Author,
    Hardware,
    Model,
    OwnLayers,
    PlannedStage,
    RequesterRecord,
    Sampler,
    Secret,
    Software,
    StageRecord,
    WitnessRecord,
    opening_untrusted,
)
from receipts.format.document import document_bytes, document_untrusted
from receipts.format.sign import SignedEnvelope
from receipts.format.statement import Chain, Statement, payload_type, statement_payload, statement_untrusted
from receipts.record.edge import EdgeLog
from receipts.record.row_opening import CrossedFrame

MANIFEST = "5a" * 32
LAYERS = 30
PROMPT = [11, 12, 13, 14]
NOW = 1_790_000_000_000_000
SOFTWARE = Software("wanswarm", "0.1.0", "11" * 32)
ALL = ("prompt", "tokens", "text", "address", "uuid")


def weights(first: int, last: int) -> str:
    return hashlib.sha256(f"{first}:{last}".encode()).hexdigest()


class Randomness:
    """Deterministic bytes, so that a receipt of the tests is the same in every run."""

    def __init__(self, seed: str) -> None:
        self.seed, self.count = seed, 0

    def __call__(self, size: int) -> bytes:
        self.count += 1
        return hashlib.shake_256(f"{self.seed} {self.count}".encode()).digest(size)


@dataclass
class Party:
    """One identity: its key (for forging) and its author."""

    name: str

    def __post_init__(self) -> None:
        self.key = SigningKey(hashlib.sha256(self.name.encode()).digest())
        self.author = Author(bytes(self.key.verify_key), lambda data: self.key.sign(data).signature)
        self.id = self.author.id


@dataclass
class Ring:
    """A finished run: its receipt and everybody's keys and records."""

    receipt: bytes
    record: RequesterRecord
    parties: dict[str, Party]
    stages: list[StageRecord]
    witnesses: list[WitnessRecord]
    body_of: Callable[[int, int], bytes]
    traffic: dict[tuple[int, int], list[CrossedFrame]] = field(default_factory=dict)
    """Frames by (epoch, edge), as their sender has them."""
    heard: dict[tuple[int, int], list[CrossedFrame]] = field(default_factory=dict)
    """The same as the receiver says that it has them."""
    hear: Callable[[int, int, bytes], bytes] = lambda epoch, edge, body: body


def run_ring(
    *,
    stages: int = 3,
    tokens: Sequence[int] = (100, 101, 102, 103, 104),
    text: str = "Hello there, Wörld 🌍.",
    witnesses: int = 1,
    salt: str = "run",
    fail_at: int | None = None,
    all_lost: bool = False,
    whim: bool = False,
    finish: str = "length",
    show: Sequence[str] = ("tokens", "text"),
    tail_span_us: int = 80_000,
    names: str = "",
    author_of: Callable[[str], Party] | None = None,
    spans: Sequence[tuple[int, int]] | None = None,
    addresses: bool = True,
    body_of: Callable[[int, int], bytes] = lambda position, edge: b"rows" * 16,
    hear: Callable[[int, int, bytes], bytes] = lambda epoch, edge, body: body,
    own: int = 0,
    previous_receipt: str = "ab" * 32,
    wire: str = "float32",
) -> Ring:
    """One run over the real recorders. `fail_at`: after so many tokens the middle node dies and another takes over.
    `whim`: nobody dies, and the same nodes go on under a new plan, one frame being still on its way to the second.

    `body_of(position, edge)` are the bytes of the frame's tensor on that edge, and `hear(epoch, edge, body)` what its
    receiver makes of them. `own`: layers at either end that the requester computes itself.
    """
    random = Randomness(salt)
    parties: dict[str, Party] = {}

    def party(name: str) -> Party:
        return parties.setdefault(name, (author_of or Party)(names + name))

    cuts = [own + round(index * (LAYERS - 2 * own) / stages) for index in range(stages + 1)]
    ranges = spans or list(zip(cuts, cuts[1:], strict=False))
    me, ring = party("requester"), [party(f"node {index}") for index in range(len(ranges))]
    plan = [PlannedStage(node.id, first, last) for node, (first, last) in zip(ring, ranges, strict=True)]
    record = RequesterRecord(
        me.author,
        model=Model("smollm2-135m-instruct", MANIFEST, LAYERS),
        dtype="float32",
        wire=wire,
        sampler=Sampler(temperature_ppm=700_000, seed=f"{2**63:016x}"),
        prompt=PROMPT,
        max_tokens=64,
        plan=plan,
        time_us=NOW,
        random=random,
        previous_receipt=previous_receipt,
        own=OwnLayers(own, weights(0, own), weights(LAYERS - own, LAYERS), SOFTWARE) if own else None,
    )
    watching = [
        WitnessRecord(party(f"witness {index}").author, record.order.to_bytes(), NOW + 5, "192.0.2.1:7", random(32))
        for index in range(witnesses)
    ]
    for witness in watching:
        record.witnessed_untrusted(witness.sign_order(), "order")
    result = Ring(b"", record, parties, [], watching, body_of, hear=hear)
    records = _open(record, ring, {}, random, addresses)
    position = len(PROMPT)
    until = position + len(tokens)
    stop = until if fail_at is None else position + fail_at
    _passes(result, records, range(position, stop), tokens, tail_span_us)
    if fail_at is not None:
        lost = [] if whim else [ring[1].id]
        if whim:
            _under_way(result, records, stop)
        else:
            ring[1] = party("spare node")
            plan[1] = PlannedStage(ring[1].id, plan[1].first, plan[1].last)
        header = record.replan(plan, stop, lost, "a whim" if whim else "missed heartbeat", NOW + 200_000)
        assert header["replan"] is not None
        earlier = {stage.author.id: stage for stage in records}
        records = _open(record, ring, earlier, random, addresses)
        if not all_lost:
            _passes(result, records, range(stop, until), tokens, tail_span_us)
    if all_lost:
        tokens = list(tokens)[: fail_at or 0]
    else:
        _close(record, records, until)
    close = record.close(
        tokens=tokens,
        text=text,
        finish_reason="error" if all_lost else finish,
        outcome="failed" if all_lost else "complete",
        time_us=NOW + 500_000,
        first_token_us=60_000,
        last_token_us=60_000 + tail_span_us,
        elapsed_us=61_000 + tail_span_us,
        draft={"passes": 5, "rows_sent": 9, "drafted": 4, "accepted": 2},
        drafter="suffix",
        speculation="chain",
        witnesses=[witness._author.id for witness in watching],
    )
    for witness in watching:
        record.witnessed_untrusted(witness.sign_close(close.to_bytes(), NOW + 700_000), "close")
    result.stages = records
    result.receipt = record.receipt(show, [s for stage in records for s in stage.secrets if s.name in show])
    return result


def _open(
    record: RequesterRecord, ring: list[Party], earlier: dict[str, StageRecord], random: Randomness, addresses: bool
) -> list[StageRecord]:
    header = record.open_header()
    stages = []
    for node in ring:
        stage = StageRecord(
            node.author, opening_untrusted(header), manifest=MANIFEST, earlier=earlier.get(node.author.id)
        )
        uuid = Secret("uuid", random(32), f"GPU-{node.name}")
        header = stage.accept(
            header,
            nonce=random(32),
            time_us=NOW + 1000,
            weights=weights(stage.part.first, stage.part.last),
            software=SOFTWARE,
            hardware=Hardware("Test CPU", "cpu", 8 << 30, "", "Test CPU", 2, uuid.digest, {"1": 900, "8": 1200}),
            secrets=[uuid],
        )
        stages.append(stage)
    record.opened_untrusted(header)
    for index, (upstream, downstream) in enumerate(_edges(record, stages)):
        for sample in (51_400 + index, 51_200, 53_000):
            upstream.ping(sample)
            downstream.ping(sample + 90)
        if addresses:
            upstream.see(f"198.51.100.{index}:4100", random(32))
    return stages


def _edges(record: RequesterRecord, stages: list[StageRecord]) -> list[tuple[EdgeLog, EdgeLog]]:
    senders = [record.outbound, *(stage.outbound for stage in stages)]
    receivers = [*(stage.inbound for stage in stages), record.inbound]
    return list(zip(senders, receivers, strict=True))


def _passes(ring: Ring, stages: list[StageRecord], positions: range, tokens: Sequence[int], tail_span_us: int) -> None:
    record = ring.record
    epoch = record.opening.epoch
    tail = record.own_log.tail if record.own_log is not None else stages[-1].tail
    assert tail is not None
    for position in positions:
        token = tokens[position - len(PROMPT)]
        for index, (upstream, downstream) in enumerate(_edges(record, stages)):
            frame = CrossedFrame(position, b"head %d %d" % (position, index), ring.body_of(position, index))
            heard = CrossedFrame(position, frame.head, ring.hear(epoch, index, frame.body))
            ring.traffic.setdefault((epoch, index), []).append(frame)
            ring.heard.setdefault((epoch, index), []).append(heard)
            upstream.frame(frame.seq, frame.head, frame.body)
            downstream.frame(heard.seq, heard.head, heard.body)
        for stage in stages:
            stage.computed(2, position - 1, position, 12_000)
        if record.own_log is not None:
            record.own_log.computed(2, position - 1, position, 3_000)
            record.own_log.drew(4_000)
        now = tail_span_us * (position - positions.start) // max(1, len(positions) - 1)
        # A drafted row in slot 3 that is kept, beside one in slot 4 that is not.
        tail.answered(position, token, 1.25, 3, now)
        tail.answered(position, token + 1000, 0.5, 4, now)
        tail.committed(3, position - 1)


def _under_way(ring: Ring, stages: list[StageRecord], position: int) -> None:
    """One more frame, which the head computes and which never comes to the stage behind it."""
    for index, (upstream, downstream) in enumerate(_edges(ring.record, stages)[:2]):
        frame = CrossedFrame(position, b"head %d %d" % (position, index), ring.body_of(position, index))
        upstream.frame(frame.seq, frame.head, frame.body)
        ring.traffic[ring.record.opening.epoch, index].append(frame)
        if index == 0:
            downstream.frame(frame.seq, frame.head, frame.body)
            ring.heard[ring.record.opening.epoch, index].append(frame)
    stages[0].computed(2, position - 1, position, 12_000)


def _close(record: RequesterRecord, stages: list[StageRecord], until: int) -> None:
    header = record.close_header(until)
    answer_to = record.closed_untrusted
    for stage in stages:
        answer_to(stage.closing_untrusted(header))
        header, answer_to = stage.close_header(), stage.closed_untrusted
    answer_to(record.closing_untrusted(header))
    header = record.collect_header()
    for stage in stages:
        header = stage.collect(header)
    record.collected_untrusted(header)


def resigned(
    ring: Ring, change: Callable[[list[dict[str, Any]]], None], disclosed: Sequence[Secret] | None = None
) -> bytes:
    """The receipt with its statements changed and everything signed anew, as parties who hold the keys could.

    `change` edits a list of {"kind", "signer", "about", "chain", "body"}; the close's list, "order" and "plan"
    references and hash chains are made consistent again, so that only what was changed is wrong. `disclosed`: what is
    shown instead of what the receipt shows.
    """
    document = document_untrusted(ring.receipt)
    keys = {party.id: party for party in ring.parties.values()}
    items = [_loose(statement_untrusted(envelope)) for envelope in document.envelopes]
    change(items)
    renamed: dict[str, str] = {}
    previous: dict[str, str] = {}
    envelopes: list[SignedEnvelope] = []
    for item in items:
        body, chain = item["body"], item["chain"]
        about = {name: renamed.get(digest, digest) for name, digest in item["about"].items()}
        if "plan" in body and isinstance(body["plan"], str):
            body["plan"] = renamed.get(body["plan"], body["plan"])
        if item["kind"] == "close" and not item.get("keep_list"):
            body["statements"] = [envelope.digest for envelope in envelopes]
        if item["signer"] in previous and not item.get("keep_chain"):
            chain["previous"] = previous[item["signer"]]
        payload = _payload(about, chain, item["kind"], body)
        key = keys[item["signer"]].key
        kind = payload_type(item.get("signed_as", item["kind"]))
        message = b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), len(payload), payload)
        envelope = SignedEnvelope(kind, payload, bytes(key.verify_key), key.sign(message).signature)
        envelopes.append(envelope)
        renamed[item["digest"]] = previous[item["signer"]] = envelope.digest
    return document_bytes(envelopes, document.disclosed if disclosed is None else disclosed)


def _payload(about: dict[str, str], chain: dict[str, Any], kind: str, body: dict[str, Any]) -> bytes:
    from receipts.format.canonical import emit
    from receipts.format.statement import STATEMENT_TYPE, predicate_type

    subject = [{"name": name, "digest": {"sha256": about[name]}} for name in sorted(about)]
    predicate = body | {"chain": chain}
    return emit(
        {"_type": STATEMENT_TYPE, "subject": subject, "predicateType": predicate_type(kind), "predicate": predicate}
    )


def _loose(statement: Statement) -> dict[str, Any]:
    from receipts.format.codec import encode

    assert isinstance(statement.chain, Chain)
    assert statement_payload(statement.about, statement.chain, statement.body)
    return {
        "kind": statement.body.kind,
        "signer": statement.signer,
        "about": dict(statement.about),
        "chain": encode(statement.chain),
        "body": encode(statement.body),
        "digest": statement.digest,
    }


@cache
def _ring(name: str) -> Ring:
    if name == "recovered":
        return run_ring(fail_at=2, salt=name)
    if name == "failed":
        return run_ring(fail_at=2, all_lost=True, salt=name)
    if name == "private":
        return run_ring(show=(), salt=name)
    if name == "own":
        return run_ring(own=2, fail_at=2, salt=name)
    if name == "open":
        return run_ring(show=ALL, salt=name)
    return run_ring(salt=name)


@pytest.fixture(scope="session")
def ring() -> Ring:
    """A complete run of three stages with one witness; tokens and text shown."""
    return _ring("plain")


@pytest.fixture(scope="session")
def rings() -> Callable[[str], Ring]:
    """A run by name: plain, other, recovered, failed, private, own, open."""
    return _ring


@pytest.fixture(scope="session")
def make_ring() -> Callable[..., Ring]:
    return run_ring


@pytest.fixture(scope="session")
def resign() -> Callable[..., bytes]:
    return resigned

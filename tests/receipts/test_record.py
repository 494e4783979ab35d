"""The recorders: what each side refuses from the other while a run is under way, and what stays off the hot path."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receipts import RequesterRecord, StageRecord, WitnessRecord, opening_untrusted
from receipts.check.run import ReceiptRun
from receipts.check.verdict import Level, Standing
from receipts.check.verify import Options, verify
from receipts.format.closing import MAX_SAMPLES
from receipts.format.document import disclose, document_untrusted, redact, secrets_bytes, secrets_untrusted
from receipts.format.errors import ReceiptError, Refusal
from receipts.format.merkle import leaf_hash, tree_root
from receipts.record.edge import MOST_RTT, EdgeLog, RttSamples, frame_leaf, rtt_series
from receipts.record.headers import HalfPart, half_fields, part_untrusted
from receipts.record.tail import Drawn, TailLog, margin_ppm
from tests.receipts.conftest import NOW

SALT = b"\x05" * 32


def refused(wanted: Refusal, action: Callable[[], Any]) -> None:
    with pytest.raises(ReceiptError) as caught:
        action()
    assert caught.value.refusal is wanted


def run_of(receipt: bytes) -> ReceiptRun:
    run = verify(receipt).run
    assert run is not None
    return run


def header_of(ring: Any) -> dict[str, Any]:
    header: dict[str, Any] = ring.record.open_header()
    return header


def test_a_stage_refuses_an_order_that_is_not_for_it(ring: Any, rings: Any) -> None:
    opening = opening_untrusted(header_of(ring))
    stranger = ring.parties["witness 0"].author
    refused(Refusal.PLAN, lambda: StageRecord(stranger, opening, manifest="5a" * 32))
    mine = ring.parties["node 0"].author
    refused(Refusal.MANIFEST, lambda: StageRecord(mine, opening, manifest="00" * 32))


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"secret": b"short"}, Refusal.SHAPE),
        ({"secret": None}, Refusal.SHAPE),
        ({"order": None}, Refusal.SHAPE),
        ({"order": b"not json"}, Refusal.UNREADABLE),
        ({"order": b"[" * 3_000_000}, Refusal.SIZE),
        ({"order": "text"}, Refusal.SHAPE),
    ],
)
def test_malformed_open_headers(ring: Any, change: dict[str, Any], wanted: Refusal) -> None:
    refused(wanted, lambda: opening_untrusted(header_of(ring) | change))


def test_an_accept_in_the_place_of_the_order(ring: Any) -> None:
    accept = next(e for e in document_untrusted(ring.receipt).envelopes if "accept" in e.payload_type).to_bytes()
    refused(Refusal.PAYLOAD_TYPE, lambda: opening_untrusted(header_of(ring) | {"order": accept}))


def test_a_replan_of_another_requester(rings: Any) -> None:
    recovered, other = rings("recovered"), rings("plain")
    header = header_of(recovered)
    assert opening_untrusted(header).epoch == 1
    refused(Refusal.FOREIGN, lambda: opening_untrusted(header | {"order": header_of(other)["order"]}))


def test_the_requester_refuses_false_accepts(ring: Any, rings: Any) -> None:
    def accepts(name: str) -> list[bytes]:
        return [e.to_bytes() for e in document_untrusted(rings(name).receipt).envelopes if ".accept." in e.payload_type]

    good = accepts("plain")
    record = ring.record
    envelopes = list(record._envelopes)
    assert [accept.first for accept in record.opened_untrusted({"accepts": good})] == [0, 10, 20]
    record._envelopes[:] = envelopes
    refused(Refusal.MISSING, lambda: record.opened_untrusted({"accepts": good[:2]}))
    refused(Refusal.SIGNER, lambda: record.opened_untrusted({"accepts": [good[1], good[0], good[2]]}))
    refused(Refusal.FOREIGN, lambda: record.opened_untrusted({"accepts": [*good[:2], accepts("other")[2]]}))
    refused(Refusal.SHAPE, lambda: record.opened_untrusted({"accepts": "no"}))
    refused(Refusal.SHAPE, lambda: record.opened_untrusted({"accepts": [1, 2, 3]}))
    assert record._envelopes == envelopes


@pytest.mark.parametrize(
    "drawn",
    [
        "no",
        [1],
        [{"first": 0, "tokens": [1], "margins_ppm": []}],
        [{"first": -1, "tokens": [], "margins_ppm": []}],
        [{"first": 0, "tokens": [1.5], "margins_ppm": [1]}],
        [{"first": 0, "tokens": [2**60], "margins_ppm": [1]}],
    ],
)
def test_malformed_collections(ring: Any, drawn: Any) -> None:
    refused(Refusal.SHAPE, lambda: ring.record.collected_untrusted({"envelopes": [], "drawn": drawn}))


def test_the_two_ends_must_have_exchanged_their_halves() -> None:
    edge = EdgeLog(0, "sender", "aa", "bb", SALT)
    for half in (None, 5, {}, {"count": -1, "min_us": 0, "median_us": 0, "samples_us": []}, {"count": 1}):
        refused(Refusal.SHAPE, lambda half=half: part_untrusted(HalfPart, {"half": half}, "close"))
    other = EdgeLog(0, "receiver", "aa", "bb", SALT)
    other.ping(5)
    sent = half_fields(other.own_rtt(), True)
    assert sent == {"half": {"count": 1, "min_us": 5, "median_us": 5, "samples_us": [5]}, "disclose": True}
    came = part_untrusted(HalfPart, {"half": sent["half"] | {"samples_us": (5,)}, "of a newer side": 1}, "close")
    edge.settle(came.half)
    assert edge.other_rtt == other.own_rtt()
    other.ping(1)
    assert edge.other_rtt == other.own_rtt(), "what was given to the other end is what is signed"


def test_witnesses_only_sign_what_they_saw(ring: Any, rings: Any) -> None:
    order = ring.record.order.to_bytes()
    refused(Refusal.WITNESS, lambda: WitnessRecord(ring.parties["node 1"].author, order, 1))
    stranger = rings("other").parties["requester"].author
    watching = WitnessRecord(stranger, order, 1)
    close = ring.record._close.to_bytes()
    refused(Refusal.SIGNER, lambda: watching.sign_close(close, 2))
    refused(Refusal.FOREIGN, lambda: watching.sign_close(rings("other").record._close.to_bytes(), 2))
    refused(Refusal.PAYLOAD_TYPE, lambda: WitnessRecord(stranger, close, 1))


def test_a_witness_that_has_become_a_stage_is_not_taken(make_ring: Any) -> None:
    """It was asked before the recovery that gave it a part, and its word comes after."""
    ring = make_ring(fail_at=2)
    late = WitnessRecord(ring.parties["spare node"].author, ring.record.order.to_bytes(), 5)
    refused(Refusal.WITNESS, lambda: ring.record.witnessed_untrusted(late.sign_order(), "order"))
    assert verify(ring.record.receipt()).refusal is None


def test_a_witness_that_does_not_answer_is_left_out(make_ring: Any) -> None:
    ring = make_ring(witnesses=2)
    record = ring.record
    (kept,) = [party.id for name, party in ring.parties.items() if name == "witness 1"]
    arguments = {
        "tokens": [100, 101, 102, 103, 104], "text": "x", "finish_reason": "length", "time_us": 5,
        "first_token_us": 1, "last_token_us": 2, "elapsed_us": 3, "draft": {}, "drafter": "none",
        "speculation": "plain",
    }  # fmt: skip
    close = record.close(**arguments, witnesses=[kept])
    record.witnessed_untrusted(ring.witnesses[1].sign_close(close.to_bytes(), NOW + 100_000), "close")
    verdict = verify(record.receipt())
    assert (verdict.refusal, verdict.exit_code) == (None, 0)
    assert verdict.standing_of("witness", kept) is Standing.WITNESSED


@pytest.mark.parametrize(("tokens", "outcome"), [([], "failed"), ([7, 8], "failed"), ([], "complete")])
def test_a_run_that_never_opened_has_a_receipt_but_no_tokens(make_ring: Any, tokens: list[int], outcome: str) -> None:
    """Known nodes' keys in a plan are worth nothing without their accepts."""
    ring = make_ring()
    order = ring.record.opening.order
    record = RequesterRecord(
        ring.parties["requester"].author, model=order.model, dtype="float32", wire="float32", sampler=order.sampler,
        prompt=[1], max_tokens=5, plan=order.plan, time_us=1, random=lambda size: bytes(size),
    )  # fmt: skip
    record.close(
        tokens=tokens, text="", finish_reason="error", outcome=outcome, time_us=2, first_token_us=0, last_token_us=0,
        elapsed_us=5, draft={}, drafter="none", speculation="plain",
    )  # fmt: skip
    verdict = verify(record.receipt())
    if tokens or outcome == "complete":
        assert verdict.refusal is Refusal.MISSING and "accept" in verdict.line
        return
    assert (verdict.exit_code, verdict.level) == (0, Level.SIGNED)
    assert verdict.line.endswith("the run failed") and verdict.standing_of("layers") is Standing.CLAIMED
    assert {claim.subject for claim in verdict.claims if claim.about} >= {"lost"}


def test_private_values_are_disclosed_later_and_taken_back(rings: Any) -> None:
    ring = rings("private")
    secrets = secrets_untrusted(ring.record.secrets_file())
    assert not document_untrusted(ring.receipt).disclosed
    for word in (b"Hello there", b"198.51.100", b"GPU-"):
        assert word not in ring.receipt
    shown = disclose(ring.receipt, secrets, {"text", "tokens"})
    verdict = verify(shown)
    assert verdict.refusal is None and verdict.disclosed.text == "Hello there, Wörld 🌍."
    assert verdict.disclosed.prompt is None
    assert disclose(shown, secrets, {"text"}) == shown
    assert redact(shown, {"text", "tokens"}) == ring.receipt
    everything = verify(disclose(ring.receipt, secrets, {"prompt", "tokens", "text", "address"}))
    assert everything.refusal is None and everything.disclosed.prompt == (11, 12, 13, 14)
    refused(Refusal.VERSION, lambda: secrets_untrusted(b"{}"))
    refused(Refusal.SHAPE, lambda: secrets_untrusted(secrets_bytes(secrets).replace(b'"salt"', b'"malt"')))


def test_a_node_may_request_and_serve_in_one_run(ring: Any, make_ring: Any) -> None:
    """One key, two parts, two run numbers, one chain; and the same keys again in a second run."""
    party = type(ring.parties["requester"])
    parties: dict[str, Any] = {}

    def author_of(name: str) -> Any:
        key = "node 0" if name == "requester" else name
        return parties.setdefault(key, party(key))

    first, second = make_ring(author_of=author_of, salt="1"), make_ring(author_of=author_of, salt="2")
    assert run_of(first.receipt).requester == run_of(first.receipt).epochs[0].plan[0].node
    assert verify(first.receipt).exit_code == verify(second.receipt).exit_code == 0
    chains = [statement.chain for made in (first, second) for statement in run_of(made.receipt).statements]
    assert max(chain.run for chain in chains) == 3


@given(st.lists(st.integers(1, 10**7), max_size=300))
def test_round_trip_series_keep_the_least(samples: list[int]) -> None:
    series = rtt_series(samples)
    assert series.count == len(samples) and len(series.samples_us) <= MAX_SAMPLES
    if samples:
        assert series.min_us == min(samples) == min(series.samples_us) <= series.median_us <= max(samples)


@given(st.lists(st.integers(1, 10**7), max_size=300))
def test_times_of_a_usual_run_are_all_in_what_is_signed(samples: list[int]) -> None:
    held = RttSamples()
    for sample in samples:
        held.add(sample)
    assert held.series() == rtt_series(samples)


@pytest.mark.parametrize("count", [MOST_RTT, MOST_RTT + 1, 10 * MOST_RTT + 7])
@pytest.mark.parametrize("least_at", [0, 1, -1])
def test_times_of_a_run_of_days_are_held_in_bounded_memory(count: int, least_at: int) -> None:
    samples = [50_000 + 1000 * (number % 101) for number in range(count)]
    samples[least_at] = 7
    held = RttSamples()
    for sample in samples:
        held.add(sample)
        assert len(held._kept) <= MOST_RTT
    series = held.series()
    assert (series.count, series.min_us, min(series.samples_us)) == (count, 7, 7)
    assert len(series.samples_us) == MAX_SAMPLES and abs(series.median_us - 100_000) <= 2000
    assert set(series.samples_us) <= set(samples)
    if count <= MOST_RTT:
        assert series == rtt_series(samples)


@given(st.lists(st.tuples(st.integers(0, 2**40), st.binary(max_size=50), st.binary(max_size=50)), max_size=30))
def test_both_ends_of_an_edge_reach_the_same_root(frames: list[tuple[int, bytes, bytes]]) -> None:
    ends = [EdgeLog(0, end, "aa", "bb", SALT) for end in ("sender", "receiver")]
    for seq, head, body in frames:
        ends[0].frame(seq, head, body)
        ends[1].frame(seq, bytearray(head), memoryview(body))
    wanted = tree_root([leaf_hash(SALT), *(frame_leaf(*frame) for frame in frames)]).hex()
    assert ends[0].root() == ends[1].root() == wanted


def test_large_frames_are_hashed_in_the_thread_in_order() -> None:
    gate = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        executor.submit(gate.wait)
        log, plain = EdgeLog(0, "sender", "aa", "bb", SALT, executor), EdgeLog(0, "sender", "aa", "bb", SALT)
        for seq in range(20):
            body = bytes([seq]) * (100_000 if seq % 3 == 0 else 10)
            log.frame(seq, b"head", body)
            plain.frame(seq, b"head", body)
        assert log._tree.size == 1, "the caller did not wait"
        gate.set()
        assert log.root() == plain.root()


def test_a_hashing_thread_that_was_shut_down_loses_nothing() -> None:
    executor = ThreadPoolExecutor(1)
    log, plain = EdgeLog(0, "sender", "aa", "bb", SALT, executor), EdgeLog(0, "sender", "aa", "bb", SALT)
    executor.shutdown()
    for seq in range(3):
        log.frame(seq, b"head", bytes(100_000))
        plain.frame(seq, b"head", bytes(100_000))
    assert log.root() == plain.root()


def test_the_tail_keeps_what_was_committed() -> None:
    tail = TailLog()
    tail.answered(5, 50, 1.0, None, 10)  # certain row at position 4
    tail.answered(6, 60, 1.0, 3, 20)  # drafted row at position 5, kept
    tail.answered(6, 61, 1.0, 4, 20)  # another branch, dropped
    tail.answered(7, 70, float("inf"), 5, 30)
    tail.committed(3, 5)
    tail.committed(5, 9)  # a commit that does not fit what the slot held
    tail.answered(7, 71, 0.5, 6, 40)
    tail.unanswered(6)
    tail.committed(6, 6)
    assert tail.drawn(5, 9) == Drawn(5, (50, 60), (1_000_000, 1_000_000))
    assert tail.answers == 5 and tail.span_us == 30
    assert margin_ppm(float("inf")) == margin_ppm(float("nan")) == 2**53 - 1 and margin_ppm(-1.0) == 0


@given(st.integers(0, 20), st.integers(0, 20))
def test_parts_of_what_was_drawn(first: int, last: int) -> None:
    drawn = Drawn(5, tuple(range(50, 60)), tuple(range(10)))
    part = drawn.between(first, last)
    assert list(part.tokens) == [50 + p - 5 for p in range(max(first, 5), min(last, 15))]


def test_a_statement_that_no_verifier_would_read_is_not_signed(make_ring: Any) -> None:
    ring = make_ring()
    before = ring.parties["requester"].author.head
    refused(
        Refusal.SHAPE,
        lambda: ring.record.close(
            tokens=[], text="", finish_reason="x" * 201, time_us=1, first_token_us=0, last_token_us=0, elapsed_us=0,
            draft={}, drafter="", speculation="",
        ),
    )  # fmt: skip
    assert ring.parties["requester"].author.head == before


def test_trust_needs_every_node_of_every_epoch(rings: Any) -> None:
    ring = rings("recovered")
    everyone = frozenset(party.id for party in ring.parties.values())
    assert verify(ring.receipt, Options(trust=everyone)).level is Level.WITNESSED
    lost = ring.parties["node 1"].id
    assert verify(ring.receipt, Options(trust=everyone - {lost})).refusal is Refusal.UNTRUSTED

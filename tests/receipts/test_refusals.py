"""Everything that must be refused, each with its own code: by outsiders who edit, and by parties who sign anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from receipts.check.verdict import Level, Standing
from receipts.check.verify import Options, verify
from receipts.format.document import document_bytes, document_untrusted
from receipts.format.errors import Refusal
from receipts.format.sign import SignedEnvelope
from receipts.format.statement import payload_type, statement_untrusted

Items = list[dict[str, Any]]


def refusal(receipt: bytes, **options: Any) -> Refusal | None:
    verdict = verify(receipt, Options(**options))
    if verdict.refusal is not None:
        assert verdict.exit_code == verdict.refusal.exit_code not in (0, 3, 4)
        assert verdict.line.startswith(verdict.refusal.word + ": ") and "\n" not in verdict.line
    return verdict.refusal


def find(items: Items, kind: str, index: int = 0) -> dict[str, Any]:
    return [item for item in items if item["kind"] == kind][index]


def cut(receipt: bytes, change: Callable[[list[SignedEnvelope]], None]) -> bytes:
    """The receipt with its list of envelopes changed and its layout right again: what an outsider can do."""
    document = document_untrusted(receipt)
    envelopes = list(document.envelopes)
    change(envelopes)
    return document_bytes(envelopes, document.disclosed)


def place(receipt: bytes, kind: str) -> int:
    envelopes = document_untrusted(receipt).envelopes
    return next(i for i, envelope in enumerate(envelopes) if envelope.payload_type == payload_type(kind))


@pytest.mark.parametrize("name", ["plain", "recovered", "failed", "private", "open"])
def test_honest_receipts_are_met(rings: Any, name: str) -> None:
    verdict = verify(rings(name).receipt)
    assert (verdict.exit_code, verdict.level, verdict.refusal) == (0, Level.SIGNED, None)


@pytest.mark.parametrize("name", ["plain", "recovered", "failed"])
def test_any_removed_envelope(rings: Any, name: str) -> None:
    receipt = rings(name).receipt
    for index in range(len(document_untrusted(receipt).envelopes)):
        assert refusal(cut(receipt, lambda envelopes, index=index: envelopes.pop(index))) is Refusal.MISSING, index


def test_any_duplicated_envelope(ring: Any) -> None:
    for index in range(len(document_untrusted(ring.receipt).envelopes)):
        again = cut(ring.receipt, lambda envelopes, index=index: envelopes.append(envelopes[index]))
        assert refusal(again) is Refusal.DUPLICATED


def test_any_two_neighbours_swapped(ring: Any) -> None:
    def swap(envelopes: list[SignedEnvelope], index: int) -> None:
        envelopes[index], envelopes[index + 1] = envelopes[index + 1], envelopes[index]

    count = len(document_untrusted(ring.receipt).envelopes)
    found = [refusal(cut(ring.receipt, lambda e, index=index: swap(e, index))) for index in range(count - 1)]
    # Without its order in front, a receipt is not one; the close moved up is a list that names what follows.
    assert found == [Refusal.MISSING] + [Refusal.SEQUENCE] * (count - 2)


@pytest.mark.parametrize("kind", ["order", "accept", "edge", "end", "tail", "close", "witness"])
def test_a_statement_of_another_run_is_foreign(rings: Any, kind: str) -> None:
    ring, other = rings("plain"), rings("other")
    index = place(ring.receipt, kind)
    stranger = document_untrusted(other.receipt).envelopes[index]
    assert refusal(cut(ring.receipt, lambda envelopes: envelopes.insert(index + 1, stranger))) is Refusal.FOREIGN
    replaced = cut(ring.receipt, lambda envelopes: envelopes.__setitem__(index, stranger))
    assert refusal(replaced) is Refusal.FOREIGN


@pytest.mark.parametrize("kind", ["accept", "end", "tail"])
def test_another_runs_statement_even_if_the_requester_closes_over_it(rings: Any, resign: Any, kind: str) -> None:
    other = rings("other")
    stranger = document_untrusted(other.receipt).envelopes[place(other.receipt, kind)]

    def change(items: Items) -> None:
        find(items, kind)["about"] = dict(statement_untrusted(stranger).about)

    assert refusal(resign(rings("plain"), change)) is Refusal.FOREIGN


def test_a_statement_that_the_requester_did_not_list(rings: Any, resign: Any) -> None:
    """Same order, valid key, but signed after the requester closed: a second end with other numbers."""

    def change(items: Items) -> None:
        extra = json.loads(json.dumps(find(items, "end")))
        extra["body"]["rows"] += 1
        extra["digest"] = "none"
        extra["chain"]["sequence"] += 100
        items.append(extra)

    assert refusal(resign(rings("plain"), change)) is Refusal.SEQUENCE


def test_signed_under_another_type(ring: Any, resign: Any) -> None:
    def change(items: Items) -> None:
        find(items, "end")["signed_as"] = "accept"

    assert refusal(resign(ring, change)) is Refusal.PAYLOAD_TYPE

    def relabel(envelopes: list[SignedEnvelope]) -> None:
        index = place(ring.receipt, "end")
        old = envelopes[index]
        envelopes[index] = SignedEnvelope(payload_type("accept"), old.payload, old.key, old.signature)

    assert refusal(cut(ring.receipt, relabel)) is Refusal.SIGNATURE

    def unknown(items: Items) -> None:
        find(items, "end")["signed_as"] = "blessing"

    assert refusal(resign(ring, unknown)) is Refusal.PAYLOAD_TYPE


def test_payload_changed_under_the_old_signature(ring: Any) -> None:
    def change(envelopes: list[SignedEnvelope]) -> None:
        old = envelopes[place(ring.receipt, "close")]
        payload = old.payload.replace(b'"new_tokens":5', b'"new_tokens":4')
        assert payload != old.payload
        envelopes[place(ring.receipt, "close")] = SignedEnvelope(old.payload_type, payload, old.key, old.signature)

    assert refusal(cut(ring.receipt, change)) is Refusal.SIGNATURE


def test_signature_by_another_key(ring: Any) -> None:
    def change(envelopes: list[SignedEnvelope]) -> None:
        index = place(ring.receipt, "accept")
        old, other = envelopes[index], envelopes[index + 1]
        envelopes[index] = SignedEnvelope(old.payload_type, old.payload, other.key, old.signature)

    assert refusal(cut(ring.receipt, change)) is Refusal.SIGNATURE


def body(kind: str, index: int = 0, /, **fields: Any) -> Callable[[Items], None]:
    def change(items: Items) -> None:
        target = find(items, kind, index)["body"]
        assert set(fields) <= set(target)
        target.update(fields)

    return change


def signed_by(kind: str, other: str) -> Callable[[Items], None]:
    """The statement is signed by the author of another kind, who fits it into a chain of its own."""

    def change(items: Items) -> None:
        find(items, kind)["signer"] = find(items, other)["signer"]

    return change


def chain(kind: str, index: int, **fields: Any) -> Callable[[Items], None]:
    def change(items: Items) -> None:
        item = find(items, kind, index)
        item["chain"].update(fields)
        item["keep_chain"] = True

    return change


def rtt(index: int) -> Callable[[Items], None]:
    def change(items: Items) -> None:
        series = find(items, "edge", index)["body"]["sender_rtt"]
        series["min_us"] -= 20_000
        series["samples_us"] = [series["min_us"]]

    return change


def both_rtts(items: Items) -> None:
    for index in range(8):
        find(items, "edge", index)["body"]["sender_rtt"]["median_us"] = 1


def drop_end(items: Items) -> None:
    items.remove(find(items, "end"))


def drop_edge(items: Items) -> None:
    items.remove(find(items, "edge", 3))


def drop_tail(items: Items) -> None:
    items.remove(find(items, "tail"))


def drop_accept(items: Items) -> None:
    items.remove(find(items, "accept", 1))


def move_layers(**stages: tuple[int, int]) -> Callable[[Items], None]:
    """A plan of other ranges that every stage seems to have accepted and ended."""

    def change(items: Items) -> None:
        for name, (first, last) in stages.items():
            index = int(name[1:])
            for target in (
                find(items, "order")["body"]["plan"][index],
                find(items, "accept", index)["body"],
                find(items, "end", index)["body"],
                find(items, "close")["body"]["served"][index],
            ):
                target.update(first=first, last=last)

    return change


FORGERIES: list[tuple[Refusal, Callable[[Items], None]]] = [
    (Refusal.LAYERS_MISSING, move_layers(s1=(11, 20))),
    (Refusal.LAYERS_MISSING, move_layers(s0=(1, 10))),
    (Refusal.LAYERS_MISSING, move_layers(s2=(20, 29))),
    (Refusal.LAYERS_MISSING, move_layers(s1=(10, 10))),
    (Refusal.LAYERS_OVERLAP, move_layers(s1=(9, 20))),
    (Refusal.LAYERS_BEYOND, move_layers(s2=(20, 31))),
    (Refusal.LAYERS_BEYOND, move_layers(s1=(10, 31))),
    (Refusal.PLAN, body("accept", 1, first=9)),
    (Refusal.PLAN, body("end", 1, last=19)),
    (Refusal.PLAN, body("accept", 1, plan="00" * 32)),
    (Refusal.SEQUENCE, body("accept", 1, epoch=1)),
    (Refusal.SIGNER, signed_by("close", "accept")),
    (Refusal.SIGNER, signed_by("tail", "accept")),
    (Refusal.SIGNER, signed_by("end", "order")),
    (Refusal.SIGNER, signed_by("edge", "order")),
    (Refusal.WITNESS, signed_by("witness", "accept")),
    (Refusal.EDGE_ROOT, body("edge", 2, root="00" * 32)),
    (Refusal.EDGE_ROOT, body("edge", 2, frames=6)),
    (Refusal.EDGE_ROOT, body("edge", 3, bytes=361)),
    (Refusal.EDGE_ROOT, body("end", 1, inbound="00" * 32)),
    (Refusal.EDGE_ROOT, body("end", 1, outbound="00" * 32)),
    (Refusal.EDGE_RTT, rtt(2)),
    (Refusal.EDGE_RTT, rtt(7)),
    (Refusal.EDGE_RTT, both_rtts),
    (Refusal.EDGE_ENDS, body("edge", 2, sender="00" * 32)),
    (Refusal.EDGE_ENDS, body("edge", 2, index=9)),
    (Refusal.SIGNER, body("edge", 2, end="sender")),
    (Refusal.COUNTER, chain("end", 1, sequence=1)),
    (Refusal.COUNTER, chain("close", 0, sequence=0, previous=None)),
    (Refusal.COUNTER, chain("end", 1, run=7)),
    (Refusal.CHAIN, chain("end", 1, previous="00" * 32)),
    (Refusal.CHAIN, chain("end", 1, previous=None)),
    (Refusal.TOKENS, body("tail", root="00" * 32)),
    (Refusal.TOKENS, body("tail", count=4)),
    (Refusal.TOKENS, body("tail", first=5)),
    (Refusal.TOKENS, body("close", tokens="00" * 32)),
    (Refusal.TOKENS, body("close", new_tokens=4)),
    (Refusal.TOKENS, body("close", first_position=5)),
    (Refusal.TOKENS, body("order", max_tokens=4)),
    (Refusal.TEXT, body("close", text="00" * 32)),
    (Refusal.TIMES, body("close", first_token_us=10**9)),
    (Refusal.TIMES, body("tail", span_us=60_000_000)),
    (Refusal.SERVED, body("end", 0, positions={"first": 0, "last": 99})),
    (Refusal.COUNT, body("close", served=[])),
    (Refusal.MISSING, drop_end),
    (Refusal.MISSING, drop_edge),
    (Refusal.MISSING, drop_tail),
    (Refusal.MISSING, drop_accept),
    (Refusal.WITNESS, body("close", witnesses=[])),
    (Refusal.MISSING, body("close", witnesses=["00" * 32])),
    (Refusal.SHAPE, body("close", elapsed_us=-1)),
    (Refusal.SHAPE, body("accept", weights="zz" * 32)),
    (Refusal.SHAPE, body("edge", end="middle")),
    (Refusal.SHAPE, body("order", dtype="x" * 201)),
]


@pytest.mark.parametrize(("wanted", "change"), FORGERIES, ids=lambda value: getattr(value, "word", ""))
def test_forged_by_parties_who_sign_anew(
    ring: Any, resign: Any, wanted: Refusal, change: Callable[[Items], None]
) -> None:
    assert refusal(resign(ring, change)) is wanted


def test_a_round_trip_that_only_one_end_found_is_a_claim(ring: Any, resign: Any) -> None:
    """An end may say of its own pings what it likes; the other end's nonces it cannot answer early."""

    def shorter(items: Items) -> None:
        for item in items:
            if item["kind"] == "edge" and item["body"]["index"] == 1:
                item["body"]["sender_rtt"] = {"count": 3, "min_us": 900, "median_us": 900, "samples_us": [900] * 3}

    verdict = verify(resign(ring, shorter))
    assert verdict.refusal is None
    assert verdict.standing_of("rtt", "edge 1") is Standing.CLAIMED
    assert verdict.standing_of("rtt", "edge 2") is Standing.COSIGNED


def test_signing_anew_without_a_change_is_met(ring: Any, rings: Any, resign: Any) -> None:
    assert refusal(resign(ring, lambda items: None)) is None
    assert refusal(resign(rings("recovered"), lambda items: None)) is None


def test_a_signer_uses_no_counter_twice(ring: Any, resign: Any) -> None:
    """Two statements of one number are two histories: each of every signer's, given the number of the one before."""
    signers: list[tuple[str, int]] = []
    resign(ring, lambda items: signers.extend((item["signer"], at) for at, item in enumerate(items)))
    tried = 0
    for signer, at in signers:
        before = [where for name, where in signers if name == signer and where < at]
        if not before:
            continue

        def twice(items: Items, at: int = at, before: int = before[-1]) -> None:
            earlier, item = items[before]["chain"], items[at]["chain"]
            item["sequence"] = earlier["sequence"]
            if earlier["sequence"] == 0:
                item["previous"], items[at]["keep_chain"] = None, True
            for later in items[at + 1 :]:  # what follows goes on from there, so that nothing else is wrong
                if later["signer"] == items[at]["signer"]:
                    later["chain"]["sequence"] -= 1

        assert refusal(resign(ring, twice)) is Refusal.COUNTER, (signer, at)
        tried += 1
    assert tried >= 10

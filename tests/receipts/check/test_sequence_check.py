"""Several receipts of the same parties: one line of statements for each of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from receipts.check.verdict import Standing, Verdict
from receipts.check.verify import Options, verify
from receipts.format.document import document_bytes, document_untrusted
from receipts.format.errors import Refusal
from tests.receipts.conftest import Party


def same_parties() -> Callable[[str], Party]:
    """Parties that go on where they stopped, from run to run."""
    known: dict[str, Party] = {}
    return lambda name: known.setdefault(name, Party(name))


def beside(receipt: bytes, *others: bytes) -> Verdict:
    return verify(receipt, Options(beside=others))


def test_counters_rise_through_receipts_in_any_order(make_ring: Any) -> None:
    parties = same_parties()
    receipts = [make_ring(author_of=parties, salt=f"run {number}").receipt for number in range(3)]
    for one in receipts:
        verdict = beside(one, *receipts)
        assert verdict.exit_code == 0, verdict.line
        (claim,) = [claim for claim in verdict.claims if claim.subject == "counters"]
        assert claim.standing is Standing.PROVEN and claim.text.startswith("5 of 5 keys sign in more than one of 3")


def test_strangers_receipts_prove_nothing(make_ring: Any) -> None:
    mine, other = make_ring().receipt, make_ring(names="other ", salt="other").receipt
    verdict = beside(mine, other)
    assert (verdict.exit_code, verdict.standing_of("counters")) == (0, Standing.NOT_CHECKED)
    assert verify(mine).standing_of("counters") is None


def test_a_node_that_was_set_back(make_ring: Any) -> None:
    """Its log was restored from a copy: it signs other statements under the same numbers."""
    verdict = beside(make_ring(salt="a").receipt, make_ring(salt="b").receipt)
    assert verdict.refusal is Refusal.COUNTER and "went back" in verdict.line


def test_a_log_that_lost_its_newest_lines(make_ring: Any) -> None:
    """Numbers go on, but from another statement than the one that was signed last."""
    parties = same_parties()
    first = make_ring(author_of=parties, salt="a").receipt
    author = parties("node 1").author
    author.head = type(author.head)(author.head.runs, author.head.statements, "00" * 32)
    verdict = beside(make_ring(author_of=parties, salt="b").receipt, first)
    assert verdict.refusal is Refusal.CHAIN and parties("node 1").id[:8] in verdict.line


@pytest.mark.parametrize(("runs", "word"), [(0, "stands in two runs"), (-1, "goes back")])
def test_run_counters(make_ring: Any, runs: int, word: str) -> None:
    parties = same_parties()
    for number in range(2):
        make_ring(author_of=parties, salt=f"earlier {number}")
    first = make_ring(author_of=parties, salt="a").receipt
    author = parties("node 2").author
    author.head = type(author.head)(author.head.runs - 1 + runs, author.head.statements, author.head.previous)
    verdict = beside(make_ring(author_of=parties, salt="b").receipt, first)
    assert verdict.refusal is Refusal.COUNTER and word in verdict.line


def test_two_accounts_of_one_order(make_ring: Any) -> None:
    verdict = beside(make_ring(text="one").receipt, make_ring(text="another").receipt)
    assert verdict.refusal is Refusal.DUPLICATED


@pytest.mark.parametrize("kept", [(), ("tokens",), ("tokens", "text", "address")])
def test_a_copy_that_shows_other_values_is_no_second_account(rings: Any, kept: tuple[str, ...]) -> None:
    ring = rings("open")
    document = document_untrusted(ring.receipt)
    copy = document_bytes(document.envelopes, [secret for secret in document.disclosed if secret.name in kept])
    for one, other in ((ring.receipt, copy), (copy, ring.receipt)):
        verdict = beside(one, other)
        assert (verdict.refusal, verdict.exit_code) == (None, 0), verdict.line
        (claim,) = [claim for claim in verdict.claims if claim.subject == "copy"]
        assert claim.standing is Standing.NOT_CHECKED and "what it leaves out is not compared" in claim.text
        assert ("it shows no value" in claim.text) == (not kept and other is copy)
        assert verdict.standing_of("counters") is None, "one receipt is not two"
    assert all(claim.subject != "copy" for claim in beside(copy, copy).claims)


def test_a_copy_that_shows_a_value_that_was_not_signed(rings: Any) -> None:
    ring = rings("open")
    document = document_untrusted(ring.receipt)
    shown = [replace(secret, value="else") if secret.name == "text" else secret for secret in document.disclosed]
    verdict = beside(ring.receipt, document_bytes(document.envelopes, shown))
    assert verdict.refusal is Refusal.TEXT and "beside" in verdict.line


def test_a_copy_of_the_receipt_before_is_not_taken_for_it(make_ring: Any) -> None:
    parties = same_parties()
    first = make_ring(author_of=parties, salt="a").receipt
    second = make_ring(author_of=parties, salt="b", previous_receipt=hashlib.sha256(first).hexdigest()).receipt
    copy = document_bytes(document_untrusted(first).envelopes, [])
    verdict = beside(second, copy)
    assert verdict.exit_code == 0 and verdict.standing_of("previous receipt") is Standing.NOT_CHECKED
    assert beside(second, copy, first).standing_of("previous receipt") is Standing.PROVEN


def test_the_receipt_before(make_ring: Any) -> None:
    parties = same_parties()
    first = make_ring(author_of=parties, salt="a").receipt
    digest = hashlib.sha256(first).hexdigest()
    second = make_ring(author_of=parties, salt="b", previous_receipt=digest).receipt
    assert beside(second, first).standing_of("previous receipt") is Standing.PROVEN
    assert beside(first, second).standing_of("previous receipt") is Standing.NOT_CHECKED
    stranger = make_ring(names="stranger ", salt="c", previous_receipt=digest).receipt
    assert beside(stranger, first).refusal is Refusal.COUNTER


def test_a_forged_receipt_beside_is_refused(make_ring: Any) -> None:
    parties = same_parties()
    first = make_ring(author_of=parties, salt="a").receipt
    second = make_ring(author_of=parties, salt="b").receipt
    for bad in (b"", first.replace(b'"epoch":0', b'"epoch":1', 1), first[:-2]):
        verdict = beside(second, bad)
        assert verdict.refusal is not None and "beside" in verdict.line

"""How long a run took and when: nobody's clock is believed beyond what another party's allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from receipts.check.times import WITNESS_SLACK_US
from receipts.check.verdict import Level, Standing, Verdict
from receipts.check.verify import Options, verify
from receipts.format.errors import Refusal
from tests.receipts.conftest import NOW

Items = list[dict[str, Any]]
SECOND = 1_000_000


def bodies(items: Items, kind: str) -> list[dict[str, Any]]:
    return [item["body"] for item in items if item["kind"] == kind]


def trusting(ring: Any, receipt: bytes) -> Verdict:
    return verify(receipt, Options(trust=frozenset(party.id for party in ring.parties.values())))


def closing(**fields: int) -> Callable[[Items], None]:
    return lambda items: bodies(items, "close")[0].update(fields)


def speeds(verdict: Verdict) -> dict[Standing, str]:
    return {claim.standing: claim.text for claim in verdict.claims if claim.subject == "speed"}


def rate(text: str) -> float:
    return float(text.split(" tokens/s")[0].split()[-1])


def slow_tails(span_us: int) -> Callable[[Items], None]:
    def change(items: Items) -> None:
        for body in bodies(items, "tail"):
            body["span_us"] = span_us

    return change


@pytest.mark.parametrize("name", ["plain", "recovered"])
def test_no_speed_is_printed_that_the_tails_clocks_exclude(rings: Any, resign: Any, name: str) -> None:
    """Whatever the requester signs of its own clock: within what is not refused, tails of two seconds each count."""
    ring = rings(name)
    tails = 2 if name == "recovered" else 1
    for first, last, elapsed in ((0, 1, 2), (1, 1, 1), (0, 2 * SECOND, 2 * SECOND), (9, 90, 9 * SECOND)):

        def change(items: Items, first: int = first, last: int = last, elapsed: int = elapsed) -> None:
            slow_tails(2 * SECOND)(items)
            closing(first_token_us=first, last_token_us=last, elapsed_us=elapsed)(items)

        verdict = verify(resign(ring, change))
        assert verdict.refusal is None, verdict.line
        for text in speeds(verdict).values():
            assert rate(text) <= 5 / (2 * tails) + 0.05, text


def test_a_recovered_run_too_fast_for_its_tails_is_refused(rings: Any, resign: Any) -> None:
    def change(items: Items) -> None:
        slow_tails(3 * SECOND)(items)
        closing(first_token_us=0, last_token_us=1, elapsed_us=2)(items)

    assert verify(resign(rings("plain"), change)).refusal is None
    assert verify(resign(rings("recovered"), change)).refusal is Refusal.TIMES


def test_a_speed_is_cosigned_for_the_tokens_that_both_saw(rings: Any) -> None:
    found = speeds(verify(rings("plain").receipt))
    assert found[Standing.COSIGNED].startswith("4 tokens after the first in 0.08 s, 50.0 tokens/s (requester 80.0 ms")
    assert "5 tokens in 0.14 s" in found[Standing.CLAIMED] and "by the requester's clock" in found[Standing.CLAIMED]
    recovered = speeds(verify(rings("recovered").receipt))
    assert list(recovered) == [Standing.CLAIMED], "what lies between two rings no tail has seen"
    assert "by the tails' clocks" in recovered[Standing.CLAIMED]


def seeing(order: int, close: int, phase: int | None = None) -> Callable[[Items], None]:
    """A witness that sees order and close at these times; `phase`: its first statement says another for the order."""

    def change(items: Items) -> None:
        for body in bodies(items, "witness"):
            early = body["phase"] == "order"
            body["order_seen_us"] = phase if phase is not None and early else order
            body["close_seen_us"] = 0 if early else close

    return change


@pytest.mark.parametrize(
    ("order", "close", "said"),
    [
        (NOW + 5, NOW + 700_000, None),
        (NOW + 5, NOW + WITNESS_SLACK_US, None),
        (NOW + 400 * SECOND, NOW + 401 * SECOND, "s before it for the order"),
        (NOW - 400 * SECOND, NOW - 399 * SECOND, "s after it for the order"),
    ],
)
def test_a_witness_whose_times_enclose_the_run(
    rings: Any, resign: Any, order: int, close: int, said: str | None
) -> None:
    ring = rings("plain")
    verdict = trusting(ring, resign(ring, seeing(order, close)))
    (claim,) = [claim for claim in verdict.claims if claim.subject == "witness"]
    assert (verdict.level, verdict.met, claim.standing) == (Level.WITNESSED, {"witness"}, Standing.WITNESSED)
    assert ("the requester's clock says" in claim.text) == (said is not None) and (said or "") in claim.text


@pytest.mark.parametrize(
    ("order", "close", "said"),
    [
        (NOW + 9 * SECOND, NOW + 9 * SECOND + 5, "when some were drawn"),
        (NOW + 3 * SECOND, NOW + 9 * SECOND, "when some were drawn"),
        (NOW + 5, NOW + 3600 * SECOND, "of the rest it says nothing"),
        (NOW - 86_400 * SECOND, NOW + 9 * SECOND, "of the rest it says nothing"),
        (NOW + 5, NOW + 4, "went back"),
    ],
    ids=["behind the run", "in the middle", "closed an hour later", "ordered a day before", "backwards"],
)
def test_a_witness_whose_times_do_not(rings: Any, resign: Any, order: int, close: int, said: str) -> None:
    """Its word stands for what it says and no more: a run that it was shown when all was over has no witness."""
    ring = rings("plain")

    def change(items: Items) -> None:
        slow_tails(8 * SECOND)(items)
        closing(last_token_us=8 * SECOND + 60_000, elapsed_us=8 * SECOND + 61_000)(items)
        seeing(order, close)(items)

    verdict = trusting(ring, resign(ring, change))
    (claim,) = [claim for claim in verdict.claims if claim.subject == "witness"]
    assert (verdict.refusal, verdict.level, claim.standing) == (None, Level.SIGNED, Standing.CLAIMED)
    assert said in claim.text and verdict.met == frozenset()


def test_a_witness_has_one_time_for_one_order(rings: Any, resign: Any) -> None:
    receipt = resign(rings("plain"), seeing(NOW + 5, NOW + 700_000, phase=NOW - SECOND))
    assert verify(receipt).refusal is Refusal.WITNESS

    def closed_early(items: Items) -> None:
        bodies(items, "witness")[0]["close_seen_us"] = NOW + 9

    assert verify(resign(rings("plain"), closed_early)).refusal is Refusal.WITNESS

"""Runs whose requester computes the outer layers itself: it says so, nobody else does, and no claim pretends more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from receipts.check.report import text_report
from receipts.check.verdict import Level, Standing
from receipts.check.verify import Options, verify
from receipts.format.errors import Refusal
from tests.receipts.check.test_audit import Nodes, Replay


def test_what_the_requester_computes_is_its_claim(rings: Any) -> None:
    ring = rings("own")
    verdict = verify(ring.receipt)
    assert (verdict.exit_code, verdict.level) == (0, Level.SIGNED), verdict.line
    assert verdict.standing_of("layers") is Standing.PROVEN
    assert verdict.standing_of("own layers") is Standing.CLAIMED
    assert verdict.standing_of("tokens") is Standing.CLAIMED
    assert verdict.standing_of("compute", ring.parties["requester"].id) is Standing.CLAIMED
    text = text_report(verdict, 200)
    assert "the plan covers layers 2-27 once, 3/3 stages signed" in text
    assert "layers 0-1 and 28-29 computed by the requester itself" in text
    assert "5 tokens, by the requester alone" in text
    # Epoch 0 was interrupted, epoch 1 was not; the margins are those of the requester's own draws.
    assert verdict.run is not None
    assert [epoch.own.interrupted for epoch in verdict.run.epochs if epoch.own is not None] == [True, False]
    assert verdict.disclosed.tokens is not None and set(verdict.disclosed.tokens.margins_ppm) == {1_250_000}


def test_a_failed_run_of_that_kind(make_ring: Any) -> None:
    verdict = verify(make_ring(own=1, fail_at=2, all_lost=True).receipt)
    assert (verdict.exit_code, verdict.level) == (0, Level.SIGNED), verdict.line
    assert verdict.run is not None and all(epoch.own is not None for epoch in verdict.run.epochs)


def test_an_audit_alone_does_not_reach_the_requesters_layers(make_ring: Any, tmp_path: Any) -> None:
    ring = make_ring(own=2, show=("prompt", "tokens", "text"))
    nodes = Nodes(ring, tmp_path)
    nodes.recompute = lambda order, stage, before, inbound, outbound: []  # type: ignore[method-assign]
    verdict = verify(ring.receipt, Options(auditor=nodes))
    assert (verdict.exit_code, verdict.level) == (4, Level.SIGNED)
    assert any("layers 0-1 and 28-29 are the requester's own" in why for why in verdict.not_conclusive)
    assert verify(ring.receipt, Options(replayer=Replay())).level is Level.REPLAYED


def body(kind: str, number: int = 0, **fields: Any) -> Callable[[list[dict[str, Any]]], None]:
    def change(items: list[dict[str, Any]]) -> None:
        [item for item in items if item["kind"] == kind][number]["body"].update(fields)

    return change


def drop_own(items: list[dict[str, Any]]) -> None:
    items.remove([item for item in items if item["kind"] == "own"][-1])


def by_a_stage(items: list[dict[str, Any]]) -> None:
    own = next(item for item in items if item["kind"] == "own")
    own["signer"], own["chain"] = items[1]["signer"], own["chain"] | {"sequence": 10**6}


def with_a_tail(items: list[dict[str, Any]]) -> None:
    """The last node of such a ring draws nothing, so it cannot say that it did."""
    at = next(index for index, item in enumerate(items) if item["kind"] == "close")
    end = [item for item in items if item["kind"] == "end"][-1]
    tail = {
        "epoch": 1,
        "plan": end["body"]["plan"],
        "first": 6,
        "count": 3,
        "root": "00" * 32,
        "answers": 3,
        "span_us": 1,
    }
    chain = end["chain"] | {"sequence": end["chain"]["sequence"] + 9}
    items.insert(at, end | {"kind": "tail", "body": tail, "chain": chain, "digest": "t"})


def keeping(count: int) -> Callable[[list[dict[str, Any]]], None]:
    """Order and own accounts agree on another number of layers than the plan leaves out."""

    def change(items: list[dict[str, Any]]) -> None:
        items[0]["body"]["own_layers"] = count
        for item in items:
            if item["kind"] == "own":
                item["body"].update(head=count, tail=30 - count)

    return change


FORGERIES: list[tuple[Refusal, Callable[[list[dict[str, Any]]], None]]] = [
    (Refusal.MISSING, drop_own),
    (Refusal.SIGNER, by_a_stage),
    (Refusal.SIGNER, with_a_tail),
    (Refusal.PLAN, body("own", head=3)),
    (Refusal.PLAN, body("own", tail=27)),
    (Refusal.PLAN, body("own", plan="00" * 32)),
    (Refusal.DUPLICATED, body("own", 1, epoch=0)),
    (Refusal.EDGE_ROOT, body("own", 1, outbound="00" * 32)),
    (Refusal.EDGE_ROOT, body("own", 1, inbound="00" * 32)),
    (Refusal.PLAN, body("order", own_layers=0)),
    (Refusal.LAYERS_MISSING, keeping(1)),
    (Refusal.LAYERS_OVERLAP, keeping(3)),
    (Refusal.LAYERS_OVERLAP, keeping(15)),
    (Refusal.COUNTER, lambda items: next(i for i in items if i["kind"] == "own")["chain"].update(run=9)),
]


@pytest.mark.parametrize(("wanted", "change"), FORGERIES, ids=lambda value: getattr(value, "word", ""))
def test_forgeries(rings: Any, resign: Any, wanted: Refusal, change: Any) -> None:
    def consistent(items: list[dict[str, Any]]) -> None:
        plans = {item["body"]["epoch"]: item["body"]["plan"] for item in items if item["kind"] == "own"}
        change(items)
        for item in items:
            # A statement moved to another epoch is about that epoch's plan, unless the plan is what was changed.
            if item["kind"] == "own" and item["body"]["plan"] in plans.values():
                item["body"]["plan"] = plans[item["body"]["epoch"]]

    verdict = verify(resign(rings("own"), consistent))
    assert verdict.refusal is wanted, verdict.line


def test_the_requesters_weights_are_the_manifests(rings: Any) -> None:
    from tests.receipts.conftest import LAYERS, MANIFEST, weights

    class Facts:
        digest, n_layers = MANIFEST, LAYERS

        def __init__(self, wrong: tuple[int, int] | None = None) -> None:
            self.wrong = wrong

        def weights_digest(self, first: int, last: int) -> str:
            return "00" * 32 if (first, last) == self.wrong else weights(first, last)

    ring = rings("own")
    assert verify(ring.receipt, Options(model=Facts())).exit_code == 0
    for span in ((0, 2), (28, 30)):
        verdict = verify(ring.receipt, Options(model=Facts(span)))
        assert verdict.refusal is Refusal.WEIGHTS and "requester" in verdict.line

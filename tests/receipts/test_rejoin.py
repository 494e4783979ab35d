"""Receipts of runs that a node left and came back to: with what they knew, or as new processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from receipts import Author, PlannedStage
from receipts.check.verify import verify
from receipts.format.document import document_untrusted
from receipts.format.errors import Refusal
from receipts.format.statement import ChainHead, statement_untrusted
from tests.receipts.conftest import NOW, PROMPT, Party, Randomness, Ring, _close, _open, _passes, resigned, run_ring

FIRST = len(PROMPT)
TOKENS = tuple(range(100, 112))
STARTS = (FIRST, FIRST + 4, FIRST + 8)
"""Where the three epochs begin: the node, its replacement, the node again."""

Change = Callable[[list[dict[str, Any]]], None]


def restarted(party: Party) -> Party:
    """The same key in a process that has read its log: the counters go on, nothing else is known."""
    head = party.author.head
    again = Party(party.name)
    again.author = Author(party.author.key, party.author._sign, ChainHead(head.runs, head.statements, head.previous))
    return again


def rejoined(place: int, restarts: bool, beyond: int = 0) -> Ring:
    """A run of three epochs; the node at `place` is left out of the second and has a part in the others.

    `beyond`: how many tokens it drew in its first part that the run did not keep.
    """
    ring = run_ring(witnesses=0, addresses=False, tokens=(), salt="rejoin")
    random = Randomness("rejoin again")
    record = type(ring.record)(
        ring.parties["requester"].author, model=ring.record.opening.order.model, dtype="float32", wire="float32",
        sampler=ring.record.opening.order.sampler, prompt=PROMPT, max_tokens=64, plan=ring.record.opening.plan,
        time_us=NOW, random=random,
    )  # fmt: skip
    ring = replace(ring, record=record)
    nodes = [ring.parties[f"node {index}"] for index in range(3)]
    spare = ring.parties.setdefault("spare node", Party("spare node"))
    node, known = nodes[place], {}
    for epoch, start in enumerate(STARTS):
        if epoch == 1:
            nodes[place] = spare
        if epoch == 2:
            nodes[place] = restarted(node) if restarts else node
        if epoch:
            plan = [
                PlannedStage(party.id, stage.first, stage.last)
                for party, stage in zip(nodes, record.opening.plan, strict=True)
            ]
            lost = (node if epoch == 1 else spare).id
            record.replan(plan, start, [lost], "missed heartbeat", NOW + epoch)
        stages = _open(record, nodes, known, random, False)
        known |= {stage.author.id: stage for stage in stages}
        if restarts:
            known.pop(node.id, None)
        stop = STARTS[epoch + 1] if epoch < 2 else FIRST + len(TOKENS)
        ring.traffic.clear()
        _passes(ring, stages, range(start, stop + (beyond if epoch == 0 else 0)), TOKENS, 80_000)
    _close(record, stages, FIRST + len(TOKENS))
    record.close(
        tokens=TOKENS, text="twelve", finish_reason="length", time_us=NOW + 9, first_token_us=1, last_token_us=80_001,
        elapsed_us=90_000, draft={"passes": 12}, drafter="none", speculation="plain",
    )  # fmt: skip
    return replace(ring, receipt=record.receipt())


@pytest.mark.parametrize("restarts", [False, True], ids=["with its memory", "as a new process"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_node_that_comes_back_into_its_run(place: int, restarts: bool) -> None:
    ring = rejoined(place, restarts)
    verdict = verify(ring.receipt)
    assert (verdict.refusal, verdict.exit_code) == (None, 0), verdict.line
    assert verdict.run is not None
    node = ring.parties[f"node {place}"].id
    outcomes = [entry.outcome for entry in verdict.run.close.served if entry.node == node]
    assert outcomes == (["lost", "ended"] if restarts else ["ended", "ended"])
    statements = [statement_untrusted(envelope) for envelope in document_untrusted(ring.receipt).envelopes]
    counts = [statement.chain.run for statement in statements if statement.signer == node]
    assert (len(set(counts)) > 1) == restarts


def counting(kind: str, epoch: int, by: int) -> Change:
    def change(items: list[dict[str, Any]]) -> None:
        node = next(i["signer"] for i in items if i["kind"] == "accept" and i["body"]["epoch"] == 0)
        for item in items:
            if item["kind"] == kind and item["signer"] == node and item["body"]["epoch"] == epoch:
                item["chain"]["run"] += by

    return change


@pytest.mark.parametrize(
    "change",
    [
        counting("accept", 2, -9),  # back behind the first life
        counting("accept", 0, 9),  # the first life would be the later one
        counting("end", 2, 1),  # no acceptance under this count
        counting("end", 2, -1),
        counting("edge", 2, 1),
    ],
)
def test_the_count_of_runs_rises_with_an_acceptance_or_not_at_all(change: Change) -> None:
    ring = rejoined(0, restarts=True)
    assert verify(resigned(ring, lambda items: None)).refusal is None

    def shifted(items: list[dict[str, Any]]) -> None:
        for item in items:  # room below
            if item["signer"] == ring.parties["node 0"].id:
                item["chain"]["run"] += 9
        change(items)

    assert verify(resigned(ring, shifted)).refusal is Refusal.COUNTER


def test_a_new_process_accounts_for_nothing_of_the_one_before() -> None:
    """An end of the first epoch under the count of the second life: nobody can know that any more."""

    def change(items: list[dict[str, Any]]) -> None:
        node = next(i["signer"] for i in items if i["kind"] == "accept" and i["body"]["epoch"] == 0)
        (accept,) = (i for i in items if i["kind"] == "accept" and i["signer"] == node and i["body"]["epoch"] == 2)
        for item in items[items.index(accept) :]:
            if item["signer"] == node:
                item["chain"]["run"] += 1

    ring = rejoined(0, restarts=False)
    assert verify(resigned(ring, change)).refusal is Refusal.COUNTER


def test_a_requester_has_one_count() -> None:
    ring = rejoined(1, restarts=True)

    def change(items: list[dict[str, Any]]) -> None:
        place = next(i for i, item in enumerate(items) if item["kind"] == "replan" and item["body"]["epoch"] == 2)
        for item in items[place:]:
            if item["signer"] == ring.record.author.id:
                item["chain"]["run"] += 1

    assert verify(resigned(ring, change)).refusal is Refusal.COUNTER


@pytest.mark.parametrize("beyond", [0, 3])
def test_a_tail_that_comes_back_accounts_for_what_was_kept(beyond: int) -> None:
    """What it drew beyond the next plan's start is another's to draw, though it was not there to learn of it."""
    ring = rejoined(2, restarts=False, beyond=beyond)
    verdict = verify(ring.receipt)
    assert verdict.refusal is None and verdict.run is not None, verdict.line
    tails = [epoch.tail for epoch in verdict.run.epochs]
    assert [(tail.first, tail.count) for tail in tails if tail is not None] == [(STARTS[0], 4), (STARTS[2], 4)]
    claim = next(claim for claim in verdict.claims if claim.subject == "tokens")
    assert claim.text.startswith("8/12 tokens by tail and requester")


@pytest.mark.parametrize(("epoch", "count"), [(0, 5), (0, 12), (2, 5)])
def test_tails_that_claim_the_same_positions(epoch: int, count: int) -> None:
    ring = rejoined(2, restarts=False)

    def change(items: list[dict[str, Any]]) -> None:
        (tail,) = (item for item in items if item["kind"] == "tail" and item["body"]["epoch"] == epoch)
        tail["body"]["count"] = count

    assert verify(resigned(ring, change)).refusal is Refusal.TOKENS


def test_a_tail_that_comes_back_claims_no_earlier_positions() -> None:
    ring = rejoined(2, restarts=True)

    def change(items: list[dict[str, Any]]) -> None:
        (tail,) = (item for item in items if item["kind"] == "tail")
        tail["body"].update(first=FIRST, count=len(TOKENS))

    assert verify(resigned(ring, change)).refusal is Refusal.TOKENS

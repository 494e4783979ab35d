"""Several receipts held against each other: whoever signed in more than one of them has one line of statements.

Every statement carries its author's sequence number, run counter and the digest of the statement before. Within one
receipt that is checked always; a node that was set back, or that keeps two accounts, shows itself between receipts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from receipts.check.checks import short
from receipts.check.content import check_disclosed
from receipts.check.run import ReceiptRun, assemble
from receipts.check.verdict import Claim, Standing
from receipts.format.document import document_untrusted
from receipts.format.errors import ReceiptError, Refusal
from receipts.format.sign import sha256
from receipts.format.statement import Statement, statement_untrusted


@dataclass(frozen=True)
class Other:
    """Another receipt: its run, the SHA-256 of its file, and the names of the values that it shows."""

    run: ReceiptRun
    digest: str
    shown: frozenset[str] = frozenset()


def other_untrusted(data: bytes) -> Other:
    """Read a receipt with its signatures and its order; what else it says is not this check's. Raises ReceiptError."""
    try:
        document = document_untrusted(data)
        for envelope in document.envelopes:
            envelope.check()
        run = assemble([statement_untrusted(envelope) for envelope in document.envelopes])
        check_disclosed(run, document.disclosed)
        return Other(run, sha256(data), frozenset(secret.name for secret in document.disclosed))
    except ReceiptError as exc:
        raise ReceiptError(exc.refusal, f"a receipt beside: {exc.claim}") from exc


def check_beside(run: ReceiptRun, digest: str, others: Sequence[Other]) -> list[Claim]:
    """Counters of every signer of `run` rise through all receipts; `digest` is of its file.

    Copies of one receipt that show other values are one account, since every statement in them is the same one.
    Raises ReceiptError: COUNTER, CHAIN, or DUPLICATED for two accounts of one order.
    """
    found: dict[str, ReceiptRun] = {}
    digests: dict[str, ReceiptRun] = {}
    copies: list[Other] = []
    for one in (Other(run, digest), *others):
        known = found.setdefault(one.run.order_digest, one.run)
        if [s.digest for s in known.statements] != [s.digest for s in one.run.statements]:
            raise ReceiptError(Refusal.DUPLICATED, f"two accounts of order {one.run.order_digest[:16]}")
        digests[one.digest] = known
        if known is run and one.digest != digest:
            copies.append(one)
    signers = {statement.signer for statement in run.statements}
    shared = 0
    for signer in sorted(signers):
        own = [s for one in found.values() for s in one.statements if s.signer == signer]
        shared += len({_order_of(statement) for statement in own}) > 1
        _check_line(signer, sorted(own, key=lambda statement: statement.chain.sequence))
    claims = [_of_copy(copy) for copy in copies]
    if len(found) > 1:
        text = (
            f"{shared} of {len(signers)} keys sign in more than one of {len(found)} receipts, and their counters rise"
        )
        claims.append(Claim(Standing.PROVEN if shared else Standing.NOT_CHECKED, "counters", text))
    before = digests.get(run.order.previous_receipt or "")
    if before is None and others and run.order.previous_receipt is not None:
        text = (
            f"none of those beside is the file {run.order.previous_receipt[:16]}, which the order names as the one "
            "before (a copy that shows other values is another file)"
        )
        claims.append(Claim(Standing.NOT_CHECKED, "previous receipt", text))
    if before is not None:
        _check_follows(run, before)
        text = f"the requester's receipt before is that of order {before.order_digest[:16]}"
        claims.append(Claim(Standing.PROVEN, "previous receipt", text))
    return claims


def _of_copy(copy: Other) -> Claim:
    """A copy is no second receipt: nothing can be held against it but what it shows, each value under its digest."""
    shown = ", ".join(sorted(copy.shown))
    what = f"the values that it shows fit ({shown})" if shown else "it shows no value"
    text = f"a copy of this receipt lies beside, with the same statements: {what}, what it leaves out is not compared"
    return Claim(Standing.NOT_CHECKED, "copy", text)


def _check_line(signer: str, line: Sequence[Statement]) -> None:
    """One author's statements in the order of their numbers."""
    for before, after in zip(line, line[1:], strict=False):
        who = f"{short(signer)}: {after.body.kind} of order {_order_of(after)[:16]}"
        number = after.chain.sequence
        if number == before.chain.sequence:
            raise ReceiptError(
                Refusal.COUNTER, f"{who} has number {number}, as another statement has: its counter went back"
            )
        if number == before.chain.sequence + 1 and after.chain.previous != before.digest:
            raise ReceiptError(Refusal.CHAIN, f"{who} does not continue statement {number - 1} of its signer")
    orders: dict[int, str] = {}
    for statement in line:
        count, order = statement.chain.run, _order_of(statement)
        if count not in orders and orders and count < max(orders):
            raise ReceiptError(Refusal.COUNTER, f"{short(signer)}: run counter goes back from {max(orders)} to {count}")
        if orders.setdefault(count, order) != order:
            raise ReceiptError(Refusal.COUNTER, f"{short(signer)}: run counter {count} stands in two runs")


def _order_of(statement: Statement) -> str:
    """Digest of the order that a statement is about; an order is about itself."""
    about: Mapping[str, str] = statement.about
    return about.get("order", statement.digest)


def _check_follows(run: ReceiptRun, before: ReceiptRun) -> None:
    """The order was signed after the close of the receipt that it names as the one before."""
    last = max((s.chain.sequence for s in before.statements if s.signer == run.requester), default=-1)
    if before.requester != run.requester or run.statements[0].chain.sequence <= last:
        raise ReceiptError(
            Refusal.COUNTER, "the receipt that the order names as the one before is not the requester's own"
        )

"""One epoch of a run as all its parties know it: who takes part, over which edges, under which salts."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

from receipts.format.closing import Edge, RttSeries
from receipts.format.errors import ReceiptError, Refusal
from receipts.format.merkle import leaf_hash
from receipts.format.opening import Order, PlannedStage, Replan
from receipts.format.salt import derive
from receipts.format.sign import SignedEnvelope
from receipts.format.statement import Statement, signed_statement_untrusted
from receipts.record.edge import EdgeLog, Keep
from receipts.record.headers import OpenPart, part_untrusted


@dataclass(frozen=True)
class Opening:
    """What the `open` message says: the order, this epoch's plan, and the run's secret (32 bytes, never signed)."""

    order: Order
    order_digest: str
    requester: str
    epoch: int
    plan_digest: str
    plan: tuple[PlannedStage, ...]
    first_position: int
    """Position of the first token that this epoch draws."""
    secret: bytes

    def edge_ends(self, index: int) -> tuple[str, str]:
        """Keys of sender and receiver of edge `index` (0: requester to head, len(plan): tail to requester)."""
        keys = [self.requester, *(stage.node for stage in self.plan), self.requester]
        return keys[index], keys[index + 1]

    def edge_log(self, index: int, end: str, executor: Executor | None, keep: Keep | None) -> EdgeLog:
        """What this party keeps of edge `index`; `end`: "sender" or "receiver"."""
        sender, receiver = self.edge_ends(index)
        return EdgeLog(index, end, sender, receiver, self._edge_salt(index), executor, keep)

    def _edge_salt(self, index: int) -> bytes:
        return derive(self.secret, "edge", self.epoch, index)

    def salt_leaves(self, key: str) -> tuple[bytes, bytes]:
        """Leaf hashes 0 of a stage's inbound and outbound edge; `receipts.record.rows` opens rows with them."""
        index = self.part_of(key)
        return leaf_hash(self._edge_salt(index)), leaf_hash(self._edge_salt(index + 1))

    def token_salt(self) -> bytes:
        """Under which the run's tokens are signed."""
        return derive(self.secret, "tokens")

    def part_of(self, key: str) -> int:
        """Index in the plan of the stage with this key. Raises ReceiptError(PLAN)."""
        for index, stage in enumerate(self.plan):
            if stage.node == key:
                return index
        raise ReceiptError(Refusal.PLAN, f"node {key[:16]} has no part in the plan of epoch {self.epoch}")

    def edge_statement(self, log: EdgeLog) -> Edge:
        """This end's EDGE. Raises ReceiptError(MISSING) when the other end's half never came."""
        if log.other_rtt is None:
            raise ReceiptError(Refusal.MISSING, f"edge {log.index}: the other end sent no round-trip times")
        ends: tuple[RttSeries, RttSeries] = (log.own_rtt(), log.other_rtt)
        sender_rtt, receiver_rtt = ends if log.end == "sender" else ends[::-1]
        return Edge(
            self.epoch,
            self.plan_digest,
            log.index,
            log.end,
            log.sender,
            log.receiver,
            log.link,
            sender_rtt,
            receiver_rtt,
            log.frames,
            log.bytes,
            log.root(),
            log.observed.digest if log.observed is not None else None,
        )

    def checked_untrusted(self, data: Any) -> tuple[SignedEnvelope, Statement]:
        """One envelope of this run from a peer: signature and order checked. Raises ReceiptError."""
        envelope, statement = signed_statement_untrusted(data)
        if statement.about.get("order") != self.order_digest:
            raise ReceiptError(Refusal.FOREIGN, f"{statement.body.kind} of {statement.signer[:16]} is of another run")
        return envelope, statement


def opening_untrusted(header: Mapping[str, Any]) -> Opening:
    """Read the receipt part of an `open` message; signatures checked. Raises ReceiptError."""
    part = part_untrusted(OpenPart, header, "open")
    _, statement = signed_statement_untrusted(part.order)
    order = statement.body
    if not isinstance(order, Order):
        raise ReceiptError(Refusal.PAYLOAD_TYPE, f"open: expected an order, found {order.kind}")
    opening = Opening(
        order, statement.digest, statement.signer, 0, statement.digest, order.plan, order.prompt_tokens, part.secret
    )
    if part.replan is None:
        return opening
    _, again = signed_statement_untrusted(part.replan)
    replan = again.body
    if not isinstance(replan, Replan):
        raise ReceiptError(Refusal.PAYLOAD_TYPE, f"open: expected a replan, found {replan.kind}")
    if again.signer != opening.requester or again.about["order"] != opening.order_digest:
        raise ReceiptError(Refusal.FOREIGN, "open: the replan belongs to another order")
    return replace(
        opening,
        epoch=replan.epoch,
        plan_digest=again.digest,
        plan=replan.plan,
        first_position=replan.position,
    )

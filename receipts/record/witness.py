"""A witness: a node outside the ring that countersigns an order and later the close, with its own times."""

from __future__ import annotations

from receipts.format.closing import Close, Witness
from receipts.format.errors import ReceiptError, Refusal
from receipts.format.opening import Order
from receipts.format.salt import Secret
from receipts.format.statement import Author, signed_statement_untrusted


class WitnessRecord:
    """One run as one witness saw it. `secrets` holds the requester's address as this witness saw it."""

    def __init__(
        self, author: Author, order: bytes, now_us: int, address: str | None = None, salt: bytes = b""
    ) -> None:
        """Check the order that a requester sent. `now_us` is Unix time; `salt` is 32 random bytes for the address."""
        _, statement = signed_statement_untrusted(order)
        if not isinstance(statement.body, Order):
            raise ReceiptError(Refusal.PAYLOAD_TYPE, f"witness: expected an order, found {statement.body.kind}")
        if author.id in {stage.node for stage in statement.body.plan}:
            raise ReceiptError(Refusal.WITNESS, "a stage of the ring cannot witness it")
        self._author = author
        self._run = author.begin_run()
        self._order = statement.digest
        self._requester = statement.signer
        self._seen_us = now_us
        self.secrets = [Secret("address", salt, address)] if address is not None else []

    def sign_order(self) -> bytes:
        """The envelope of phase "order"."""
        body = Witness("order", self._seen_us, 0, self._observed())
        return self._author.issue(self._run, {"order": self._order}, body).to_bytes()

    def sign_close(self, close: bytes, now_us: int) -> bytes:
        """The envelope of phase "close", for a CLOSE of the same order and requester that names this key."""
        _, statement = signed_statement_untrusted(close)
        body = statement.body
        if not isinstance(body, Close) or statement.about["order"] != self._order:
            raise ReceiptError(Refusal.FOREIGN, "witness: not the close of the order that was seen")
        if statement.signer != self._requester or self._author.id not in body.witnesses:
            raise ReceiptError(Refusal.SIGNER, "witness: the close is another's, or does not name this witness")
        about = {"order": self._order, "close": statement.digest}
        seen = Witness("close", self._seen_us, now_us, self._observed())
        return self._author.issue(self._run, about, seen).to_bytes()

    def _observed(self) -> str | None:
        return self.secrets[0].digest if self.secrets else None

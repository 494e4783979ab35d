"""The requester's record of one run: it orders, re-plans, closes, and assembles the receipt file.

Nothing here does I/O or reads a clock; randomness and times are arguments. See `docs/receipts.md` for the messages.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

from receipts.format.closing import Close, Edge, End, Served, Span, Tail, Witness
from receipts.format.document import document_bytes, secrets_bytes
from receipts.format.errors import ReceiptError, Refusal
from receipts.format.opening import Accept, HeldTo, Model, Order, PlannedStage, Replan, Sampler, Shaped
from receipts.format.salt import Secret
from receipts.format.sign import SignedEnvelope
from receipts.format.statement import Author, statement_untrusted
from receipts.record.edge import EdgeLog
from receipts.record.epoch import Opening
from receipts.record.headers import (
    AcceptsPart,
    CollectPart,
    HalfPart,
    Header,
    drawn_of,
    half_fields,
    part_untrusted,
    shown_of,
)
from receipts.record.own import OwnEpochs, OwnLayers, OwnLog
from receipts.record.tail import Drawn

PUBLIC = frozenset({"tokens", "text"})
"""What a receipt shows unless told otherwise; `--private-text` shows nothing, a shared prompt adds "prompt"."""


class RequesterRecord:
    """One run of the requester. `outbound` is its edge to the head, `inbound` the tail's edge to it (this epoch's)."""

    def __init__(
        self,
        author: Author,
        *,
        model: Model,
        dtype: str,
        wire: str,
        sampler: Sampler,
        prompt: Sequence[int],
        max_tokens: int,
        plan: Sequence[PlannedStage],
        time_us: int,
        random: Callable[[int], bytes],
        previous_receipt: str | None = None,
        executor: Executor | None = None,
        own: OwnLayers | None = None,
        held_to: HeldTo | None = None,
        shaped: Shaped | None = None,
    ) -> None:
        """Sign the ORDER. `random` gives n unpredictable bytes (`secrets.token_bytes`), `time_us` is Unix time.

        `own`: the layers at either end that the requester computes itself; then `own_log` is told of every frame.
        """
        self.author = author
        self.run = author.begin_run()
        self.prompt = Secret("prompt", random(32), list(prompt))
        self._executor = executor
        self._random = random
        self._own = OwnEpochs(own)
        order = Order(
            random(32).hex(),
            time_us,
            model,
            dtype,
            wire,
            sampler,
            self.prompt.digest,
            len(prompt),
            max_tokens,
            own.count if own is not None else 0,
            tuple(plan),
            previous_receipt,
            held_to,
            shaped,
        )
        self.order = author.issue(self.run, {"model": model.manifest}, order)
        digest = self.order.digest
        self.opening = Opening(order, digest, author.id, 0, digest, order.plan, len(prompt), random(32))
        self.secrets: list[Secret] = [self.prompt]
        self.disclosed: list[Secret] = []
        self._open_ends: list[EdgeLog] = []
        self._replan: SignedEnvelope | None = None
        self._envelopes: list[SignedEnvelope] = [self.order]
        self._epochs: list[Opening] = [self.opening]
        self._stood: set[int] = set()
        self._ends: dict[tuple[str, int], End] = {}
        self._drawn: list[Drawn] = []
        self._close: SignedEnvelope | None = None
        self._open_edges()

    def _open_edges(self) -> None:
        self.outbound: EdgeLog = self.opening.edge_log(0, "sender", self._executor, None)
        self.inbound: EdgeLog = self.opening.edge_log(len(self.opening.plan), "receiver", self._executor, None)
        self.own_log: OwnLog | None = self._own.begin(self.opening, self.outbound, self.inbound)

    def open_header(self) -> Header:
        """The receipt part of the `open` message, for the head."""
        replan = self._replan.to_bytes() if self._replan is not None else None
        return {"order": self.order.to_bytes(), "replan": replan, "secret": self.opening.secret, "accepts": []}

    def opened_untrusted(self, header: Mapping[str, Any]) -> tuple[Accept, ...]:
        """Take the ACCEPTs that the tail returned, one per stage in ring order, once. Raises ReceiptError."""
        envelopes = part_untrusted(AcceptsPart, header, "open").accepts or ()
        if len(envelopes) != len(self.opening.plan):
            raise ReceiptError(Refusal.MISSING, f"{len(envelopes)} accepts for {len(self.opening.plan)} stages")
        taken: list[tuple[SignedEnvelope, Accept]] = []
        for data, stage in zip(envelopes, self.opening.plan, strict=True):
            envelope, statement = self.opening.checked_untrusted(data)
            accept = statement.body
            if not isinstance(accept, Accept) or statement.signer != stage.node:
                raise ReceiptError(Refusal.SIGNER, f"expected the accept of {stage.node[:16]}")
            if (accept.first, accept.last) != (stage.first, stage.last):
                raise ReceiptError(Refusal.PLAN, f"{stage.node[:16]} accepted layers {accept.first}-{accept.last}")
            if accept.plan != self.opening.plan_digest or accept.epoch != self.opening.epoch:
                raise ReceiptError(Refusal.PLAN, f"{stage.node[:16]} accepted another plan")
            taken.append((envelope, accept))
        if self.opening.epoch not in self._stood:
            self._stood.add(self.opening.epoch)
            self._envelopes += [envelope for envelope, _ in taken]
        return tuple(accept for _, accept in taken)

    def witnessed_untrusted(self, data: bytes, phase: str) -> str:
        """Take a witness's envelope for phase "order" (any time before `close`) or "close". Returns its key.

        Raises ReceiptError, also where it was a stage of the run in any epoch: a party cannot witness.
        """
        envelope, statement = self.opening.checked_untrusted(data)
        if not isinstance(statement.body, Witness) or statement.body.phase != phase:
            raise ReceiptError(Refusal.WITNESS, f"expected a witness of the {phase}")
        if phase == "close" and (self._close is None or statement.about.get("close") != self._close.digest):
            raise ReceiptError(Refusal.WITNESS, "the witness saw another close")
        if any(stage.node == statement.signer for epoch in self._epochs for stage in epoch.plan):
            # Its word may come late: it was asked before a recovery gave it a part.
            raise ReceiptError(Refusal.WITNESS, f"{statement.signer[:16]} has become a stage of the run")
        self._envelopes.append(envelope)
        return statement.signer

    def dismiss(self, key: str) -> None:
        """Leave out the witness with this key: it has become a stage, and a party cannot witness."""
        self._envelopes = [
            envelope
            for envelope in self._envelopes
            if envelope.key.hex() != key or not isinstance(statement_untrusted(envelope).body, Witness)
        ]

    def replan(
        self, plan: Sequence[PlannedStage], position: int, lost: Sequence[str], reason: str, time_us: int
    ) -> Header:
        """Sign a new plan after a failure; the new ring draws from `position` on. Returns the `open` header."""
        body = Replan(self.opening.epoch + 1, time_us, position, tuple(lost), reason[:200], tuple(plan))
        self._replan = self.author.issue(self.run, {"order": self.order.digest}, body)
        self._envelopes.append(self._replan)
        self.opening = replace(
            self.opening,
            epoch=body.epoch,
            plan_digest=self._replan.digest,
            plan=body.plan,
            first_position=position,
        )
        self._epochs.append(self.opening)
        self._open_edges()
        return self.open_header()

    def close_header(self, until: int) -> Header:
        """The `close` header for the head; `until` is the position after the last token that the run keeps."""
        return {"until": until, **half_fields(self.outbound.own_rtt())}

    def closed_untrusted(self, reply: Mapping[str, Any]) -> None:
        """Handle the head's reply to `close_header`."""
        part = part_untrusted(HalfPart, reply, f"edge {self.outbound.index}")
        self.outbound.settle(part.half)
        if part.disclose:
            self._open_ends.append(self.outbound)

    def closing_untrusted(self, header: Mapping[str, Any]) -> Header:
        """Handle the tail's `close`: returns the reply to it."""
        part = part_untrusted(HalfPart, header, f"edge {self.inbound.index}")
        self.inbound.settle(part.half)
        if part.disclose:
            self._open_ends.append(self.inbound)
        return half_fields(self.inbound.own_rtt())

    def collect_header(self) -> Header:
        """The `collect` header for the head, sent when the tail's `close` has arrived.

        `starts`: where each epoch began to draw, for a stage that was left out of the next one and came back later.
        """
        return {"envelopes": [], "drawn": [], "starts": [opening.first_position for opening in self._epochs]}

    def collected_untrusted(self, header: Mapping[str, Any]) -> None:
        """Take the statements that came round the ring, and sign the requester's own two edges."""
        part = part_untrusted(CollectPart, header, "collect")
        found = [self.opening.checked_untrusted(data) for data in part.envelopes or ()]
        for envelope, statement in found:
            if not isinstance(statement.body, Edge | End | Tail):
                raise ReceiptError(Refusal.PAYLOAD_TYPE, f"collect: a {statement.body.kind} has no place here")
            if statement.body.epoch not in self._stood:
                continue  # that ring broke before its acceptances had come home: nothing of it is accounted for
            if isinstance(statement.body, End):
                self._ends[statement.signer, statement.body.epoch] = statement.body
            self._envelopes.append(envelope)
        self._drawn += drawn_of(part)
        for log in (self.outbound, self.inbound):
            if log.observed is not None:
                self.secrets.append(log.observed)
            body = self.opening.edge_statement(log)
            self._envelopes.append(self.author.issue(self.run, {"order": self.order.digest}, body))
        self._account_own(until_last=False)
        self.disclosed += [log.observed for log in self._open_ends if log.observed is not None]
        self.disclosed += self._fitting(shown_of(part))

    def _account_own(self, until_last: bool) -> None:
        """Sign, once each, what the requester computed in every epoch; `until_last`: the last one never closed."""
        for body in self._own.statements(until_last):
            self._envelopes.append(self.author.issue(self.run, {"order": self.order.digest}, body))

    def _fitting(self, shown: Sequence[Secret]) -> list[Secret]:
        """Those whose digest a statement has in its place: any other would make the receipt one that is refused."""
        bodies = [statement_untrusted(envelope).body for envelope in self._envelopes]
        signed = {("uuid", body.hardware.uuid) for body in bodies if isinstance(body, Accept)}
        signed |= {("address", body.observed) for body in bodies if isinstance(body, Edge)}
        return [secret for secret in shown if (secret.name, secret.digest) in signed]

    def close(
        self,
        *,
        tokens: Sequence[int],
        text: str,
        finish_reason: str,
        time_us: int,
        first_token_us: int,
        last_token_us: int,
        elapsed_us: int,
        draft: Mapping[str, int],
        drafter: str,
        speculation: str,
        witnesses: Sequence[str] = (),
        outcome: str = "complete",
    ) -> SignedEnvelope:
        """Sign CLOSE over everything before it. May be called again with fewer `witnesses` when one does not answer.

        Times are microseconds since the order by the monotonic clock, `time_us` is Unix time. `draft` holds counts
        (passes, rows_sent, drafted, accepted, ...). `outcome` is "complete", "failed" or "cancelled".
        """
        self._account_own(until_last=True)
        first = self.opening.order.prompt_tokens
        listed = Drawn(first, tuple(tokens), self._margins(first, tokens))
        secrets = (
            Secret("tokens", self.opening.token_salt(), listed.as_json()),
            Secret("text", self._random(32), text),
        )
        if self._close is not None:
            cut = next(i for i, envelope in enumerate(self._envelopes) if envelope is self._close)
            self._envelopes, self.secrets = self._envelopes[:cut], self.secrets[:-2]
        self.secrets += secrets
        body = Close(
            outcome,
            finish_reason,
            time_us,
            first,
            len(tokens),
            secrets[0].digest,
            secrets[1].digest,
            first_token_us,
            last_token_us,
            elapsed_us,
            dict(draft),
            drafter,
            speculation,
            self._served(first + len(tokens)),
            tuple(witnesses),
            tuple(envelope.digest for envelope in self._envelopes),
        )
        self._close = self.author.issue(self.run, {"order": self.order.digest}, body)
        self._envelopes.append(self._close)
        return self._close

    def _margins(self, first: int, tokens: Sequence[int]) -> tuple[int, ...]:
        """The tails' margins where they drew the same token; 0 where no tail accounts for it."""
        own = self._own.drawn(first + len(tokens))
        known = {
            (drawn.first + index, token): margin
            for drawn in (*self._drawn, *own)
            for index, (token, margin) in enumerate(zip(drawn.tokens, drawn.margins_ppm, strict=True))
        }
        return tuple(known.get((first + index, token), 0) for index, token in enumerate(tokens))

    def _served(self, until: int) -> tuple[Served, ...]:
        served = []
        for epoch, following in zip(self._epochs, [*self._epochs[1:], None], strict=True):
            stop = following.first_position if following is not None else until
            start = epoch.first_position if epoch.epoch else 0
            for stage in epoch.plan:
                end = self._ends.get((stage.node, epoch.epoch))
                positions = end.positions if end is not None else Span(start, max(start, stop))
                outcome = "ended" if end is not None else "lost"
                served.append(Served(stage.node, epoch.epoch, stage.first, stage.last, positions, outcome))
        return tuple(served)

    def receipt(self, show: Collection[str] = PUBLIC, more: Sequence[Secret] = ()) -> bytes:
        """The receipt file. `show` names what is disclosed in it; `more` are further values.

        What operators of nodes chose to disclose is in it in any case.
        """
        if self._close is None:
            raise ReceiptError(Refusal.MISSING, "the run is not closed yet")
        return document_bytes(self._envelopes, [*(s for s in self.secrets if s.name in show), *self.disclosed, *more])

    def secrets_file(self) -> bytes:
        """What the requester keeps beside the receipt (mode 0600) in order to disclose or replay later."""
        return secrets_bytes(self.secrets)

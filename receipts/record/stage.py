"""A stage's record of one run and epoch: it accepts when the ring opens and accounts for itself when it closes.

Nothing here does I/O or reads a clock. Headers are plain dicts (bytes, integers, strings, lists) that the ring carries
in its own messages; see `docs/receipts.md` for the order of messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from itertools import pairwise
from typing import Any, Protocol

from receipts.format.closing import Edge, End, History, Tail
from receipts.format.errors import ReceiptError, Refusal
from receipts.format.opening import Accept, Hardware, Software
from receipts.format.salt import Secret
from receipts.format.sign import SignedEnvelope
from receipts.format.statement import Author
from receipts.record.edge import Buffer, EdgeLog
from receipts.record.epoch import Opening
from receipts.record.headers import (
    AcceptsPart,
    CollectPart,
    HalfPart,
    Header,
    StartsPart,
    UntilPart,
    drawn_fields,
    drawn_of,
    half_fields,
    part_untrusted,
    shown_fields,
    shown_of,
)
from receipts.record.tail import Drawn, TailLog
from receipts.record.work import Work


class FrameKeeper(Protocol):
    """Where a stage keeps the frames of one epoch for audits; called in order, in the hashing thread."""

    def inbound(self, seq: int, head: Buffer, body: Buffer, leaf: bytes) -> None:
        """Store a frame that came in."""

    def outbound(self, seq: int, head: Buffer, body: Buffer, leaf: bytes) -> None:
        """Store a frame that went out."""


class StageRecord:
    """One node's part in one epoch of one run.

    `inbound` and `outbound` are its edges, `tail` the log of drawn tokens (only at the last stage, else None).
    `earlier` is the record of the epoch before when this node took part in it; its END is signed with the last one's.
    `frames` keeps what crosses, for audits. `disclose`: its operator lets receipts show the device's UUID and, on
    edges whose other end says so too, addresses.
    Raises ReceiptError when the order does not give this node a part, or names another manifest.
    """

    def __init__(
        self,
        author: Author,
        opening: Opening,
        *,
        manifest: str,
        executor: Executor | None = None,
        frames: FrameKeeper | None = None,
        earlier: StageRecord | None = None,
        disclose: bool = False,
    ) -> None:
        index = opening.part_of(author.id)
        if opening.order.model.manifest != manifest:
            raise ReceiptError(
                Refusal.MANIFEST, f"order is for manifest {opening.order.model.manifest[:16]}, here is {manifest[:16]}"
            )
        self.author = author
        self.opening = opening
        self.part = opening.plan[index]
        self.earlier = earlier
        self.run: int = earlier.run if earlier is not None else author.begin_run()
        self.inbound = opening.edge_log(index, "receiver", executor, frames.inbound if frames is not None else None)
        self.outbound = opening.edge_log(index + 1, "sender", executor, frames.outbound if frames is not None else None)
        self.tail = TailLog() if self.part.last == opening.order.model.layers else None
        self.secrets: list[Secret] = []
        self.history: tuple[History, ...] = ()
        """What the keys and values were before this epoch; set it before `collect`."""
        self.disclose = disclose
        self._open_ends: list[EdgeLog] = []
        self._work = Work()
        self._until = 0

    def accept(
        self,
        header: Header,
        *,
        nonce: bytes,
        time_us: int,
        weights: str,
        software: Software,
        hardware: Hardware,
        secrets: Sequence[Secret] = (),
        fingerprint: str | None = None,
    ) -> Header:
        """Sign this stage's ACCEPT and append it to the `open` header, which goes on to the next stage.

        `nonce` is 32 fresh random bytes, `time_us` Unix time, `weights` the manifest's digest of these layers.
        `secrets` are the hardware values that stand in `hardware` as salted digests. `fingerprint`: of its kernels.
        """
        self.secrets.extend(secrets)
        body = Accept(
            self.opening.epoch,
            self.opening.plan_digest,
            self.part.first,
            self.part.last,
            nonce.hex(),
            time_us,
            weights,
            software,
            hardware,
            fingerprint,
        )
        before = part_untrusted(AcceptsPart, header, "open").accepts or ()
        return header | {"accepts": [*before, self._issue(body).to_bytes()]}

    def computed(self, rows: int, first: int, last: int, compute_us: int) -> None:
        """One frame was computed: `rows` rows at positions [first, last), in `compute_us` microseconds."""
        self._work.add(rows, first, last, compute_us)

    def closing_untrusted(self, header: Mapping[str, Any]) -> Header:
        """Handle `close` from upstream: returns the reply to it. Then send `close_header()` downstream."""
        until, part = part_untrusted(UntilPart, header, "close"), part_untrusted(HalfPart, header, "close")
        self._until = until.until
        self.inbound.settle(part.half)
        if part.disclose:
            self._open_ends.append(self.inbound)
        return half_fields(self.inbound.own_rtt(), self.disclose)

    def close_header(self) -> Header:
        """The `close` header for the next stage (or, from the tail, for the requester)."""
        return {"until": self._until, **half_fields(self.outbound.own_rtt(), self.disclose)}

    def closed_untrusted(self, reply: Mapping[str, Any]) -> None:
        """Handle the reply to `close_header()`."""
        part = part_untrusted(HalfPart, reply, f"edge {self.outbound.index}")
        self.outbound.settle(part.half)
        if part.disclose:
            self._open_ends.append(self.outbound)

    def collect(self, header: Mapping[str, Any]) -> Header:
        """Handle `collect`: append this stage's statements; the result goes on to the next stage or the requester."""
        signed: list[SignedEnvelope] = []
        part = part_untrusted(CollectPart, header, "collect")
        drawn = drawn_of(part)
        starts = dict(enumerate(part_untrusted(StartsPart, header, "collect").starts or ()))
        epochs: list[StageRecord] = [self]
        while (past := epochs[0].earlier) is not None:
            epochs.insert(0, past)
        for past, newer in pairwise(epochs):
            # What a failed epoch drew beyond the next plan's start was never kept; the next may be another's.
            following = starts.get(past.opening.epoch + 1, newer.opening.first_position)
            until = min(following, newer.opening.first_position, self._until)
            signed += past._account(drawn, until, interrupted=True)
        signed += [self._issue(self._edge(self.inbound)), self._issue(self._edge(self.outbound))]
        signed += self._account(drawn, self._until, interrupted=False)
        envelopes = [*(part.envelopes or ()), *(envelope.to_bytes() for envelope in signed)]
        shown = [shown_fields(secret) for secret in (*shown_of(part), *self._shown())]
        told = [drawn_fields(each) for each in drawn]
        return dict(header) | {"envelopes": envelopes, "drawn": told, "disclosed": shown}

    def _shown(self) -> list[Secret]:
        """What this node's operator lets everybody see; an address only where its owner does, too."""
        if not self.disclose:
            return []
        seen = [log.observed for log in self._open_ends if log.observed is not None]
        return [*(secret for secret in self.secrets if secret.name == "uuid"), *seen]

    def _account(self, drawn: list[Drawn], until: int, interrupted: bool) -> list[SignedEnvelope]:
        opening = self.opening
        end = End(
            opening.epoch,
            opening.plan_digest,
            self.part.first,
            self.part.last,
            self.inbound.root(),
            self.outbound.root(),
            self.inbound.frames,
            self.outbound.frames,
            self.history,
            self._work.frames,
            self._work.rows,
            self._work.span,
            self._work.compute_us,
            interrupted,
        )
        signed = [self._issue(end)]
        if self.tail is not None:
            kept = self.tail.drawn(opening.first_position, until)
            drawn.append(kept)
            body = Tail(
                opening.epoch,
                opening.plan_digest,
                opening.first_position,
                len(kept.tokens),
                kept.root(opening.token_salt()),
                self.tail.answers,
                self.tail.span_us,
            )
            signed.append(self._issue(body))
        return signed

    def _edge(self, log: EdgeLog) -> Edge:
        if log.observed is not None:
            self.secrets.append(log.observed)
        return self.opening.edge_statement(log)

    def _issue(self, body: Accept | Edge | End | Tail) -> SignedEnvelope:
        return self.author.issue(self.run, {"order": self.opening.order_digest}, body)

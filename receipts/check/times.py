"""How long a run took and when it was, by whose clock: speed, and what witnesses saw of it.

Each clock is its owner's word. The requester's says what it likes; the tails' bound how fast the tokens can have come,
as far as they are not the requester's friends; a witness's two times bound when order and close were there.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from receipts.check.checks import ms
from receipts.check.run import ReceiptRun, Witnessed
from receipts.check.verdict import Claim, Standing
from receipts.format.errors import ReceiptError, Refusal

SPAN_SLACK_US = 250_000
"""Tail and requester measure the same span on their own clocks; a slow link shifts it by its jitter, not by this."""
SPAN_BROKEN_US = 5_000_000
WITNESS_SLACK_US = 60_000_000
"""A witness's times lie no further apart than the run took and this: it is asked at once, others perhaps in vain."""
CLOCKS_APART_US = 60_000_000
"""Wall clocks of different machines that are further apart than this are told of."""


def span_us(run: ReceiptRun) -> int:
    """From the first token to the last, by the requester's clock."""
    return run.close.last_token_us - run.close.first_token_us


def tails_us(run: ReceiptRun) -> int:
    """How long the tails were at it, from first answer to last, by their own clocks: one epoch follows another."""
    return sum(epoch.tail.span_us for epoch in run.epochs if epoch.tail is not None and epoch.tail.count)


def check_times(run: ReceiptRun) -> list[Claim]:
    """Times of the requester are in order, and no faster than the tails' own clocks allow. Raises ReceiptError(TIMES).

    What is printed is never faster than those: the requester's own speed where it is slower.
    """
    close = run.close
    if not close.first_token_us <= close.last_token_us <= close.elapsed_us:
        raise ReceiptError(Refusal.TIMES, "first token, last token and end are not in this order")
    span, tails, count = span_us(run), tails_us(run), close.new_tokens
    if 2 * span + SPAN_BROKEN_US < tails:
        raise ReceiptError(
            Refusal.TIMES, f"requester says {ms(span)} ms from first token to last, the tails {ms(tails)} ms"
        )
    told = sum(epoch.tail.count for epoch in run.epochs if epoch.tail is not None)
    claims = []
    # Of one epoch both measured the same span. What lies between epochs no tail has seen.
    if count > 1 and told == count and run.last.tail is not None and run.last.tail.count == count:
        slower = max(span, tails)
        if slower and abs(span - tails) <= SPAN_SLACK_US + slower // 10:
            both = f"requester {ms(span)} ms, tail {ms(tails)} ms"
            text = f"{count - 1} tokens after the first in {slower / 1e6:.2f} s, {_rate(count - 1, slower)} ({both})"
            claims.append(Claim(Standing.COSIGNED, "speed", text))
    whole = max(close.elapsed_us, tails)
    if tails > close.elapsed_us:
        clock = f"by the tails' clocks, {close.elapsed_us / 1e6:.2f} s by the requester's"
    else:
        clock = "from order to end by the requester's clock alone"
    if told and not claims:
        clock += f"; tails that drew {told} of them took {tails / 1e6:.2f} s by their own"
    claims.append(
        Claim(Standing.CLAIMED, "speed", f"{count} tokens in {whole / 1e6:.2f} s, {_rate(count, whole)}, {clock}")
    )
    return claims


def _rate(count: int, micros: int) -> str:
    return f"{count / (max(micros, 1) / 1e6):.1f} tokens/s"


Seen = Literal["run", "order only", "late", "loose", "backwards"]
"""What a witness saw of a run by its own clock: the order before the first tokens and the close at the end, or less."""


def seen_by(run: ReceiptRun, witness: Witnessed) -> Seen:
    """Whether a witness's two times enclose the run, as long as that took by requester and tails.

    A requester chooses when it shows what: the order days before or when all is done, the close days later.
    """
    if witness.closed is None:
        return "order only"
    apart = witness.closed.close_seen_us - witness.closed.order_seen_us
    if apart < 0:
        return "backwards"
    took = max(span_us(run), tails_us(run))
    if apart + SPAN_SLACK_US + took // 10 < took:
        return "late"
    return "loose" if apart > max(run.close.elapsed_us, took) + WITNESS_SLACK_US else "run"


def witness_claims(run: ReceiptRun, trusted: Collection[str]) -> list[Claim]:
    """A witness says when it saw order and close, no more: not what was computed between. A trust file tells who it is.

    What does not enclose the run stands as a claim: the requester showed order or close when it liked.
    """
    claims = []
    for witness in run.witnesses:
        seen = seen_by(run, witness)
        known = "a trusted key" if witness.key in trusted else "a key that is not in a trust file"
        text = f"{_said(run, witness, seen)} ({known}){_clocks(run, witness)}"
        standing = Standing.WITNESSED if seen in ("run", "order only") else Standing.CLAIMED
        claims.append(Claim(standing, "witness", text, witness.key))
    return claims


def _said(run: ReceiptRun, witness: Witnessed, seen: Seen) -> str:
    if witness.closed is None:
        return "saw the order, not the close"
    if seen == "backwards":
        return "its clock went back between order and close"
    apart = (witness.closed.close_seen_us - witness.closed.order_seen_us) / 1e6
    text = f"saw order and close {apart:.2f} s apart"
    if seen == "late":
        took = max(span_us(run), tails_us(run)) / 1e6
        return f"{text}, the tokens took {took:.2f} s: it was shown the order when some were drawn"
    if seen == "loose":
        return f"{text}, the run took {run.close.elapsed_us / 1e6:.2f} s: of the rest it says nothing"
    return text


def _clocks(run: ReceiptRun, witness: Witnessed) -> str:
    """Where the requester's wall clock says another time of order or close than the witness's."""
    pairs = [("order", run.order.time_us, witness.order.order_seen_us)]
    if witness.closed is not None:
        pairs.append(("close", run.close.time_us, witness.closed.close_seen_us))
    found = [
        f"{abs(said - seen) // 1_000_000} s {'after' if said > seen else 'before'} it for the {name}"
        for name, said, seen in pairs
        if abs(said - seen) > CLOCKS_APART_US
    ]
    return f"; the requester's clock says {', '.join(found)}" if found else ""

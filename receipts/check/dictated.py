"""What of an answer the order itself dictates: no model's word, however honestly it was computed.

An order may give the answer's first tokens, bias any token, close a thought after some tokens, or hold the answer to a
constraint that leaves one text. A
receipt of such a run is sound at every level, so whoever reads the level has to be told in the same line.
"""

from __future__ import annotations

from receipts.check.run import ReceiptRun
from receipts.check.verdict import Disclosed
from receipts.record.tail import margin_ppm

NO_OTHER_PPM = margin_ppm(1e9)
"""The margin of a token beside which none was allowed (`swarm.model.sampler.MAX_MARGIN`)."""


def given_tokens(run: ReceiptRun) -> int:
    """How many of the kept tokens, from the first on, the order gives: they were not drawn."""
    shaped = run.order.shaped
    return 0 if shaped is None else min(len(shaped.given), run.close.new_tokens)


def dictated(run: ReceiptRun, disclosed: Disclosed) -> str:
    """What the order dictates, in words that follow a result; "" where the model alone chose.

    Where a constraint left no choice is read off the margins where these are disclosed. They are the tail's word, or
    the requester's where no tail accounts for a token: they can hide it, never that there was a constraint.
    """
    order, parts, by_margins = run.order, [], False
    if given := given_tokens(run):
        parts.append(f"gave {given} of {run.close.new_tokens} tokens itself")
    if order.held_to is not None:
        tokens = disclosed.tokens
        forced = sum(margin >= NO_OTHER_PPM for margin in tokens.margins_ppm[given:]) if tokens is not None else None
        if forced is None:
            parts.append("held it to a constraint, which may have left no choice")
        else:
            parts.append(f"held it to a constraint that left no choice at {forced} of {run.close.new_tokens} tokens")
            by_margins = True
    if order.shaped is not None and order.shaped.thought is not None:
        parts.append(_closed(run, disclosed, given))
        by_margins = by_margins or disclosed.tokens is not None
    if order.shaped is not None and (biased := len(order.shaped.bias)):
        parts.append(f"biased {biased} token{'s' * (biased != 1)}")
    said = ", by the margins shown" if by_margins else ""
    return f"the order {', '.join(parts)}{said}" if parts else ""


def _closed(run: ReceiptRun, disclosed: Disclosed, given: int) -> str:
    """Whether the order ended a thought, by the margins of its closing mark where these are disclosed."""
    limit, tokens = run.order.shaped and run.order.shaped.thought, disclosed.tokens
    assert limit
    if tokens is None:
        return f"let it think for {limit.most} tokens at most, which may have closed its thought"
    drawn = zip(tokens.tokens[given:], tokens.margins_ppm[given:], strict=True)
    closing = sum(token in limit.closes and margin >= NO_OTHER_PPM for token, margin in drawn)
    if not closing:
        return f"let it think for {limit.most} tokens at most and did not close its thought"
    return f"closed its thought after {limit.most} tokens"

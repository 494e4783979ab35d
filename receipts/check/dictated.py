"""What of an answer the order itself dictates: no model's word, however honestly it was computed.

An order may give the answer's first tokens, bias any token, or hold the answer to a constraint that leaves one text. A
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

    Where a constraint left no choice is read off the margins that the tail gave, where these are disclosed.
    """
    order, parts = run.order, []
    if given := given_tokens(run):
        parts.append(f"gave {given} of {run.close.new_tokens} tokens itself")
    if order.held_to is not None:
        tokens = disclosed.tokens
        forced = sum(margin >= NO_OTHER_PPM for margin in tokens.margins_ppm[given:]) if tokens is not None else None
        if forced is None:
            parts.append("held it to a constraint, which may have left no choice")
        elif forced:
            parts.append(f"left no choice at {forced} of {run.close.new_tokens} tokens")
    if order.shaped is not None and (biased := len(order.shaped.bias)):
        parts.append(f"biased {biased} token{'s' * (biased != 1)}")
    return f"the order {', '.join(parts)}" if parts else ""

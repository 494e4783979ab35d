"""Replay by the verifier: the whole run is recomputed with the model, every token drawn again and its text decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from receipts.check.dictated import given_tokens
from receipts.check.outcome import Outcome
from receipts.check.recompute import MILLION, Limit
from receipts.check.run import ReceiptRun
from receipts.check.samples import EXACT
from receipts.check.verdict import Claim, Disclosed, Standing
from receipts.format.errors import ReceiptError, Refusal
from receipts.format.opening import Order


@dataclass(frozen=True)
class Replayed:
    """Teacher-forced recomputation of a run: entry i is about the receipt's token i.

    `best` is the token that the recomputation draws there, `gaps` the least error of the logits for which the
    receipt's token would be drawn (0 where equal; in logits, so that one limit serves every temperature). `text` is
    the decoded text, None when not decoded. `exact`: computed by kernels of the stages' own fingerprint, whose rows
    keep their bits in any company, so that no token may differ.
    """

    best: Sequence[int]
    gaps: Sequence[float]
    text: str | None = None
    exact: bool = False


class Replayer(Protocol):
    """Recomputes with the model. `replay` may raise ReceiptError; its own failures are the caller's to translate."""

    def replay(self, order: Order, prompt: Sequence[int], tokens: Sequence[int]) -> Replayed: ...


def check_replay(run: ReceiptRun, disclosed: Disclosed, replayer: Replayer, limit: Limit) -> Outcome:
    """Recompute the run and compare every token. Raises ReceiptError(REPLAY or TEXT) when the receipt is wrong."""
    if disclosed.prompt is None or disclosed.tokens is None:
        return Outcome((), False, "replay needs the prompt and the tokens disclosed (or the requester's secrets file)")
    tokens = disclosed.tokens.tokens
    if not tokens:
        return Outcome((), False, "the run has no token to recompute")
    replayed = replayer.replay(run.order, disclosed.prompt, tokens)
    if len(replayed.best) != len(tokens) or len(replayed.gaps) != len(tokens):
        raise ReceiptError(Refusal.REPLAY, f"the recomputation covers {len(replayed.best)} of {len(tokens)} tokens")
    ties = 0
    for index, (token, best, gap) in enumerate(zip(tokens, replayed.best, replayed.gaps, strict=True)):
        if token == best:
            continue
        if replayed.exact or not gap * MILLION <= limit.tie_ppm:
            position = disclosed.tokens.first + index
            raise ReceiptError(Refusal.REPLAY, f"token {token} at position {position}: recomputing gives {best}")
        ties += 1
    decoded = _decoded(run, replayed.text, disclosed.text)
    equal = len(tokens) - ties
    text = f"{equal}/{len(tokens)} tokens equal" + (f", {ties} within the limit for near-ties" if ties else "")
    text += f", the first {given} given by the order and not drawn" if (given := given_tokens(run)) else ""
    text = (
        f"{EXACT}: {text}, as kernels of the fingerprint that all stages signed draw them" if replayed.exact else text
    )
    if ties > 1 + len(tokens) // 20:
        claim = Claim(Standing.NOT_CHECKED, "replay", f"{text}: too many near-ties to decide")
        return Outcome((claim,), False, "more near-ties than an honest run of another precision has")
    claims = (Claim(Standing.PROVEN, "replay", text),)
    if decoded is False:
        return Outcome(claims, False, "the text shown ends before its tokens do, and no order states where to end it")
    return Outcome(claims, True, decoded=bool(decoded), exact=replayed.exact)


def _decoded(run: ReceiptRun, decoded: str | None, text: str | None) -> bool | None:
    """Whether the text shown is what its tokens decode to, all of it; None where either is not there.

    False is for a text that is only its beginning, of a run that is said to have ended itself: programs once cut it
    before the string that ended the run, and orders never named that, so such a cut may as well be of the requester's
    choosing. Raises ReceiptError(TEXT) for any other text.
    """
    if decoded is None or text is None or decoded == text:
        return None if decoded is None or text is None else True
    if run.close.finish_reason == "stop" and decoded.startswith(text):
        return False
    raise ReceiptError(Refusal.TEXT, "the tokens do not decode to the text")

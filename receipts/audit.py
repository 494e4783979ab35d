"""Recomputation by the verifier: replay of the whole run, or an audit of rows that the nodes open.

What needs a model or a network is behind two protocols; what decides is here. The verifier chooses rows after the run,
with its own randomness: a choice derived from the run itself could be ground until it is harmless.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from receipts.checks import short
from receipts.errors import ReceiptError, Refusal
from receipts.opened import MAX_LEAVES, Frame, Opened, OpeningRequest, opened_untrusted
from receipts.opening import Order, PlannedStage
from receipts.recompute import MILLION, Limit, at_usual_noise, delta_error, judge_rows, judge_scores
from receipts.run import Epoch, Run
from receipts.verdict import Claim, Disclosed, Standing


@dataclass(frozen=True)
class Replayed:
    """Teacher-forced recomputation of a run: entry i is about the receipt's token i.

    `best` is the token that the recomputation draws there, `gaps` the least error of the logits for which the
    receipt's token would be drawn (0 where equal; in logits, so that one limit serves every temperature). `text` is
    the decoded text, None when not decoded.
    """

    best: Sequence[int]
    gaps: Sequence[float]
    text: str | None = None


class Replayer(Protocol):
    """Recomputes with the model. `replay` may raise ReceiptError; its own failures are the caller's to translate."""

    def replay(self, order: Order, prompt: Sequence[int], tokens: Sequence[int]) -> Replayed: ...


@dataclass(frozen=True)
class RowSample:
    """One opened row of a middle or head stage: block input, output as sent, and the verifier's own output.

    `expected` is computed in float32. `honest` is what the verifier's own stage sends when it computes and quantises
    as the order says; empty where that is float32 too. Its error says how much rounding disturbs this very row.
    """

    position: int
    inputs: Sequence[float]
    outputs: Sequence[float]
    expected: Sequence[float]
    honest: Sequence[float] = ()


@dataclass(frozen=True)
class TokenSample:
    """One opened answer of the tail: by how much logits must be off to draw its token (0: it is the verifier's).

    `scores` are the errors of what else it says of the token (logprob, margin), each over the standard deviation that
    honest rounding gives it.
    """

    position: int
    gap: float
    scores: Sequence[float] = ()


class Auditor(Protocol):
    """Talks to nodes and computes with the model."""

    def fetch(self, node: str, request: OpeningRequest) -> bytes | None:
        """The node's answer to the request; None when it cannot be reached or no longer keeps the run."""
        ...

    def recompute(
        self, order: Order, stage: PlannedStage, inbound: Sequence[Frame], outbound: Frame
    ) -> Sequence[RowSample | TokenSample]:
        """Samples of the rows of one outbound frame, from the inbound frames up to the one that it answers."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What recomputation showed. `conclusive` is False when it could not decide; then `why` says what was missing."""

    claims: tuple[Claim, ...]
    conclusive: bool
    why: str = ""


def check_replay(run: Run, disclosed: Disclosed, replayer: Replayer, limit: Limit) -> Outcome:
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
        if not gap * MILLION <= limit.tie_ppm:
            position = disclosed.tokens.first + index
            raise ReceiptError(Refusal.REPLAY, f"token {token} at position {position}: recomputing gives {best}")
        ties += 1
    if replayed.text is not None and disclosed.text is not None and replayed.text != disclosed.text:
        raise ReceiptError(Refusal.TEXT, "the tokens do not decode to the text")
    equal = len(tokens) - ties
    text = f"{equal}/{len(tokens)} tokens equal" + (f", {ties} at near-ties" if ties else "")
    if ties > 1 + len(tokens) // 20:
        claim = Claim(Standing.NOT_CHECKED, "replay", f"{text}: too many near-ties to decide")
        return Outcome((claim,), False, "more near-ties than an honest run of another precision has")
    return Outcome((Claim(Standing.PROVEN, "replay", text),), True)


def choose_rows(epoch: Epoch, order_digest: str, count: int, below: Callable[[int], int]) -> list[OpeningRequest]:
    """`count` outbound frames over the stages of an epoch, as even as can be: one request per stage, in ring order.

    The tail opens all it can: an answer is a hundred bytes, and says less of the computation than a row does.
    `below(n)` is a random integer in [0, n) that the nodes cannot foresee (`secrets.randbelow`).
    """
    requests = []
    stages = len(epoch.plan)
    for index in range(stages):
        frames = epoch.edges[index + 1, "sender"].frames
        share = min(max(1, count // stages + (index < count % stages)), frames, MAX_LEAVES)
        if index == stages - 1:
            share = min(frames, MAX_LEAVES)
        leaves: set[int] = set()
        while len(leaves) < share:
            leaves.add(1 + below(frames))
        requests.append(OpeningRequest(order_digest, epoch.number, tuple(sorted(leaves))))
    return requests


def check_audit(run: Run, auditor: Auditor, limit: Limit, count: int, below: Callable[[int], int]) -> Outcome:
    """Have every stage open rows and recompute them. Raises ReceiptError(AUDIT, PROOF or OPENING) naming the node."""
    epoch = run.last
    if not epoch.closed:
        return Outcome((), False, "the last epoch was interrupted: its edges have no roots signed by both ends")
    claims: list[Claim] = []
    missing: list[str] = []
    for index, request in enumerate(choose_rows(epoch, run.order_digest, count, below)):
        stage = epoch.plan[index]
        if any(stage.node in earlier.ends for earlier in run.epochs[:-1]):
            missing.append(f"{short(stage.node)} kept rows of an earlier epoch, which no second party signed")
            continue
        answer = auditor.fetch(stage.node, request) if request.leaves else None
        if answer is None:
            missing.append(f"{short(stage.node)} did not open its rows")
            continue
        claim = _judge(run, stage, _opened(epoch, index, request, answer), auditor, limit)
        claims.append(claim)
        if claim.standing is not Standing.PROVEN:
            missing.append(f"{short(stage.node)}: {claim.text}")
    return Outcome(tuple(claims), not missing, "; ".join(missing))


def _opened(epoch: Epoch, index: int, request: OpeningRequest, answer: bytes) -> Opened:
    inbound, outbound = epoch.edges[index, "receiver"], epoch.edges[index + 1, "sender"]
    try:
        return opened_untrusted(
            answer, request.leaves, (inbound.root, inbound.frames), (outbound.root, outbound.frames)
        )
    except ReceiptError as exc:
        refusal = exc.refusal if exc.refusal is Refusal.PROOF else Refusal.OPENING
        raise ReceiptError(refusal, f"rows opened by {short(epoch.plan[index].node)}: {exc.claim}") from exc


def _judge(run: Run, stage: PlannedStage, opened: Opened, auditor: Auditor, limit: Limit) -> Claim:
    errors: list[float] = []
    noise: list[float] = []
    gaps: list[float] = []
    scores: list[float] = []
    # The last first: it needs every inbound frame that the others need, so an auditor computes them once.
    for _, frame in reversed(opened.outbound):
        for sample in auditor.recompute(run.order, stage, opened.upto(frame), frame):
            if isinstance(sample, TokenSample):
                gaps.append(sample.gap)
                scores += sample.scores
            else:
                errors.append(delta_error(sample.inputs, sample.outputs, sample.expected))
                if sample.honest:
                    noise.append(delta_error(sample.inputs, sample.honest, sample.expected))
    wrong = [gap for gap in gaps if not gap * MILLION <= limit.tie_ppm]
    if wrong:
        raise ReceiptError(
            Refusal.AUDIT,
            f"{short(stage.node)} layers [{stage.first}, {stage.last}): {len(wrong)} of {len(gaps)} tokens it drew "
            f"are not the best, by up to {max(wrong):.4f}",
        )
    where = f"{short(stage.node)} layers [{stage.first}, {stage.last})"
    even, figures = judge_scores(scores) if scores else (True, "")
    if not even:
        raise ReceiptError(Refusal.AUDIT, f"{where}: {figures}")
    judgement = judge_rows(at_usual_noise(errors, noise, limit) if noise else errors, limit)
    if errors and not judgement.passed:
        raise ReceiptError(Refusal.AUDIT, f"{where}: {judgement.why}")
    if not errors and not gaps:
        return Claim(
            Standing.NOT_CHECKED,
            "audit",
            "no opened row can be recomputed (they begin from what another run left)",
            stage.node,
        )
    figures = ", ".join(text for text in (judgement.why if errors else "", figures) if text)
    text = f"{len(errors) + len(gaps)} rows recomputed" + (f", {figures}" if figures else "")
    return Claim(Standing.PROVEN, "audit", text, stage.node)

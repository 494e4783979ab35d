"""Recomputation by the verifier: replay of the whole run, or an audit of rows that the nodes open.

What needs a model or a network is behind two protocols; what decides is here. The verifier chooses rows after the run,
with its own randomness: a choice derived from the run itself could be ground until it is harmless.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

from receipts.check.checks import short
from receipts.check.context import Followed, check_context, drawn_in, published
from receipts.check.recompute import (
    MILLION,
    Limit,
    StageJudgement,
    at_usual_noise,
    coarse_error,
    delta_error,
    judge_rows,
    judge_scores,
)
from receipts.check.run import Epoch, ReceiptRun
from receipts.check.verdict import Claim, Disclosed, Standing
from receipts.format.closing import End
from receipts.format.errors import ReceiptError, Refusal
from receipts.format.opening import Order, PlannedStage
from receipts.record.row_opening import (
    MAX_FRAMES,
    MAX_LEAVES,
    CrossedFrame,
    OpenedRows,
    OpeningRequest,
    history_untrusted,
    opened_untrusted,
)


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

    `grain` is None but for a wire format whose steps are larger than rounding. There `outputs` and `honest` differ from
    `expected` by what they do once all are put on the format's grid, and `grain` is the error that one step makes.
    """

    position: int
    inputs: Sequence[float]
    outputs: Sequence[float]
    expected: Sequence[float]
    honest: Sequence[float] = ()
    grain: float | None = None


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

    def fetch(self, node: str, request: OpeningRequest, known: Sequence[CrossedFrame] = ()) -> bytes | None:
        """The node's answer to the request; None when it cannot be reached or no longer keeps the run.

        `known`: inbound frames of an earlier answer; those of this one need not be sent again, only put in place.
        """
        ...

    def recompute(
        self,
        order: Order,
        stage: PlannedStage,
        before: Sequence[CrossedFrame],
        inbound: Sequence[CrossedFrame],
        outbound: CrossedFrame,
    ) -> Sequence[RowSample | TokenSample]:
        """Samples of the rows of one outbound frame, from the inbound frames up to the one that it answers.

        `before`: frames of earlier epochs or runs whose keys and values this epoch began from.
        """
        ...

    def follow(
        self,
        order: Order,
        stage: PlannedStage,
        before: Sequence[CrossedFrame],
        inbound: Sequence[CrossedFrame],
        outbound: Sequence[CrossedFrame],
        text: Sequence[int],
    ) -> Followed:
        """The rows that came in, held against the published text (prompt, then tokens); at the tail its answers, too.

        Raises ReceiptError for frames that no honest stage takes in.
        """
        ...

    def handed(self, order: Order, giving: Taken, taking: Taken) -> Sequence[RowSample] | None:
        """What `taking` began its epoch from, as rows of `giving`, the stage before it in the same plan.

        Rows of positions that it saw and that no pass of the epoch wrote; empty when there are none. None where what
        the stage before holds does not reach that far. Raises ReceiptError as `recompute` does.
        """
        ...


@dataclass(frozen=True)
class Taken:
    """What one stage opened of one epoch: frames from before it, and frames that came in."""

    stage: PlannedStage
    before: tuple[CrossedFrame, ...]
    inbound: tuple[CrossedFrame, ...]


@dataclass(frozen=True)
class Outcome:
    """What recomputation showed. `conclusive` is False when it could not decide; then `why` says what was missing.

    `tied`: the tokens were decoded, and give the disclosed text.
    """

    claims: tuple[Claim, ...]
    conclusive: bool
    why: str = ""
    tied: bool = False


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
        if not gap * MILLION <= limit.tie_ppm:
            position = disclosed.tokens.first + index
            raise ReceiptError(Refusal.REPLAY, f"token {token} at position {position}: recomputing gives {best}")
        ties += 1
    tied = replayed.text is not None and disclosed.text is not None
    if tied and not _decodes_to(run, replayed.text or "", disclosed.text or ""):
        raise ReceiptError(Refusal.TEXT, "the tokens do not decode to the text")
    equal = len(tokens) - ties
    text = f"{equal}/{len(tokens)} tokens equal" + (f", {ties} at near-ties" if ties else "")
    if ties > 1 + len(tokens) // 20:
        claim = Claim(Standing.NOT_CHECKED, "replay", f"{text}: too many near-ties to decide")
        return Outcome((claim,), False, "more near-ties than an honest run of another precision has")
    return Outcome((Claim(Standing.PROVEN, "replay", text),), True, tied=tied)


def _decodes_to(run: ReceiptRun, decoded: str, text: str) -> bool:
    """Whether text is what its tokens say; a run that ended itself may have been cut before a stop string."""
    return decoded == text or (run.close.finish_reason == "stop" and decoded.startswith(text))


@dataclass(frozen=True)
class Part:
    """What one stage did in one epoch, by its own END."""

    epoch: Epoch
    index: int
    end: End

    @property
    def stage(self) -> PlannedStage:
        return self.epoch.plan[self.index]


def parts_of(run: ReceiptRun) -> list[Part]:
    """Every part that a node accounts for, those of the last epoch first."""
    epochs = sorted(run.epochs, key=lambda epoch: -epoch.number)
    return [
        Part(epoch, index, epoch.ends[stage.node])
        for epoch in epochs
        for index, stage in enumerate(epoch.plan)
        if stage.node in epoch.ends
    ]


def choose_rows(run: ReceiptRun, count: int, below: Callable[[int], int]) -> list[tuple[Part, tuple[int, ...]]]:
    """`count` outbound leaves over all parts, as even as can be, in rising order; none of a part that sent nothing.

    A tail opens all: an answer is a hundred bytes, says less of the computation than a row does, and every kept token
    has to be among them. Every part opens its last frame besides, so that all that came in to it is shown: then no
    frame of it saw another text, and the tree holds as many frames as were signed.
    `below(n)` is a random integer in [0, n) that the nodes cannot foresee (`secrets.randbelow`).
    """
    parts = parts_of(run)
    chosen = []
    for number, part in enumerate(parts):
        frames = part.end.sent
        share = min(max(1, count // len(parts) + (number < count % len(parts))), frames, MAX_LEAVES - 1)
        leaves: set[int] = set()
        if part.stage.last == run.order.model.layers:
            leaves = set(range(1, frames + 1))
        while len(leaves) < share:
            leaves.add(1 + below(frames))
        if frames:
            leaves.add(frames)
        chosen.append((part, tuple(sorted(leaves))))
    return chosen


def check_audit(
    run: ReceiptRun,
    disclosed: Disclosed,
    auditor: Auditor,
    limit: Limit,
    tie_ppm: int,
    count: int,
    below: Callable[[int], int],
) -> Outcome:
    """Have every stage open rows and recompute them. Raises ReceiptError(AUDIT, PROOF or OPENING) naming the node.

    `tie_ppm` bounds a tail's near-ties in place of the limit's: what it drew from had crossed already.
    """
    if not run.last.closed:
        return Outcome((), False, "the last epoch was interrupted: its edges have no roots signed by both ends")
    if not run.close.new_tokens:
        return Outcome((), False, "the run kept no token, so an audit of it shows nothing")
    if most := [part for part in parts_of(run) if max(part.end.sent, part.end.came) > MAX_FRAMES]:
        return Outcome((), False, f"{_name(run, most[0])} signed more frames than the {MAX_FRAMES} an audit opens")
    audit = _Audit(run, auditor, replace(limit, tie_ppm=tie_ppm), published(disclosed))
    for part, leaves in choose_rows(run, count, below):
        audit.check(part, leaves)
    _check_neighbours(run, audit.opened)
    claims, missing = [*audit.claims, *_silent(run)], [*audit.missing, *_unsaid(run)]
    if run.order.own_layers:
        return Outcome(tuple(claims), not missing, "; ".join(missing))
    if audit.text is None:
        missing.append("prompt and tokens are not disclosed, so nothing shows on which text the rows were computed")
    else:
        found, open_ = check_context(run, audit.text, audit.followed, audit.proven)
        claims, missing = [*claims, *found], [*missing, *open_]
    return Outcome(tuple(claims), not missing, "; ".join(missing))


class _Audit:
    """What was opened so far, by epoch and index in its plan, and what it showed."""

    def __init__(self, run: ReceiptRun, auditor: Auditor, limit: Limit, text: tuple[int, ...] | None) -> None:
        self._run, self._auditor, self._limit = run, auditor, limit
        self.text = text if not run.order.own_layers else None
        self.claims: list[Claim] = []
        self.missing: list[str] = []
        self.opened: dict[tuple[int, int], OpenedRows] = {}
        self.followed: dict[tuple[int, int], Followed] = {}
        self.proven: set[tuple[int, int]] = set()
        self._taken: dict[tuple[int, int], Taken] = {}

    def check(self, part: Part, leaves: tuple[int, ...]) -> None:
        """Have one part opened, and judge it."""
        run, key, name = self._run, (part.epoch.number, part.index), _name(self._run, part)
        if not leaves:
            text = f"says that it sent nothing in epoch {part.epoch.number}: there is nothing to open"
            self.claims.append(Claim(Standing.NOT_CHECKED, "audit", text, part.stage.node))
            first, last = drawn_in(run, part.epoch)
            if part.epoch is run.last or last > first:
                self.missing.append(f"{name} sent nothing by its own word")
            return
        opened = _fetched(run, part, leaves, self._auditor)
        before = _history(run, part, self._auditor) if opened is not None else None
        if opened is None or before is None:
            self.missing.append(f"{name} did not open its rows")
            return
        self.opened[key] = opened
        taken = self._taken[key] = Taken(part.stage, before, opened.inbound)
        claim = _judge(run, part, before, opened, self._auditor, self._limit)
        if claim.standing is Standing.PROVEN:
            began = self._began(part, taken)
            claim = replace(claim, text=claim.text + began + _size_text(part, opened))
            self.proven.add(key)
        else:
            self.missing.append(f"{name}: {claim.text}")
        self.claims.append(claim)
        if self.text is not None:
            sent = tuple(frame for _, frame in opened.outbound)
            with _naming(part):
                self.followed[key] = self._auditor.follow(
                    run.order, part.stage, before, opened.inbound, sent, self.text
                )

    def _began(self, part: Part, taken: Taken) -> str:
        """Hold what a part began its epoch from against the layers before it, and say so."""
        kept = max((entry.kept for entry in part.end.history), default=0)
        giving = self._taken.get((part.epoch.number, part.index - 1))
        name = _name(self._run, part)
        if part.index and giving is not None:
            samples = self._auditor.handed(self._run.order, giving, taken)
            if samples is None:
                self.missing.append(f"{name} began from rows that the stage before it does not open")
            elif samples:
                measured = _Measured()
                measured.add(samples)
                judgement = measured.judge(self._limit)
                if not judgement.passed:
                    layers = f"[{giving.stage.first}, {giving.stage.last})"
                    raise ReceiptError(
                        Refusal.AUDIT, f"{name} began from rows that layers {layers} do not give: {judgement.why}"
                    )
        elif part.index and kept:
            self.missing.append(f"{name} began from rows of which nobody else opened anything")
        if not part.epoch.closed:
            return "; what came in is its own word, the epoch was interrupted"
        return f"; positions 0-{kept - 1} were there before, recomputed too" if kept else ""


def _name(run: ReceiptRun, part: Part) -> str:
    return short(part.stage.node) + ("" if part.epoch is run.last else f" in epoch {part.epoch.number}")


def _size_text(part: Part, opened: OpenedRows) -> str:
    """What the opened frames show of how many there were; a root alone fits trees of several sizes."""
    came, shown = part.end.came, len(opened.inbound)
    return "" if shown == came else f"; {came - shown} of {came} frames that came in are not shown: a signed number"


def _silent(run: ReceiptRun) -> list[Claim]:
    """Nodes that were lost: they signed no root, so there is nothing to hold against what they would open."""
    return [
        Claim(Standing.NOT_CHECKED, "audit", f"lost in epoch {epoch.number} and signed no root to open", stage.node)
        for epoch in run.epochs
        for stage in epoch.plan
        if stage.node not in epoch.ends and epoch.accepts
    ]


def _unsaid(run: ReceiptRun) -> list[str]:
    """Survivors of an interrupted epoch who account for less than the next one took in from them."""
    found = []
    for epoch in run.epochs:
        first, last = drawn_in(run, epoch)
        if epoch.closed or last <= first:
            continue
        for giving, taking in pairwise(epoch.plan):
            sent, came = epoch.ends.get(giving.node), epoch.ends.get(taking.node)
            if sent is not None and came is not None and came.came > sent.sent:
                names = f"{short(taking.node)} took in {came.came} frames, {short(giving.node)} sent {sent.sent}"
                found.append(f"in epoch {epoch.number} {names}: nobody opens the rest")
    return found


def _history(run: ReceiptRun, part: Part, auditor: Auditor) -> tuple[CrossedFrame, ...] | None:
    """What filled the keys and values that the part began from, oldest first; None when it is not opened."""
    frames: list[CrossedFrame] = []
    for number, entry in enumerate(part.end.history, 1):
        request = OpeningRequest(run.order_digest, part.epoch.number, (), number)
        answer = auditor.fetch(part.stage.node, request)
        if answer is None:
            return None
        with _naming(part):
            frames += history_untrusted(answer, (entry.root, entry.frames))
    return tuple(frames)


def _fetched(run: ReceiptRun, part: Part, leaves: tuple[int, ...], auditor: Auditor) -> OpenedRows | None:
    """Chosen leaves of a part, in as many requests as it takes; None when the node does not open them.

    The roots are those of the END; where the epoch closed, they are those that both ends of its edges signed.
    """
    end = part.end
    inbound: tuple[CrossedFrame, ...] = ()
    outbound: list[tuple[int, CrossedFrame]] = []
    # The last first: what came in before it is a prefix of nothing else, so each inbound frame crosses once.
    for start in reversed(range(0, len(leaves), MAX_LEAVES)):
        some = leaves[start : start + MAX_LEAVES]
        request = OpeningRequest(run.order_digest, part.epoch.number, some)
        answer = auditor.fetch(part.stage.node, request, inbound)
        if answer is None:
            return None
        with _naming(part):
            opened = opened_untrusted(answer, some, (end.inbound, end.came), (end.outbound, end.sent))
        inbound = max(inbound, opened.inbound, key=len)
        outbound[:0] = opened.outbound
    return OpenedRows(inbound, tuple(outbound))


@contextmanager
def _naming(part: Part) -> Iterator[None]:
    try:
        yield
    except ReceiptError as exc:
        refusal = exc.refusal if exc.refusal is Refusal.PROOF else Refusal.OPENING
        raise ReceiptError(refusal, f"rows opened by {short(part.stage.node)}: {exc.claim}") from exc


def _check_neighbours(run: ReceiptRun, seen: Mapping[tuple[int, int], OpenedRows]) -> None:
    """What one stage opens as sent, the next opens as taken in; co-signed roots show it where an epoch was closed."""
    for (number, index), opened in seen.items():
        following = seen.get((number, index + 1))
        for leaf, frame in opened.outbound if following is not None else ():
            other = following.inbound[leaf - 1] if following is not None and leaf <= len(following.inbound) else frame
            if other != frame:
                plan = run.epochs[number].plan
                names = f"{short(plan[index].node)} and {short(plan[index + 1].node)}"
                raise ReceiptError(Refusal.AUDIT, f"{names} open different bytes for frame {leaf} of epoch {number}")


class _Measured:
    """Errors of samples, collected until they are judged."""

    def __init__(self) -> None:
        self.errors: list[float] = []
        self.noise: list[float] = []
        self.grains: list[float] = []
        self.gaps: list[float] = []
        self.scores: list[float] = []

    def add(self, samples: Sequence[RowSample | TokenSample]) -> None:
        for sample in samples:
            if isinstance(sample, TokenSample):
                self.gaps.append(sample.gap)
                self.scores += sample.scores
                continue
            error_of = delta_error if sample.grain is None else coarse_error
            self.errors.append(error_of(sample.inputs, sample.outputs, sample.expected))
            if sample.honest:
                self.noise.append(error_of(sample.inputs, sample.honest, sample.expected))
            if sample.grain is not None:
                self.grains.append(sample.grain)

    def judge(self, limit: Limit) -> StageJudgement:
        """Of the rows."""
        rows = at_usual_noise(self.errors, self.noise, limit, self.grains) if self.noise else self.errors
        return judge_rows(rows, limit, coarse=bool(self.grains))


def _judge(
    run: ReceiptRun, part: Part, before: tuple[CrossedFrame, ...], opened: OpenedRows, auditor: Auditor, limit: Limit
) -> Claim:
    stage, found = part.stage, _Measured()
    # The last first: it needs every inbound frame that the others need, so an auditor computes them once.
    for _, frame in reversed(opened.outbound):
        found.add(auditor.recompute(run.order, stage, before, opened.upto(frame), frame))
    where = f"{_name(run, part)} layers [{stage.first}, {stage.last})"
    errors, gaps = found.errors, found.gaps
    wrong = [gap for gap in gaps if not gap * MILLION <= limit.tie_ppm]
    if wrong:
        raise ReceiptError(
            Refusal.AUDIT,
            f"{where}: {len(wrong)} of {len(gaps)} tokens it drew are not the best, by up to {max(wrong):.4f}",
        )
    even, figures = judge_scores(found.scores) if found.scores else (True, "")
    if not even:
        raise ReceiptError(Refusal.AUDIT, f"{where}: {figures}")
    judgement = found.judge(limit)
    if errors and not judgement.passed:
        raise ReceiptError(Refusal.AUDIT, f"{where}: {judgement.why}")
    if not errors and not gaps:
        text = "no opened row can be recomputed: what its keys and values began from is not opened"
        return Claim(Standing.NOT_CHECKED, "audit", text, stage.node)
    figures = ", ".join(text for text in (judgement.why if errors else "", figures) if text)
    text = f"{len(errors) + len(gaps)} rows recomputed" + (f", {figures}" if figures else "")
    if part.epoch is not run.last:
        text = f"epoch {part.epoch.number}: {text}"
    return Claim(Standing.PROVEN, "audit", text, stage.node)

"""An audit by the verifier: rows that the nodes open, recomputed.

What needs a model or a network is behind a protocol; what decides is here. The verifier chooses rows after the run,
with its own randomness: a choice derived from the run itself could be ground until it is harmless.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

from receipts.check.checks import short
from receipts.check.context import Followed, check_context, drawn_in, published
from receipts.check.outcome import Outcome
from receipts.check.parts import Chooser, Part, choose_rows, part_name, parts_of
from receipts.check.recompute import MILLION, Limit
from receipts.check.run import ReceiptRun
from receipts.check.samples import CALIBRATED, EXACT, Bits, Measured, RowSample, TokenSample
from receipts.check.verdict import Claim, Disclosed, Standing
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


def check_audit(
    run: ReceiptRun,
    disclosed: Disclosed,
    auditor: Auditor,
    limit: Limit,
    tie_ppm: int,
    count: int,
    chooser: Chooser,
) -> Outcome:
    """Have every stage open rows and recompute them. Raises ReceiptError(AUDIT, PROOF or OPENING) naming the node.

    `tie_ppm` bounds a tail's near-ties in place of the limit's: what it drew from had crossed already.
    """
    if not run.last.closed:
        return Outcome((), False, "the last epoch was interrupted: its edges have no roots signed by both ends")
    if not run.close.new_tokens:
        return Outcome((), False, "the run kept no token, so an audit of it shows nothing")
    if most := [part for part in parts_of(run) if max(part.end.sent, part.end.came) > MAX_FRAMES]:
        return Outcome((), False, f"{part_name(run, most[0])} signed more frames than the {MAX_FRAMES} an audit opens")
    audit = _Audit(run, auditor, replace(limit, tie_ppm=tie_ppm), published(disclosed))
    for part, leaves in choose_rows(run, count, chooser):
        audit.check(part, leaves)
    _check_neighbours(run, audit.opened)
    claims, missing = [*audit.claims, *_silent(run)], [*audit.missing, *_unsaid(run)]
    if run.order.own_layers:
        return Outcome(tuple(claims), not missing, "; ".join(missing), exact=audit.exact)
    if audit.text is None:
        missing.append("prompt and tokens are not disclosed, so nothing shows on which text the rows were computed")
    else:
        found, open_ = check_context(run, audit.text, audit.followed, audit.proven)
        claims, missing = [*claims, *found], [*missing, *open_]
    return Outcome(tuple(claims), not missing, "; ".join(missing), exact=audit.exact)


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
        self._inexact = False
        self._taken: dict[tuple[int, int], Taken] = {}

    @property
    def exact(self) -> bool | None:
        """Whether all that was opened is equal to the last bit; None where nothing was."""
        return not self._inexact if self.opened else None

    def check(self, part: Part, leaves: tuple[int, ...]) -> None:
        """Have one part opened, and judge it."""
        run, key, name = self._run, (part.epoch.number, part.index), part_name(self._run, part)
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
        claim, exact = _judge(run, part, before, opened, self._auditor, self._limit)
        self._inexact = self._inexact or not exact
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
        name = part_name(self._run, part)
        if part.index and giving is not None:
            samples = self._auditor.handed(self._run.order, giving, taken)
            if samples is None:
                self.missing.append(f"{name} began from rows that the stage before it does not open")
            elif samples:
                measured = Measured()
                measured.add(samples)
                self._inexact = self._inexact or not measured.exact
                judgement = measured.judge(self._limit)
                if not judgement.passed or measured.wrong:
                    layers = f"[{giving.stage.first}, {giving.stage.last})"
                    raise ReceiptError(
                        Refusal.AUDIT, f"{name} began from rows that layers {layers} do not give: {judgement.why}"
                    )
        elif part.index and kept:
            self.missing.append(f"{name} began from rows of which nobody else opened anything")
        if not part.epoch.closed:
            before = part.epoch.ends.get(part.epoch.plan[part.index - 1].node) if part.index else None
            whose = "its own word and that of the stage before" if before is not None else "its own word"
            return f"; what came in is {whose}, the epoch was interrupted"
        return f"; positions 0-{kept - 1} were there before, recomputed too" if kept else ""


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
    """Every frame that one stage opens as sent is the one that the next opens as taken in.

    One root of both shows it of frames that are not opened; where roots differ, the first opens all that it sent. What
    the next took in beyond that, `_unsaid` tells.
    """
    for (number, index), opened in seen.items():
        following = seen.get((number, index + 1))
        for leaf, frame in opened.outbound if following is not None else ():
            other = following.inbound[leaf - 1] if following is not None and leaf <= len(following.inbound) else frame
            if other != frame:
                plan = run.epochs[number].plan
                names = f"{short(plan[index].node)} and {short(plan[index + 1].node)}"
                raise ReceiptError(Refusal.AUDIT, f"{names} open different bytes for frame {leaf} of epoch {number}")


def _judge(
    run: ReceiptRun, part: Part, before: tuple[CrossedFrame, ...], opened: OpenedRows, auditor: Auditor, limit: Limit
) -> tuple[Claim, bool]:
    """The claim that one part's opened rows support, and whether they are equal bit for bit. Raises ReceiptError."""
    stage, found = part.stage, Measured()
    where = f"{part_name(run, part)} layers [{stage.first}, {stage.last})"
    wrong_at: tuple[int, int] | None = None
    # The last first: it needs every inbound frame that the others need, so an auditor computes them once.
    for leaf, frame in reversed(opened.outbound):
        known = len(found.wrong)
        found.add(auditor.recompute(run.order, stage, before, opened.upto(frame), frame))
        wrong_at = (leaf, found.wrong[known]) if len(found.wrong) > known else wrong_at
    if wrong_at is not None:
        raise ReceiptError(
            Refusal.AUDIT,
            f"{where}: position {wrong_at[1]} (frame {wrong_at[0]}) is the first of {len(found.wrong)} opened rows "
            f"that differ, bit for bit, from what kernels of its fingerprint {_kernels(part)} make of what came in",
        )
    errors, gaps = found.errors, found.gaps
    wrong = [gap for gap in gaps if not gap * MILLION <= limit.tie_ppm]
    if wrong and not found.exact:
        raise ReceiptError(
            Refusal.AUDIT,
            f"{where}: {len(wrong)} of {len(gaps)} tokens it drew are not the best, by up to {max(wrong):.4f}",
        )
    if not errors and not gaps:
        text = "no opened row can be recomputed: what its keys and values began from is not opened"
        return Claim(Standing.NOT_CHECKED, "audit", text, stage.node), False
    even, scored = found.judge_scores()
    judgement = found.judge(limit)
    figures = ", ".join(text for text in (judgement.why if errors else "", scored) if text)
    count, equal = len(found.bits), sum(bits is Bits.EQUAL for bits in found.bits)
    if found.exact:
        # What a threshold would say is of no matter any more: this very computation was made.
        text = f"{EXACT}: {count} rows recomputed, equal bit for bit to what kernels {_kernels(part)} give"
    else:
        if not even:
            raise ReceiptError(Refusal.AUDIT, f"{where}: {scored}")
        if errors and not judgement.passed:
            raise ReceiptError(Refusal.AUDIT, f"{where}: {judgement.why}")
        text = f"{CALIBRATED}: {count} rows recomputed" + (f", {figures}" if figures else "")
        if near := sum(gap > 0 for gap in gaps):
            text += f", {near} of {len(gaps)} tokens not the best but within the limit for near-ties"
        text += f"; {_why_not_exact(part, found.bits, equal)}"
    if part.epoch is not run.last:
        text = f"epoch {part.epoch.number}: {text}"
    return Claim(Standing.PROVEN, "audit", text, stage.node, {"rows": count, "equal_bits": equal}), found.exact


def _fingerprint(part: Part) -> str | None:
    accept = part.epoch.accepts.get(part.stage.node)
    return None if accept is None else accept.fingerprint


def _kernels(part: Part) -> str:
    """The fingerprint that a part accepted under, for people."""
    return (_fingerprint(part) or "none")[:8]


def _why_not_exact(part: Part, bits: Sequence[Bits], equal: int) -> str:
    if _fingerprint(part) is None:
        return "it signed no kernel fingerprint"
    if all(one is Bits.NOT_COMPARED for one in bits):
        return f"the kernels that it signed, {_kernels(part)}, are not this machine's"
    return f"{equal} of {len(bits)} equal bit for bit, as far as rows of kernels {_kernels(part)} keep in other company"

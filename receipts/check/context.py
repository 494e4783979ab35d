"""Whether the tokens of a run were drawn from the text that the receipt publishes.

A row that is computed rightly says nothing of the text it was computed on: whoever orders a run may feed the stages
other tokens than it publishes. So an audit rebuilds, from what entered the head, on which context every kept token was
drawn, and holds what came in at every other stage against that. Pure: frames are read by the auditor.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from receipts.check.checks import short
from receipts.check.dictated import given_tokens
from receipts.check.run import Epoch, ReceiptRun
from receipts.check.verdict import Claim, Disclosed, Standing
from receipts.format.errors import ReceiptError, Refusal


@dataclass(frozen=True)
class Drew:
    """One opened answer of a tail: `token` for `position`, after row `row` of pass frame number `frame` (from 0)."""

    position: int
    token: int
    frame: int
    row: int


@dataclass(frozen=True)
class Followed:
    """The pass frames that came in at one stage in one epoch, in order of arrival.

    said     per frame, what it says of its rows: slots, positions, tokens, what they see
    right    per frame and row, whether it stood in the published text (prompt, then tokens)
    answers  of the last stage: what it drew
    """

    said: tuple[bytes, ...]
    right: tuple[tuple[bool, ...], ...]
    answers: tuple[Drew, ...] = ()


def published(disclosed: Disclosed) -> tuple[int, ...] | None:
    """Prompt and tokens as the receipt shows them; None where it does not."""
    if disclosed.prompt is None or disclosed.tokens is None:
        return None
    return (*disclosed.prompt, *disclosed.tokens.tokens)


def drawn_in(run: ReceiptRun, epoch: Epoch) -> tuple[int, int]:
    """Positions [first, last) of the tokens that an epoch drew and the run kept."""
    until = run.close.first_position + run.close.new_tokens
    following = run.epochs[epoch.number + 1 : epoch.number + 2]
    return epoch.first_position, min(until, following[0].first_position if following else until)


def check_context(
    run: ReceiptRun,
    text: Sequence[int],
    followed: Mapping[tuple[int, int], Followed],
    proven: Collection[tuple[int, int]],
) -> tuple[list[Claim], list[str]]:
    """Every kept token was drawn from the text before it, by an epoch whose every part opened its rows.

    `followed` and `proven` are by epoch and index in its plan. Gives claims, and what stays open. Raises
    ReceiptError(AUDIT) where a token was drawn from another text.
    """
    missing: list[str] = []
    drawn = given = 0
    drawn_from = run.close.first_position + given_tokens(run)
    for epoch in run.epochs:
        first, last = drawn_in(run, epoch)
        if last <= first:
            continue
        silent = [stage.node for index, stage in enumerate(epoch.plan) if (epoch.number, index) not in proven]
        parts = [followed.get((epoch.number, index)) for index in range(len(epoch.plan))]
        if silent or None in parts:
            names = ", ".join(short(node) for node in silent) or "a stage"
            missing.append(f"positions {first}-{last - 1} were drawn in epoch {epoch.number}: {names} opened nothing")
            continue
        stages = [part for part in parts if part is not None]
        _check_passed_on(epoch, stages)
        open_ = _check_drawn(stages, text, first, last)
        if open_:
            missing.append(f"no opened answer covers position {open_[0]} ({len(open_)} of {last - first} positions)")
        answered = set(range(first, last)) - set(open_)
        given += sum(position < drawn_from for position in answered)
        drawn += sum(position >= drawn_from for position in answered)
    said = [f"{drawn}/{run.close.new_tokens} tokens were drawn"] if drawn else []
    said += [f"{given}/{run.close.new_tokens} were given by the order"] if given else []
    claims = []
    if said:
        text_ = f"{', '.join(said)} after the published prompt and the tokens before"
        claims.append(Claim(Standing.PROVEN, "audit", text_))
    return claims, missing


def _check_passed_on(epoch: Epoch, stages: Sequence[Followed]) -> None:
    """What every stage took in is what entered the head, and stood in the same text there."""
    head = stages[0]
    for index, part in enumerate(stages[1:], 1):
        names = f"{short(epoch.plan[index - 1].node)} and {short(epoch.plan[index].node)} in epoch {epoch.number}"
        if part.said != head.said[: len(part.said)]:
            raise ReceiptError(Refusal.AUDIT, f"between {names}: other rows came in than entered the head")
        for frame, (here, there) in enumerate(zip(part.right, head.right, strict=False)):
            if any(one and not other for one, other in zip(there, here, strict=True)):
                raise ReceiptError(
                    Refusal.AUDIT, f"between {names}: rows of frame {frame} saw another text than at the head"
                )


def _check_drawn(stages: Sequence[Followed], text: Sequence[int], first: int, last: int) -> list[int]:
    """Positions that no opened answer covers. Raises ReceiptError(AUDIT)."""
    head, tail = stages[0], stages[-1]
    answered: dict[int, bool] = {}
    for drew in tail.answers:
        fits = first <= drew.position < last and drew.token == text[drew.position]
        if fits:
            right = drew.frame < len(head.right) and head.right[drew.frame][drew.row]
            answered[drew.position] = answered.get(drew.position, False) or right
    for position, right in sorted(answered.items()):
        if not right:
            raise ReceiptError(
                Refusal.AUDIT,
                f"token {text[position]} at position {position} was drawn from another context than the prompt and "
                "the tokens before it",
            )
    return [position for position in range(first, last) if position not in answered]

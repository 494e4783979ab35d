"""What an order dictates of its answer, in the words that follow a result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from receipts.check.dictated import NO_OTHER_PPM, dictated
from receipts.check.run import ReceiptRun
from receipts.check.verdict import Disclosed
from receipts.check.verify import verify
from receipts.format.opening import Bias, HeldTo, LimitedThought, Shaped
from receipts.record.tail import Drawn

EXAMPLE = Path(__file__).parents[3] / "docs/receipts/three-cpu-stages.json"
HELD = HeldTo("regex", "yes|no", "llguidance 1.0", "ab" * 32)


def run_with(shaped: Shaped | None, held_to: HeldTo | None, tokens: int = 6) -> ReceiptRun:
    run = verify(EXAMPLE.read_bytes()).run
    assert run is not None
    return replace(
        run, order=replace(run.order, shaped=shaped, held_to=held_to), close=replace(run.close, new_tokens=tokens)
    )


def limited(most: int, closes: int) -> Shaped:
    return Shaped(0, 0, (), 0, (), (), LimitedThought(most, (closes,), (), True))


FORCED = Disclosed(tokens=Drawn(0, (1,) * 6, (NO_OTHER_PPM, NO_OTHER_PPM, 5, NO_OTHER_PPM, 7, 9)))


@pytest.mark.parametrize(
    ("shaped", "held_to", "disclosed", "said"),
    [
        (None, None, FORCED, ""),
        (Shaped(500_000, 0, (), 3, (9,), ()), None, FORCED, ""),
        (Shaped(0, 0, (), 0, (), (4, 5)), None, FORCED, "the order gave 2 of 6 tokens itself"),
        (Shaped(0, 0, (), 0, (), (4,) * 9), None, FORCED, "the order gave 6 of 6 tokens itself"),
        (Shaped(0, 0, (Bias(1, 9), Bias(2, 9)), 0, (), ()), None, FORCED, "the order biased 2 tokens"),
        (limited(9, 1), None, FORCED, "the order closed its thought after 9 tokens, by the margins shown"),
        (
            limited(9, 8),
            None,
            FORCED,
            "the order let it think for 9 tokens at most and did not close its thought, by the margins shown",
        ),
        (
            limited(9, 1),
            None,
            Disclosed(),
            "the order let it think for 9 tokens at most, which may have closed its thought",
        ),
        (
            None,
            HELD,
            FORCED,
            "the order held it to a constraint that left no choice at 3 of 6 tokens, by the margins shown",
        ),
        (None, HELD, Disclosed(), "the order held it to a constraint, which may have left no choice"),
        (
            None,
            HELD,
            Disclosed(tokens=Drawn(0, (1,) * 6, (5,) * 6)),
            "the order held it to a constraint that left no choice at 0 of 6 tokens, by the margins shown",
        ),
        (
            Shaped(0, 0, (Bias(1, 9),), 0, (), (4, 5)),
            HELD,
            FORCED,
            "the order gave 2 of 6 tokens itself, held it to a constraint that left no choice at 1 of 6 tokens, "
            "biased 1 token, by the margins shown",
        ),
    ],
)
def test_what_an_order_dictates(shaped: Shaped | None, held_to: HeldTo | None, disclosed: Disclosed, said: str) -> None:
    assert dictated(run_with(shaped, held_to), disclosed) == said

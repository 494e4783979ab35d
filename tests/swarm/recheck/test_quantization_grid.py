"""Differences of rows that crossed in a coarse format: as large as before, though each value moved by whole steps."""

from __future__ import annotations

import pytest
import torch

from receipts.check.recompute import LEAST_GRAINS, coarse_error, delta_error
from swarm.net.channel.wire import LARGEST
from swarm.recheck.quantization_grid import compared, grains, is_coarse, on_wire

WIDTH, ROWS = 512, 60
COARSE = sorted(LARGEST)


def rows(outliers: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """What enters and what leaves a block that adds 1 in the mean; a few values may be very large."""
    torch.manual_seed(5)
    inputs = torch.randn(ROWS, WIDTH) * 2.0
    inputs[:, 3:6] += outliers
    return inputs, inputs + torch.randn(ROWS, WIDTH) * 1.25


def errors(inputs: torch.Tensor, exact: torch.Tensor, sent: torch.Tensor, wire: str) -> torch.Tensor:
    sent = compared(inputs, exact, on_wire(sent, wire), wire)
    return torch.tensor(
        [coarse_error(*row) for row in zip(inputs.tolist(), exact.tolist(), sent.tolist(), strict=True)]
    )


def disturbed(exact: torch.Tensor, share: float, seed: int = 1) -> torch.Tensor:
    torch.manual_seed(seed)
    return exact + share * 1.25 * torch.randn_like(exact)


@pytest.mark.parametrize("share", [0.005, 0.0125, 0.03, 0.2])
@pytest.mark.parametrize("wire", COARSE)
def test_what_the_steps_hide_is_found_again(wire: str, share: float) -> None:
    inputs, exact = rows()
    found = errors(inputs, exact, disturbed(exact, share), wire)
    assert 0.85 * share < float(found.mean()) < 1.4 * share
    plain = torch.tensor(
        [delta_error(*row) for row in zip(inputs.tolist(), on_wire(exact, wire).tolist(), exact.tolist(), strict=True)]
    )
    assert share > 0.02 or float(plain.median()) > share, "the format's own error is larger than what is looked for"


@pytest.mark.parametrize("wire", COARSE)
def test_nothing_differs_where_nothing_was_disturbed(wire: str) -> None:
    inputs, exact = rows()
    assert float(errors(inputs, exact, exact, wire).max()) == 0.0


@pytest.mark.parametrize("wire", COARSE)
@pytest.mark.parametrize("outliers", [300.0, 3000.0])
def test_a_row_of_a_few_very_large_values_is_not_taken_for_a_wrong_one(wire: str, outliers: float) -> None:
    """A step of such a row can be larger than all that a layer adds; it counts at most so much, and few say little."""
    inputs, exact = rows(outliers)
    honest = errors(inputs, exact, disturbed(exact, 0.0125), wire)
    floor = LEAST_GRAINS * grains(inputs, exact, wire)
    usual = torch.maximum(floor, honest.median().clamp(min=0.0125))
    assert float((errors(inputs, exact, disturbed(exact, 0.0125, seed=2), wire) / usual).max()) < 3.0


@pytest.mark.parametrize("wire", COARSE)
def test_more_than_a_step_counts_in_full(wire: str) -> None:
    inputs, exact = rows(300.0)
    wrong = exact.clone()
    wrong[:, 3] += 100.0
    added = (exact - inputs).abs().sum(-1)
    assert float((errors(inputs, exact, wrong, wire) * added).min()) > 60.0
    for broken in (float("nan"), float("inf")):
        sent = on_wire(exact, wire)
        sent[:, 7] = broken
        assert not compared(inputs, exact, sent, wire).isfinite().all(-1).any()


def test_formats_without_steps() -> None:
    assert [wire for wire in ("float32", "bfloat16", "float16", *COARSE) if is_coarse(wire)] == COARSE

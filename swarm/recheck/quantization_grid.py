"""Rows over a wire format whose steps are larger than rounding, held against a recomputation.

Such a format hides in its steps what a stage computed: compared with the exact row, any row is off by a quarter of a
step, whoever computed it. But both sides of a comparison can be put on the grid. Whether a step lies between two
numbers is then a matter of chance, with odds in proportion to how far they are apart, and over the hundreds of values
of a row the sum of the differences is as large as it would be without the format.
"""

from __future__ import annotations

import torch

from swarm.net.channel.wire import LARGEST, decode_tensor_untrusted, encode_tensor

MANTISSA_BITS = 3
LEAST_EXPONENT = -6
"""Of fp8 (e4m3): below it values are evenly spaced."""
NEIGHBOUR = 1.5
"""Differences up to so many steps are one step, beside what the scale's own rounding adds."""
MOST = 4.0
"""What one step counts at most, in usual changes of a value by the block: a row of a few very large values has steps
as large as everything that a layer adds."""


def on_wire(rows: torch.Tensor, wire: str) -> torch.Tensor:
    """Rows [n, width] as the other end of an edge reads them, float32."""
    return decode_tensor_untrusted(*encode_tensor(rows, wire), torch.float32)


def is_coarse(wire: str) -> bool:
    """Whether the format has steps of its own."""
    return wire in LARGEST


def compared(inputs: torch.Tensor, exact: torch.Tensor, sent: torch.Tensor, wire: str) -> torch.Tensor:
    """`exact` with the differences that `sent` shows on the grid of a coarse format; all float32 [n, width].

    inputs  what entered the block
    exact   what the block gives in float32
    sent    what a stage sent, as the other end reads it
    """
    apart = sent - on_wire(exact, wire)
    most = MOST * (exact - inputs).abs().mean(-1, keepdim=True)
    one_step = apart.abs() <= NEIGHBOUR * _steps(exact, wire)
    return exact + torch.where(one_step, apart.clamp(-most, most), apart)


def grains(inputs: torch.Tensor, exact: torch.Tensor, wire: str) -> torch.Tensor:
    """By row, the share of what the block adds that one step of one value makes; float32 [n]."""
    added = (exact - inputs).abs()
    step = torch.minimum(_steps(exact, wire), MOST * added.mean(-1, keepdim=True))
    return step.mean(-1) / added.sum(-1).clamp(min=torch.finfo(torch.float32).tiny)


def _steps(rows: torch.Tensor, wire: str) -> torch.Tensor:
    """How far apart the values of the format are at each value of these rows."""
    largest = rows.abs().amax(-1, keepdim=True)
    scale = torch.where(largest == 0, torch.ones_like(largest), largest / LARGEST[wire])
    if wire == "int8":
        return scale.expand_as(rows)
    exponent = torch.frexp((rows.abs() / scale).clamp(min=2.0**LEAST_EXPONENT)).exponent - 1
    return scale * torch.exp2((exponent - MANTISSA_BITS).float())

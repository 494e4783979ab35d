"""What `draft.train` trains and measures: a student of any kind of drafter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import nn

from draft.corpus import Batch


class Choices(NamedTuple):
    """A student's first choices for tokens so many ahead: of which recorded rows of a batch, int64 [r], and the
    target's ids, int64 [r, `draft.loss.BEST`], best first."""

    rows: torch.Tensor
    tokens: torch.Tensor


class Trainable(Protocol):
    """A drafter in the making."""

    device: torch.device

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that change, always in the same order."""
        ...

    def loss(self, batch: Batch, draw: torch.Generator) -> torch.Tensor:
        """How far it is from what the target said, in nats; a scalar with gradients. What is drawn at random comes
        from `draw` alone."""
        ...

    def choices(self, batch: Batch) -> list[Choices]:
        """For the token after each position, the one after that and so on, as many as it predicts."""
        ...

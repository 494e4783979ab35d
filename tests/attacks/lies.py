"""What a dishonest node's process does before it starts."""

from __future__ import annotations

import os
from typing import Any

import torch


def _twisted(from_position: int) -> None:
    """Rows from this position on are passed on with a part that no layer gave."""
    from swarm.stage import compute

    encode = compute.encode_tensor

    def lied(tensor: torch.Tensor, wire: str) -> Any:
        return encode(tensor * (1.0 + 0.5 * (torch.arange(tensor.shape[-1]) % 2)).to(tensor.dtype), wire)

    compute.encode_tensor = lied  # type: ignore[assignment]


def always() -> None:
    """Every row is passed on with a part that no layer gave."""
    _twisted(0)


def and_drop_after_twelve() -> None:
    """The same, and the line is dropped before the end: the process is gone after twelve frames."""
    _drop_after(12)


def and_drop_after_the_prompt() -> None:
    """The same, gone as soon as the prompt has passed."""
    _drop_after(1)


def and_drop_at_the_closing() -> None:
    """The same, gone when the closing comes: everything was computed, nothing is signed."""
    from swarm.stage.session_close import SessionClose

    async def closed(self: Any, *about: Any) -> None:
        os._exit(0)

    SessionClose.close = closed  # type: ignore[method-assign]
    always()


def _drop_after(frames: int) -> None:
    from swarm.stage.server import StageServer

    always()
    dispatch, seen = StageServer._dispatch, [0]

    def counted(self: Any, done: Any) -> None:
        dispatch(self, done)
        seen[0] += 1
        if seen[0] > frames:
            os._exit(0)

    StageServer._dispatch = counted  # type: ignore[method-assign]


def silent_about_it() -> None:
    """The same, and it says of an epoch that was interrupted that it sent nothing."""
    from dataclasses import replace

    from receipts.format.closing import End
    from receipts.record.stage import StageRecord

    always()
    issue = StageRecord._issue

    def issued(self: Any, body: Any) -> Any:
        if isinstance(body, End) and body.interrupted:
            body = replace(body, sent=0, outbound=self.opening.salt_leaves(self.author.id)[1].hex())
        return issue(self, body)

    StageRecord._issue = issued  # type: ignore[method-assign]

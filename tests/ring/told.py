"""What a run says, as plain data: to compare runs to the last bit."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from swarm.run.api import CommittedTokens, RunRequest

Told = tuple[tuple[int, ...], tuple[Any, ...]]


async def told(ring: Any, request: RunRequest) -> Told:
    """Token ids, and what was said of their probabilities. `ring`: whatever has a `desk` that runs requests."""
    tokens: list[int] = []
    logprobs: list[Any] = []
    async with aclosing(ring.desk.run(request)) as events:
        async for event in events:
            if isinstance(event, CommittedTokens):
                tokens += event.tokens
                logprobs += event.logprobs
    assert len(tokens) == len(logprobs) == request.max_tokens
    return tuple(tokens), tuple(logprobs)

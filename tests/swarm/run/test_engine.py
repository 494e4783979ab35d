"""Prompts that a model cannot take are refused before a ring is asked for."""

from __future__ import annotations

from typing import Any, cast

import pytest

from swarm.base.errors import UsageError
from swarm.run.api import RunRequest
from swarm.run.engine import RunEngine
from swarm.run.learned_costs import TargetFacts


def desk(context: int, vocab_size: int | None) -> RunEngine:
    """One whose planner, drafters and switchboard must not be asked."""
    nothing = cast("Any", None)
    facts = TargetFacts("m", context, frozenset(), nothing, vocab_size)
    return RunEngine(nothing, facts, nothing, nothing, connector=nothing)


async def refusal(desk: RunEngine, *prompt: int) -> str:
    with pytest.raises(UsageError) as caught:
        await anext(desk.run(RunRequest(prompt)))
    return str(caught.value)


async def taken(desk: RunEngine, *prompt: int) -> None:
    """The prompt passes, and the desk goes on to what it was not given."""
    with pytest.raises(AssertionError, match="the desk is not open"):
        await anext(desk.run(RunRequest(prompt)))


async def test_a_token_beyond_the_embedding_is_refused_with_what_the_model_knows() -> None:
    small = desk(8, 5)
    assert "expected token ids of 0 to 4, which the model knows, found 5 in the prompt" in await refusal(small, 1, 5, 9)
    assert "use the model's own tokenizer" in await refusal(small, 7)
    assert "found -1" in await refusal(small, 0, -1)
    await taken(small, 0, 4)


async def test_without_a_known_vocabulary_only_negative_ids_are_refused() -> None:
    assert "expected token ids of 0 or more" in await refusal(desk(8, None), -1)
    await taken(desk(8, None), 1 << 40)


async def test_a_prompt_leaves_room_in_the_context() -> None:
    assert "the prompt has 8 tokens, but the model's context holds 8" in await refusal(desk(8, 5), *[1] * 8)
    await taken(desk(8, 5), *[1] * 7)

"""Limits of thoughts over HTTP: every spelling of the request, and what becomes of it with a model that thinks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from swarm.model.thought import ThoughtLimit
from swarm.serve.body import read
from swarm.serve.compat.anthropic import chat_body
from swarm.serve.compat.bodies import CountBody
from swarm.serve.config import GatewayConfig
from swarm.serve.errors import ApiError
from swarm.serve.parse import parse_chat_untrusted
from swarm.serve.thoughts import ThoughtWish, limit_of
from swarm.serve.tools import Marks
from tests.swarm.serve.conftest import Serve
from tests.swarm.serve.tiny import TEMPLATE, TinyBackend, TinyManifest, tiny_tokenizer

HELLO: list[Any] = [{"role": "user", "content": "hi"}]
ALWAYS = TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}{# </think> #}")


def thinker(template: str = ALWAYS) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer(template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<think>", "</think>"]})
    return tokenizer


def wish(**fields: Any) -> ThoughtWish | None:
    return parse_chat_untrusted({"messages": HELLO, **fields}, GatewayConfig()).wanted.thought


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        ({}, None),
        ({"thinking_budget": 40}, 40),
        ({"thinking_token_budget": 40, "reasoning_effort": "low"}, 40),
        ({"thinking_budget_tokens": 0}, 0),
        ({"thinking_budget": -1}, None),
        ({"chat_template_kwargs": {"thinking_budget": 7, "enable_thinking": True}}, 7),
        ({"chat_template_kwargs": {"enable_thinking": False}}, 0),
        ({"enable_thinking": False}, 0),
        ({"reasoning_effort": "none"}, 0),
        ({"reasoning_effort": "low"}, 1024),
        ({"reasoning_effort": "high"}, 24_576),
        ({"reasoning_effort": "utmost"}, None),
    ],
)
def test_every_spelling_is_one_limit(fields: dict[str, Any], most: int | None) -> None:
    found = wish(**fields)
    assert (None if found is None else found.most) == most


def test_what_is_no_limit_is_refused_by_name() -> None:
    for fields, param in (
        ({"thinking_budget": -2}, "thinking_budget"),
        ({"thinking_budget": "many"}, "thinking_budget"),
        ({"chat_template_kwargs": {"thinking_budget": True}}, "chat_template_kwargs.thinking_budget"),
        ({"thinking_budget": 3, "thinking_token_budget": 4}, "thinking_token_budget"),
    ):
        with pytest.raises(ApiError) as error:
            wish(**fields)
        assert error.value.param == param


def test_anthropics_words() -> None:
    def told(thinking: Any) -> Any:
        return chat_body(read(CountBody, {"messages": HELLO, "thinking": thinking}))

    budget = told({"type": "enabled", "budget_tokens": 2048})
    assert budget["thinking_budget"] == 2048 and wish(**budget | {"messages": HELLO}) == ThoughtWish(
        2048, "thinking_budget"
    )
    assert "thinking_budget" not in told({"type": "adaptive"})
    assert wish(**told({"type": "disabled"}) | {"messages": HELLO}) == ThoughtWish(0)


def test_marks_are_the_models_own_tokens_or_refused() -> None:
    tokenizer = thinker()
    opens, closes = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    marks = Marks.of(ALWAYS)
    assert limit_of(ThoughtWish(9), marks, tokenizer, True) == ThoughtLimit(9, (closes,), (opens,), True)
    spelt = tiny_tokenizer(ALWAYS)
    assert limit_of(ThoughtWish(9), marks, spelt, True) is None  # an effort is a hint
    with pytest.raises(ApiError, match="'thinking_budget' needs a model whose marks"):
        limit_of(ThoughtWish(9, "thinking_budget"), marks, spelt, True)
    assert limit_of(ThoughtWish(9, "thinking_budget"), Marks.of(TEMPLATE), spelt, False) is None
    reads = thinker(ALWAYS + "{{ reasoning_effort }}")
    assert limit_of(ThoughtWish(1024), marks, reads, True) is None


@pytest.fixture
def backend(tmp_path: Any) -> TinyBackend:
    tokenizer = thinker()
    return TinyBackend(tmp_path, replace(TinyManifest(), vocab_size=len(tokenizer)), tokenizer)


async def test_a_model_that_would_think_on_answers_in_time(serve: Serve, backend: TinyBackend) -> None:
    closes = backend.tokenizer.convert_tokens_to_ids("</think>")
    async with serve() as served:
        asked: dict[str, Any] = {"model": served.model, "messages": HELLO, "max_tokens": 30}
        free = await served.openai.chat.completions.create(**asked, extra_body={"ignore_eos": True})
        assert not free.choices[0].message.content
        held = await served.openai.chat.completions.create(
            **asked, extra_body={"ignore_eos": True, "thinking_budget": 6}
        )
        assert held.usage is not None and held.usage.completion_tokens_details is not None
        assert held.usage.completion_tokens_details.reasoning_tokens <= 7
        assert held.choices[0].message.content
        shaping = backend.requests[-1].sampling.shaping
        assert shaping is not None and shaping.thought is not None
        assert (shaping.thought.most, shaping.thought.closes, shaping.thought.opened) == (6, (closes,), True)
        form = {"type": "json_object"}
        await served.openai.chat.completions.create(
            **asked | {"max_tokens": 4}, response_format=form, extra_body={"thinking_budget": 6}
        )
        assert backend.requests[-1].sampling.shaping is None  # nothing is thought before an answer of a given form

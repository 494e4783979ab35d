"""How long an answer may think, in the spellings of OpenAI, Qwen, vLLM and llama-server, as one limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swarm.model.thought import ThoughtLimit
from swarm.serve.body import wrong
from swarm.serve.errors import bad_field
from swarm.serve.requests import ChatBody
from swarm.serve.tools import CHANNEL_OF_THOUGHTS, END_OF_CHANNEL, Marks

if TYPE_CHECKING:
    from swarm.model.text.tokenizer import Tokenizer

EFFORTS = {"none": 0, "minimal": 512, "low": 1024, "medium": 8192, "high": 24_576}
"""Tokens of thought for an effort that the chat template does not read. As Google's API has them for OpenAI's words,
and half of the least for the one that is less; any other word limits nothing."""
_BUDGETS = ("thinking_budget", "thinking_token_budget", "thinking_budget_tokens")


@dataclass(frozen=True)
class ThoughtWish:
    """At most so many tokens of thought. `param`: the field that said so; "": an effort, which is a hint."""

    most: int
    param: str = ""


def read_thought(asked: ChatBody, options: Mapping[str, Any]) -> ThoughtWish | None:
    """How long the answer may think; None: as long as it likes. `options`: variables of the template. Raises ApiError.

    A limit in tokens goes before an effort. Negative limits limit nothing, as in Google's and llama.cpp's words.
    """
    said = {name: getattr(asked, name) for name in _BUDGETS if getattr(asked, name) is not None}
    if (inner := options.get(_BUDGETS[0])) is not None:
        path = f"chat_template_kwargs.{_BUDGETS[0]}"
        if type(inner) is not int or not -1 <= inner < 2**31:
            raise wrong(path, "a number of tokens, or -1 for no limit", inner)
        said[path] = inner
    if len(set(said.values())) > 1:
        names = list(said)
        raise bad_field(names[1], f"'{names[0]}' and '{names[1]}' limit thoughts to different numbers of tokens")
    if said:
        param, most = next(iter(said.items()))
        return None if most < 0 else ThoughtWish(most, param)
    if options.get("enable_thinking") is False or options.get("thinking") is False:
        return ThoughtWish(0)
    most = EFFORTS.get(asked.reasoning_effort or "", -1)
    return None if most < 0 else ThoughtWish(most)


def limit_of(wish: ThoughtWish, marks: Marks, tokenizer: Tokenizer, opened: bool) -> ThoughtLimit | None:
    """The limit in the model's own tokens; None for a model that has no marks of thoughts, or a hint that cannot be
    kept to, or is the template's own business. `opened`: the prompt ends within a thought. Raises ApiError 400 where a
    mark has several spellings.
    """
    if wish.most and not wish.param and "reasoning_effort" in str(getattr(tokenizer, "chat_template", None)):
        return None

    def spelt(text: str) -> tuple[int, ...]:
        return tuple(int(token) for token in tokenizer.encode(text, add_special_tokens=False))

    if marks.harmony:
        return ThoughtLimit(wish.most, spelt(END_OF_CHANNEL), spelt(CHANNEL_OF_THOUGHTS), opened)
    for opens, closes in marks.thoughts:
        opening, closing = spelt(opens), spelt(closes)
        if len(opening) == len(closing) == 1:
            return ThoughtLimit(wish.most, closing, opening, opened)
    if marks.thoughts and wish.param:
        why = "whose marks of thoughts are one token each; this model may spell them in several ways"
        raise bad_field(wish.param, f"'{wish.param}' needs a model {why}", "unsupported_parameter")
    return None

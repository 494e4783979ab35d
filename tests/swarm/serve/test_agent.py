"""An agent of three turns: the model calls tools, their results go back to it, and one turn is left and asked again."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.swarm.serve.conftest import Serve, Served
from tests.swarm.serve.tiny import TEMPLATE, TinyBackend, TinyManifest, tiny_tokenizer

CALLS = TEMPLATE.replace(
    "<|im_end|>\n{% endfor %}",
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}",
)
PROGRAMS: dict[str, Callable[..., str]] = {
    "weather": lambda city: {"Ghent": "Rain.", "Paris": "Clouds."}[city],
    "add": lambda a, b: str(a + b),
}
SMALL = {"type": "integer", "minimum": 0, "maximum": 99}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    form = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": f"Tells of {name}.", "parameters": form}}


TOOLS = [tool("weather", city={"enum": ["Ghent", "Paris"]}), tool("add", a=SMALL, b=SMALL)]


@pytest.fixture
def backend(tmp_path: Any) -> TinyBackend:
    return TinyBackend(tmp_path, replace(TinyManifest(), context=4096), tiny_tokenizer(CALLS))


@pytest.fixture
async def served(serve: Serve) -> AsyncIterator[Served]:
    async with serve() as running:
        yield running


async def turn(served: Served, said: list[Any], choice: Any) -> list[Any]:
    """What a turn adds to the conversation: a call, and what the program that it names says."""
    told = await served.openai.chat.completions.create(
        model=served.model, messages=said, tools=TOOLS, tool_choice=choice, temperature=1.0, max_tokens=120
    )
    (choice,) = told.choices
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and told.usage is not None
    result = PROGRAMS[call.function.name](**json.loads(call.function.arguments))
    answered = {"role": "tool", "tool_call_id": call.id, "content": result}
    return [choice.message.model_dump(exclude_none=True), answered]


async def test_three_turns_with_tools_and_one_that_is_left(served: Served) -> None:
    said: list[Any] = [{"role": "user", "content": "What is the weather like, and what is 2 + 2?"}]
    prompts: list[tuple[int, ...]] = []
    for number, name in enumerate(("weather", "add", "weather")):
        choice = {"type": "function", "function": {"name": name}}
        if number == 1:
            stream = await served.openai.chat.completions.create(
                model=served.model, messages=said, tools=TOOLS, tool_choice=choice, stream=True, max_tokens=120
            )
            async for _ in stream:
                break
            await stream.close()
            await served.backend.until(runs=0)
            assert served.backend.cancelled == 1
        said += await turn(served, said, choice)
        assert said[-2]["tool_calls"][0]["function"]["name"] == name
        prompts.append(tuple(served.backend.requests[-1].prompt_ids))
    text = str(served.backend.tokenizer.decode(prompts[-1]))
    for message in said[1:-2]:
        for call in message.get("tool_calls") or ():
            arguments = json.loads(call["function"]["arguments"])
            assert json.dumps(arguments) in text and f'"name": "{call["function"]["name"]}"' in text
        if message["role"] == "tool":
            assert f"<|im_start|>tool\n{message['content']}<|im_end|>" in text
    # What was told stays as it was, so each turn begins with all of the turn before: it is what is not computed again.
    begun = [prompt[: prompt.index(served.backend.tokenizer.eos_token_id)] for prompt in prompts]
    assert begun[0] == begun[1] == begun[2] and len(prompts[0]) < len(prompts[1]) < len(prompts[2])
    opening = len(served.backend.encode("<|im_start|>assistant\n"))
    assert prompts[1][: len(prompts[0]) - opening] == prompts[0][:-opening]
    assert prompts[2][: len(prompts[1]) - opening] == prompts[1][:-opening]
    last = await served.openai.chat.completions.create(
        model=served.model, messages=said, tools=TOOLS, tool_choice="none", max_tokens=8
    )
    assert last.choices[0].message.tool_calls is None and last.choices[0].message.content is not None

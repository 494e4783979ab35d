"""OpenAI's Responses API through their real client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from swarm.base.errors import RunError
from swarm.serve.compat.kept import KeptAnswers
from swarm.serve.keys import load_keys
from tests.swarm.serve.conftest import Serve, Served

HELLO: Any = [{"role": "user", "content": "hello"}]
CALL = 'Let me look.<tool_call>{"name": "weather", "arguments": {"c": 1.50}}</tool_call>'
TOOLS: Any = [{"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}]
ARGUMENTS = {"c": 1.5}


async def text_of(served: Served, **options: Any) -> str:
    answer = await served.openai.chat.completions.create(model=served.model, messages=HELLO, **options)
    return answer.choices[0].message.content or ""


def prompt_of(served: Served) -> str:
    return str(served.backend.tokenizer.decode(served.backend.requests[-1].prompt_ids))


async def test_responses_chat(served: Served) -> None:
    wanted = await text_of(served, max_tokens=12)
    ask: Any = {"model": served.model, "input": "hello", "max_output_tokens": 12}
    whole = await served.openai.responses.create(**ask)
    assert whole.output_text == wanted and whole.status == "incomplete"
    assert whole.incomplete_details and whole.incomplete_details.reason == "max_output_tokens"
    assert whole.usage and whole.usage.output_tokens == 12
    events: Any = [event async for event in await served.openai.responses.create(**ask, stream=True)]
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == wanted and events[-1].response.usage == whole.usage
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == wanted
    assert [event.sequence_number for event in events] == list(range(len(events)))


async def test_a_response_goes_on_from_another(served: Served) -> None:
    served.backend.script = "Blue."
    ask: Any = {"model": served.model, "max_output_tokens": 9}
    first = await served.openai.responses.create(**ask, input="Which colour?", instructions="Be brief.")
    await served.openai.responses.create(**ask, input="Sure?", previous_response_id=first.id)
    assert prompt_of(served).endswith(
        "user\nWhich colour?<|im_end|>\n<|im_start|>assistant\nBlue.<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "Be brief." not in prompt_of(served)  # instructions are those of each request
    assert (await served.openai.responses.retrieve(first.id)).output_text == "Blue."
    await served.openai.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        await served.openai.responses.create(**ask, input="Sure?", previous_response_id=first.id)
    unkept = await served.openai.responses.create(**ask, input="Which?", store=False)
    with pytest.raises(openai.NotFoundError):
        await served.openai.responses.retrieve(unkept.id)


@pytest.mark.parametrize("stream", [False, True])
async def test_responses_call_tools_and_hear_of_results(served: Served, stream: bool) -> None:
    served.backend.script = CALL
    ask: Any = {"model": served.model, "input": "hello", "tools": TOOLS, "max_output_tokens": 90}
    if stream:
        async with served.openai.responses.stream(**ask) as events:
            answer: Any = await events.get_final_response()
    else:
        answer = await served.openai.responses.create(**ask)
    assert answer.output_text == "Let me look." and answer.status == "completed"
    call = answer.output[1]
    assert call.type == "function_call" and call.name == "weather" and json.loads(call.arguments) == ARGUMENTS
    assert "1.50" in call.arguments  # as the model wrote it
    output: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "12 degrees"}]
    served.backend.script = "Dry."
    after = await served.openai.responses.create(
        model=served.model, input=output, previous_response_id=answer.id, max_output_tokens=9
    )
    assert after.output_text == "Dry." and "tool\n12 degrees" in prompt_of(served)


async def test_a_response_that_fails_midway_says_so(served: Served) -> None:
    served.backend.fail, served.backend.fail_after = RunError("a stage is gone"), 2
    stream = await served.openai.responses.create(model=served.model, input="hello", stream=True)
    last: Any = [event async for event in stream][-1]
    assert last.type == "response.failed" and last.response.error.message == "a stage is gone"


async def test_responses_belong_to_their_key(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("ada:aaaaaaaaaaaaaaaa\nbob:bbbbbbbbbbbbbbbb\n")
    async with serve(key="a" * 16, api_keys=load_keys(file)) as served:
        kept = await served.openai.responses.create(model=served.model, input="hello", max_output_tokens=4)
        bob = served.openai.with_options(api_key="b" * 16)
        for attempt in (bob.responses.retrieve, bob.responses.delete):
            with pytest.raises(openai.NotFoundError):
                await attempt(kept.id)
        assert (await served.openai.responses.retrieve(kept.id)).id == kept.id


async def test_what_is_not_to_be_had_is_said_in_openais_shape(served: Served) -> None:
    with pytest.raises(openai.InternalServerError, match="embeddings") as missing:
        await served.openai.embeddings.create(model=served.model, input="hello")
    assert missing.value.status_code == 501


def test_kept_answers_are_bounded() -> None:
    kept = KeptAnswers(count=3, size=400)
    for index in range(5):
        kept.put(f"r{index}", "ada", [{"role": "user", "content": "x"}], {"id": index})
    assert [kept.get(f"r{index}", "ada") is not None for index in range(5)] == [False, False, True, True, True]
    kept.put("wide", "ada", [{"content": "x" * 350}], {})
    assert kept.get("wide", "ada") and not kept.get("r4", "ada")
    kept.put("wider", "ada", [{"content": "x" * 500}], {})
    assert kept.get("wider", "ada") is None and kept.get("wide", "bob") is None

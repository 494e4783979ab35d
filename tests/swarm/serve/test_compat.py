"""Ollama's and Anthropic's APIs, through their own clients."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import ollama
import pytest

from swarm.base.errors import RunError
from swarm.serve.body import read
from swarm.serve.compat.anthropic import chat_body as from_anthropic
from swarm.serve.compat.bodies import CountBody, OllamaChatBody
from swarm.serve.compat.ollama import chat_body as from_ollama
from swarm.serve.errors import ApiError
from tests.swarm.serve.conftest import Serve, Served
from tests.swarm.serve.test_http import KEYS, SECRET

HELLO = [{"role": "user", "content": "hello"}]
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "adds", "parameters": PARAMETERS}}]
THEIR_TOOLS = [{"name": "add", "description": "adds", "input_schema": PARAMETERS}]
CALL = 'Well <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'


@pytest.fixture
async def by_ollama(served: Served) -> AsyncIterator[ollama.AsyncClient]:
    client = ollama.AsyncClient(host=served.url)
    yield client
    await client._client.aclose()


@pytest.fixture
async def by_anthropic(served: Served) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=served.url, api_key="unused", max_retries=0) as client:
        yield client


async def said(served: Served, **more: Any) -> str:
    """What OpenAI's API says to the same."""
    answer = await served.openai.chat.completions.create(model=served.model, messages=HELLO, **more)
    return answer.choices[0].message.content or ""


async def test_ollama_says_what_openai_says(served: Served, by_ollama: ollama.AsyncClient) -> None:
    wanted = await said(served, max_tokens=20)
    options = {"num_predict": 20, "num_ctx": 4096}
    whole = await by_ollama.chat(model=served.model, messages=HELLO, options=options)
    assert whole.message.content == wanted and whole.done and whole.done_reason == "length"
    assert whole.eval_count == 20 and whole.prompt_eval_count == len(served.backend.encode_chat(HELLO))
    stream = await by_ollama.chat(model=f"{served.model}:latest", messages=HELLO, options=options, stream=True)
    parts = [part async for part in stream]
    assert "".join(part.message.content or "" for part in parts) == wanted
    assert [part.done for part in parts[-2:]] == [False, True] and parts[-1].eval_count == 20
    told = await by_ollama.generate(model=served.model, prompt="hello", options=options)
    assert told.response == wanted and told.done_reason == "length"
    warm = await by_ollama.generate(model=served.model, prompt="")
    assert warm.done_reason == "load"


async def test_ollama_sampling_is_the_rings(served: Served, by_ollama: ollama.AsyncClient) -> None:
    options = {"num_predict": 12, "temperature": 0.9, "top_p": 0.8, "seed": 4, "repeat_penalty": 1.2, "stop": ["zzz"]}
    await by_ollama.chat(model=served.model, messages=HELLO, options=options)
    asked = served.backend.requests[-1]
    assert (asked.sampling.temperature, asked.sampling.top_p, asked.sampling.seed) == (0.9, 0.8, 4)
    assert asked.sampling.repetition_penalty == 1.2 and asked.stop == ("zzz",) and asked.max_tokens == 12
    await by_ollama.chat(model=served.model, messages=HELLO, options={"num_predict": 10**6})
    assert served.backend.requests[-1].max_tokens < served.backend.manifest.context  # what fits


async def test_ollama_lists_shows_and_refuses(served: Served, by_ollama: ollama.AsyncClient) -> None:
    assert [model.model for model in (await by_ollama.list()).models] == [served.model]
    assert (await by_ollama.ps()).models[0].model == served.model
    shown = await by_ollama.show(served.model)
    assert shown.capabilities == ["completion", "tools"] and shown.modelinfo is not None
    assert shown.modelinfo["wanswarm.context_length"] == served.backend.manifest.context
    for call, status, says in (
        (by_ollama.chat(model="other", messages=HELLO), 404, "is not served here"),
        (by_ollama.embed(model=served.model, input="x"), 501, "embed is not offered"),
        (by_ollama.generate(model=served.model, prompt="x", images=["aGk="]), 400, "reads text only"),
        (by_ollama.generate(model=served.model, prompt="x", suffix="y"), 400, "fills in none"),
    ):
        with pytest.raises(ollama.ResponseError, match=says) as refused:
            await call
        assert refused.value.status_code == status


async def test_tools_in_both_apis(
    served: Served, by_ollama: ollama.AsyncClient, by_anthropic: anthropic.AsyncAnthropic
) -> None:
    served.backend.script = CALL
    first = await by_ollama.chat(model=served.model, messages=HELLO, tools=TOOLS)
    assert first.message.tool_calls is not None
    assert first.message.tool_calls[0].function.arguments == {"a": 1}
    again = [*HELLO, first.message.model_dump(), {"role": "tool", "tool_name": "add", "content": "2"}]
    assert (await by_ollama.chat(model=served.model, messages=again, tools=TOOLS)).done
    asked: dict[str, Any] = {"model": served.model, "max_tokens": 100, "messages": HELLO, "tools": THEIR_TOOLS}
    answer = await by_anthropic.messages.create(**asked)
    assert [block.type for block in answer.content] == ["text", "tool_use"] and answer.stop_reason == "tool_use"
    use = answer.content[1]
    assert use.type == "tool_use" and use.name == "add" and use.input == {"a": 1}
    async with by_anthropic.messages.stream(**asked) as stream:
        final = await stream.get_final_message()
    assert [block.type for block in final.content] == ["text", "tool_use"] and final.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "2"}]}
    turns = [*HELLO, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    assert (await by_anthropic.messages.create(**{**asked, "messages": turns})).role == "assistant"


async def test_anthropic_says_what_openai_says(served: Served, by_anthropic: anthropic.AsyncAnthropic) -> None:
    wanted = await said(served, max_tokens=20)
    asked: dict[str, Any] = {"model": served.model, "messages": HELLO}
    whole = await by_anthropic.messages.create(max_tokens=20, **asked)
    assert whole.content[0].type == "text" and whole.content[0].text == wanted
    assert whole.stop_reason == "max_tokens" and whole.usage.output_tokens == 20
    async with by_anthropic.messages.stream(max_tokens=20, **asked) as stream:
        text = "".join([part async for part in stream.text_stream])
        final = await stream.get_final_message()
    assert text == wanted and final.usage.output_tokens == 20 and final.stop_reason == "max_tokens"
    counted = await by_anthropic.messages.count_tokens(**asked)
    assert counted.input_tokens == whole.usage.input_tokens == len(served.backend.encode_chat(HELLO))
    system = [{"role": "system", "content": "Be brief.\n\nBe kind."}, *HELLO]
    blocks: list[Any] = [{"type": "text", "text": text} for text in ("Be brief.", "Be kind.")]
    counted = await by_anthropic.messages.count_tokens(**asked, system=blocks)
    assert counted.input_tokens == len(served.backend.encode_chat(system))
    stop = wanted[8:10]
    cut = await by_anthropic.messages.create(max_tokens=20, stop_sequences=[stop], **asked)
    assert cut.stop_reason == "stop_sequence" and cut.stop_sequence == stop
    async with by_anthropic.messages.stream(max_tokens=32_000, **asked) as stream:  # what a coding agent asks for
        await stream.get_final_message()
    assert served.backend.requests[-1].max_tokens < served.backend.manifest.context


async def test_anthropic_errors_have_its_shape(served: Served, by_anthropic: anthropic.AsyncAnthropic) -> None:
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
    with pytest.raises(anthropic.BadRequestError, match="reads text only") as refused:
        await by_anthropic.messages.create(
            model=served.model, max_tokens=5, messages=[{"role": "user", "content": [picture]}]
        )
    assert refused.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index]
    with pytest.raises(anthropic.NotFoundError):
        await by_anthropic.messages.create(model="other", max_tokens=5, messages=HELLO)
    served.backend.fail = RunError("the ring fell apart")
    with pytest.raises(anthropic.InternalServerError, match="fell apart"):
        await by_anthropic.messages.create(model=served.model, max_tokens=5, messages=HELLO)


async def test_an_error_in_the_middle_of_a_stream(served: Served) -> None:
    served.backend.fail, served.backend.fail_after = RunError("the ring fell apart"), 3
    body = {"model": served.model, "messages": HELLO, "max_tokens": 30, "stream": True}
    async with served.http.post("/api/chat", json=body) as answer:
        lines = [json.loads(line) async for line in answer.content]
    assert answer.status == 200 and lines[-1] == {"error": "the ring fell apart"}
    async with served.http.post("/v1/messages", json=body) as answer:
        text = await answer.text()
    assert "event: error\n" in text and '"type":"overloaded_error"' in text


async def test_keys_are_asked_for_in_their_words(serve: Serve) -> None:
    async with serve(key=SECRET, api_keys=KEYS) as served:
        for path in ("/v1/messages", "/api/chat"):
            async with served.http.post(path, json={}, headers={"Authorization": "Bearer wrong"}) as answer:
                body = await answer.json()
                assert answer.status == 401
                assert body["type"] == "error" if path == "/v1/messages" else isinstance(body["error"], str)


@pytest.mark.parametrize(
    "body", [{"messages": [3]}, {"messages": "x"}, {"messages": [{"role": "user", "content": [{"type": "audio"}]}]}]
)
def test_malformed_bodies_name_the_field(body: dict[str, Any]) -> None:
    with pytest.raises(ApiError, match="messages") as refused:
        from_anthropic(read(CountBody, body))
    assert refused.value.status == 400
    if body["messages"] != [{"role": "user", "content": [{"type": "audio"}]}]:
        with pytest.raises(ApiError, match="messages"):
            from_ollama(read(OllamaChatBody, body))

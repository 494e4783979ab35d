"""The chat endpoint through the real OpenAI client."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest

from swarm.base.errors import BusyError, CoverageError, RunError
from tests.swarm.serve.conftest import Serve, Served
from tests.swarm.serve.tiny import TinyManifest

HELLO = [{"role": "user", "content": "hello"}]


async def test_an_answer_has_text_usage_and_a_receipt(served: Served) -> None:
    raw = await served.openai.chat.completions.with_raw_response.create(
        model=served.model, messages=HELLO, max_tokens=12
    )
    answer = raw.parse()
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage is not None and answer.usage.completion_tokens == 12
    assert answer.usage.prompt_tokens == len(served.backend.encode_chat(HELLO))
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    assert raw.headers["x-request-id"]
    async with served.http.get(raw.headers["x-receipt"]) as receipt:
        assert receipt.status == 200 and (await receipt.json())["format"] == "wanswarm-receipt"


async def test_streaming_says_the_same_as_not_streaming(served: Served) -> None:
    ask = {"model": served.model, "messages": HELLO, "max_tokens": 40, "temperature": 0.9, "seed": 5}
    whole = await served.openai.chat.completions.create(**ask)
    stream = await served.openai.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_a_seed_repeats_an_answer_and_choices_differ(served: Served) -> None:
    async def ask(seed: int) -> list[str | None]:
        answer = await served.openai.chat.completions.create(
            model=served.model, messages=HELLO, max_tokens=16, temperature=1.0, seed=seed, n=3
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len(served.backend.encode_chat(HELLO))
        return [choice.message.content for choice in answer.choices]

    first = await ask(11)
    assert first == await ask(11) and first != await ask(12)
    assert len(set(first)) == 3


async def test_streamed_choices_are_told_apart(served: Served) -> None:
    ask = {"model": served.model, "messages": HELLO, "max_tokens": 16, "temperature": 1.0, "seed": 3, "n": 3}
    whole = await served.openai.chat.completions.create(**ask)
    texts = ["", "", ""]
    async for chunk in await served.openai.chat.completions.create(**ask, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


async def test_a_stop_string_ends_the_text_and_is_not_in_it(served: Served) -> None:
    ask = {"model": served.model, "messages": HELLO, "max_tokens": 30}
    free = (await served.openai.chat.completions.create(**ask)).choices[0].message.content or ""
    stop = free[10:12]
    cut = (await served.openai.chat.completions.create(**ask, stop=[stop])).choices[0]
    assert cut.finish_reason == "stop"
    assert cut.message.content == free[: free.index(stop)]


async def test_logprobs(served: Served) -> None:
    answer = await served.openai.chat.completions.create(
        model=served.model, messages=HELLO, max_tokens=5, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert len(logprobs.content) == 5
    for entry in logprobs.content:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3
        assert entry.logprob == pytest.approx(entry.top_logprobs[0].logprob)  # greedy takes the best


async def test_own_logprob_without_alternatives(served: Served) -> None:
    answer = await served.openai.chat.completions.create(
        model=served.model, messages=HELLO, max_tokens=3, logprobs=True
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert [entry.top_logprobs for entry in logprobs.content] == [[], [], []]


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_call(served: Served, stream: bool) -> None:
    served.backend.script = 'Let me look.<tool_call>{"name": "weather", "arguments": {"city": "Ghent"}}</tool_call>'
    ask = {"model": served.model, "messages": HELLO, "tools": TOOLS, "max_tokens": 100}
    if stream:
        text, calls, finish = "", [], None
        async for chunk in await served.openai.chat.completions.create(**ask, stream=True):
            text += chunk.choices[0].delta.content or ""
            for call in chunk.choices[0].delta.tool_calls or []:
                if call.id:
                    calls.append(call)
                else:
                    calls[-1].function.arguments += call.function.arguments
            finish = chunk.choices[0].finish_reason or finish
    else:
        choice = (await served.openai.chat.completions.create(**ask)).choices[0]
        text, calls, finish = choice.message.content or "", choice.message.tool_calls or [], choice.finish_reason
    assert finish == "tool_calls" and text == "Let me look."
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("weather", {"city": "Ghent"})
    ]
    follow = [
        *HELLO,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": calls[0].id,
                    "type": "function",
                    "function": {"name": "weather", "arguments": calls[0].function.arguments},
                }
            ],
        },
        {"role": "tool", "tool_call_id": calls[0].id, "content": "rain"},
    ]
    served.backend.script = "It rains."
    again = await served.openai.chat.completions.create(**{**ask, "messages": follow, "max_tokens": 50})
    assert again.choices[0].message.content == "It rains."


PLAIN = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + PLAIN


@pytest.mark.parametrize("template", [PLAIN, NO_SYSTEM])
async def test_a_template_without_tools_has_them_described(served: Served, template: str) -> None:
    served.backend.tokenizer.chat_template = template
    served.backend.manifest = TinyManifest(context=4096)
    served.backend.script = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    ask = {"model": served.model, "tools": TOOLS}
    raw = await served.openai.chat.completions.with_raw_response.create(messages=HELLO, **ask)
    assert "described in the system message" in raw.headers["x-note"]
    call = raw.parse().choices[0].message.tool_calls[0]
    assert (call.function.name, call.function.arguments) == ("weather", "{}")
    told = served.backend.decode(served.backend.requests[-1].prompt_ids)
    assert '"name": "weather"' in told and "<tool_call>" in told and HELLO[0]["content"] in told
    said = {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]}
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    served.backend.script = "It rains."
    await served.openai.chat.completions.create(messages=[*HELLO, said, result], **ask)
    told = served.backend.decode(served.backend.requests[-1].prompt_ids)
    assert "<tool_response>\nrain\n</tool_response>" in told and '{"name": "weather", "arguments": {}}' in told


THINKS = (
    "{% for m in messages %}{{ m['role'] }}: {{ m.get('reasoning_content', '') }}{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: <think>\n{% endif %}{# </think> #}"
)


@pytest.mark.parametrize("stream", [False, True])
async def test_thoughts_come_apart_from_the_answer(served: Served, stream: bool) -> None:
    served.backend.tokenizer.chat_template = THINKS
    served.backend.script = "Short.\n</think>\n\nHello."
    ask = {"model": served.model, "messages": HELLO, "max_tokens": 100}
    if stream:
        thought = text = ""
        async for chunk in await served.openai.chat.completions.create(**ask, stream=True):
            thought += getattr(chunk.choices[0].delta, "reasoning_content", None) or ""
            text += chunk.choices[0].delta.content or ""
    else:
        answer = await served.openai.chat.completions.create(**ask)
        thought, text = answer.choices[0].message.reasoning_content, answer.choices[0].message.content
        assert answer.usage.completion_tokens_details.reasoning_tokens >= 6
    assert (thought, text) == ("Short.", "Hello.")
    before = {"role": "assistant", "content": "Hello.", "reasoning_content": "Short."}
    await served.openai.chat.completions.create(**{**ask, "messages": [*HELLO, before, *HELLO]})
    assert "assistant: Short.Hello." in served.backend.decode(served.backend.requests[-1].prompt_ids)


async def test_ids_of_calls_are_those_that_the_template_takes(served: Served) -> None:
    served.backend.tokenizer.chat_template = (
        "{# tools #}{% for m in messages %}{% for c in m.get('tool_calls', []) %}{% if c.id|length != 9 %}"
        "{{ raise_exception('nine, please') }}{% endif %}{% endfor %}{{ m['content'] }}{{ m.get('tool_call_id', '') }}"
        "{% endfor %}"
    )
    served.backend.script = '[TOOL_CALLS]weather[ARGS]{"city": "Ghent"}'
    ask = {"model": served.model, "tools": TOOLS}
    answer = await served.openai.chat.completions.create(messages=HELLO, **ask)
    (call,) = answer.choices[0].message.tool_calls
    assert len(call.id) == 9 and call.function.arguments == '{"city": "Ghent"}'
    foreign = {**call.model_dump(), "id": "call_abc"}
    turns = [
        {"role": "assistant", "content": "", "tool_calls": [foreign]},
        {"role": "tool", "tool_call_id": "call_abc", "content": "rain"},
    ]
    await served.openai.chat.completions.create(messages=[*HELLO, *turns], **ask)


async def test_a_template_that_refuses_is_the_callers_error(served: Served) -> None:
    served.backend.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(openai.BadRequestError, match="roles must alternate"):
        await served.openai.chat.completions.create(model=served.model, messages=HELLO)


async def test_too_long_a_prompt_names_the_numbers(served: Served) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await served.openai.chat.completions.create(
            model=served.model, messages=[{"role": "user", "content": "x" * 400}], max_tokens=10
        )
    error = caught.value
    assert error.code == "context_length_exceeded" and error.param == "messages"
    prompt = len(served.backend.encode_chat([{"role": "user", "content": "x" * 400}]))
    assert "256 tokens" in error.message and str(prompt) in error.message and str(prompt + 10) in error.message


async def test_without_max_tokens_the_answer_fits_the_context(served: Served) -> None:
    served.backend.script = "short"
    await served.openai.chat.completions.create(model=served.model, messages=HELLO)
    run = served.backend.requests[-1]
    assert len(run.prompt_ids) + run.max_tokens == 256


async def test_an_unknown_model_is_404(served: Served) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await served.openai.chat.completions.create(model="gpt-9", messages=HELLO)
    assert caught.value.code == "model_not_found" and "tiny-random" in caught.value.message


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BusyError("no room"), "swarm_busy"),
        (CoverageError("layers 3-4 missing"), "swarm_incomplete"),
        (RunError("lost"), "run_failed"),
    ],
)
async def test_a_swarm_that_cannot_is_503_with_retry_after(served: Served, error: Exception, code: str) -> None:
    served.backend.fail = error  # type: ignore[assignment]
    with pytest.raises(openai.InternalServerError) as caught:
        await served.openai.chat.completions.create(model=served.model, messages=HELLO, stream=True, max_tokens=4)
    assert caught.value.status_code == 503 and caught.value.code == code
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert str(error) in caught.value.message


async def test_an_error_in_mid_stream_reaches_the_client(served: Served) -> None:
    served.backend.fail, served.backend.fail_after = RunError("no other route"), 3
    stream = await served.openai.chat.completions.create(model=served.model, messages=HELLO, max_tokens=10, stream=True)
    with pytest.raises(openai.APIError, match="no other route"):
        async for _ in stream:
            pass


@pytest.mark.parametrize("stream", [False, True])
async def test_half_an_answer_is_not_passed_off_as_one(served: Served, stream: bool) -> None:
    served.backend.incomplete = True
    with pytest.raises(openai.APIError, match="lost a part of the ring after 4 tokens"):
        answer = await served.openai.chat.completions.create(
            model=served.model, messages=HELLO, max_tokens=4, stream=stream
        )
        async for _ in answer:
            pass


async def test_leaving_frees_the_ring(served: Served) -> None:
    served.backend.gate = asyncio.Event()
    ask = served.openai.chat.completions.create(model=served.model, messages=HELLO, max_tokens=100)
    task = asyncio.create_task(ask)
    await served.backend.until(runs=1)
    task.cancel()
    await served.backend.until(runs=0)
    assert served.backend.cancelled == 1


async def test_leaving_a_stream_frees_the_ring(served: Served) -> None:
    stream = await served.openai.chat.completions.create(
        model=served.model, messages=HELLO, max_tokens=200, stream=True
    )
    await anext(aiter(stream))
    served.backend.gate = asyncio.Event()
    await stream.close()
    await served.backend.until(runs=0)
    assert served.backend.cancelled == 1


async def test_models(served: Served) -> None:
    models = await served.openai.models.list()
    assert [model.id for model in models.data] == ["tiny-random"]
    assert (await served.openai.models.retrieve("tiny-random")).id == "tiny-random"
    with pytest.raises(openai.NotFoundError):
        await served.openai.models.retrieve("other/model")


async def test_a_full_queue_is_429_and_503(serve: Serve) -> None:
    async with serve(max_running=1, max_waiting_per_user=1) as served:
        served.backend.gate = asyncio.Event()
        ask = {"model": served.model, "messages": HELLO, "max_tokens": 3}
        first = asyncio.create_task(served.openai.chat.completions.create(**ask))
        await served.backend.until(runs=1)
        second = asyncio.create_task(served.openai.chat.completions.create(**ask))
        await served.state(lambda state: state["waiting"] == 1)
        with pytest.raises(openai.RateLimitError) as caught:
            await served.openai.chat.completions.create(**ask)
        assert int(caught.value.response.headers["retry-after"]) >= 1
        served.backend.gate.set()
        assert (await first).choices[0].message.content == (await second).choices[0].message.content
        assert served.backend.most_open == 1
        runs = (await served.state(lambda state: not state["waiting"]))["runs"]
        assert [run["state"] for run in runs] == ["done", "done"]  # who was refused a turn had no run
        async with served.http.get("/metrics") as answer:
            assert 'wanswarm_runs_total{outcome="refused"} 1.0' in await answer.text()


async def test_waiting_too_long_is_503(serve: Serve) -> None:
    async with serve(max_running=1, max_wait_s=0.05) as served:
        served.backend.gate = asyncio.Event()
        ask = {"model": served.model, "messages": HELLO, "max_tokens": 3}
        first = asyncio.create_task(served.openai.chat.completions.create(**ask))
        await served.backend.until(runs=1)
        with pytest.raises(openai.InternalServerError) as caught:
            await served.openai.chat.completions.create(**ask)
        assert caught.value.code == "queue_timeout" and int(caught.value.response.headers["retry-after"]) >= 1
        served.backend.gate.set()
        await first

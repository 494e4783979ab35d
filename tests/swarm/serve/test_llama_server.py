"""What clients of llama-server ask besides chats."""

from __future__ import annotations

import asyncio
import json
from datetime import date
from typing import Any

import pytest

from swarm.base.errors import UsageError
from swarm.model.text.template import TemplateOptions
from swarm.serve.chat_prompt import offered
from swarm.serve.config import template_options
from tests.swarm.serve.conftest import Serve, Served

USER = {"role": "user", "content": "hi"}
BEGUN = {"role": "assistant", "content": "Well, "}
WITH_VARIABLES = (
    "{{ date_string }}{% if enable_thinking %}think{% endif %}{% for message in messages %}|{{ message.role }}:"
    "{{ message.content }}{{ message.reasoning_content }}{{ message.tool_calls and 'call' }}{% endfor %}"
    "{% if add_generation_prompt %}|assistant:{% endif %}"
)


async def events_of(served: Served, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    async with served.http.post(path, json={**body, "stream": True}) as answer:
        assert answer.status == 200 and "x-ignored-fields" not in answer.headers, await answer.text()
        lines = (await answer.text()).splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def prompt_of(served: Served) -> str:
    return str(served.backend.tokenizer.decode(served.backend.requests[-1].prompt_ids))


async def test_apply_template_is_the_prompt_of_a_run(served: Served) -> None:
    chat = {"messages": [{"role": "system", "content": "Be öd."}, {"role": "user", "content": "hi"}], "max_tokens": 1}
    async with served.http.post("/apply-template", json={**chat, "cache_prompt": True}) as answer:
        assert answer.status == 200, await answer.text()
        prompt = (await answer.json())["prompt"]
        assert answer.headers["x-ignored-fields"] == "cache_prompt"
    await served.openai.chat.completions.create(model=served.model, **chat)  # type: ignore[call-overload]
    assert tuple(served.backend.encode(prompt)) == tuple(served.backend.requests[-1].prompt_ids)
    async with served.http.post("/apply-template", json={"messages": []}) as answer:
        assert answer.status == 400 and (await answer.json())["error"]["param"] == "messages"


async def test_props_tell_what_llama_server_tells(served: Served) -> None:
    async with served.http.get("/props") as answer:
        told = await answer.json()
    assert told["default_generation_settings"]["n_ctx"] == served.backend.manifest.context
    assert (
        told["chat_template"] == served.backend.tokenizer.chat_template
        and told["eos_token"] == served.backend.tokenizer.eos_token
    )
    assert told["total_slots"] == 8 and told["model_alias"] == served.model
    async with served.http.get("/props", params={"model": "other"}) as answer:
        assert answer.status == 404
    async with served.http.post("/embedding", json={}) as answer:
        assert answer.status == 501 and "embeddings" in (await answer.json())["error"]["message"]


async def test_tokenizer_info_tells_what_harnesses_ask(served: Served) -> None:
    async with served.http.get("/tokenizer_info") as answer:
        told = await answer.json()
    tokenizer = served.backend.tokenizer
    assert told["chat_template"] == tokenizer.chat_template and told["bos_token"] is None
    assert told["eos_token"] == tokenizer.eos_token and told["model_max_length"] == served.backend.manifest.context
    async with served.http.get("/tokenizer_info", params={"model": "other"}) as answer:
        assert answer.status == 404


async def test_completion_in_llama_servers_words(served: Served) -> None:
    asked = {"prompt": "Once", "n_predict": 6, "temperature": 0, "cache_prompt": True, "return_tokens": True}
    async with served.http.post("/completion", json=asked) as answer:
        assert answer.status == 200, await answer.text()
        assert answer.headers["x-ignored-fields"] == "cache_prompt"
        told = await answer.json()
    assert len(told["tokens"]) == told["tokens_predicted"] == told["timings"]["predicted_n"] == 6
    assert told["stop_type"] == "limit" and not told["truncated"] and told["prompt"] == "Once"
    assert told["generation_settings"]["n_predict"] == 6 and told["generation_settings"]["logit_bias"] == []
    async with served.http.post("/completions", json={**asked, "stream": True, "n_probs": 3}) as answer:
        lines = (await answer.text()).splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    entries = [entry for event in events[:-1] for entry in event.get("completion_probabilities", ())]
    assert [entry["id"] for entry in entries] == told["tokens"]
    assert all(len(e["top_logprobs"]) == 3 and e["top_logprobs"][0]["logprob"] == e["logprob"] <= 0 for e in entries)
    assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]
    assert "".join(event["content"] for event in events) == told["content"]
    async with served.http.post(
        "/completion", json={**asked, "response_fields": ["content", "timings/predicted_n", "x"]}
    ) as answer:
        assert await answer.json() == {"content": told["content"], "timings/predicted_n": 6}


async def test_prompts_of_ids_texts_and_objects(served: Served) -> None:
    ids = list(served.backend.encode("ab"))
    several = {"prompt": ["ab", ids, {"prompt_string": "ab"}], "n_predict": 3, "temperature": 0}
    async with served.http.post("/completion", json=several) as answer:
        told = await answer.json()
    assert [one["index"] for one in told] == [0, 1, 2] and len({one["content"] for one in told}) == 1
    async with served.http.post("/completion", json={"prompt": [*ids, "cd"], "n_predict": 1}) as answer:
        assert (await answer.json())["prompt"] == "abcd"
    for prompt in ([], [[]], {}, ["a", {"prompt_string": "b"}, 5], {"prompt_string": "a", "multimodal_data": "x"}):
        async with served.http.post("/completion", json={"prompt": prompt}) as answer:
            assert answer.status == 400 and (await answer.json())["error"]["code"] == 400


async def test_an_answer_to_the_end_of_the_context_is_truncated(served: Served) -> None:
    context = served.backend.manifest.context
    asked = {"prompt": "a" * (context - 5), "n_predict": -1, "ignore_eos": True, "logit_bias": [["b", -100]]}
    async with served.http.post("/completion", json=asked) as answer:
        told = await answer.json()
    assert told["truncated"] and told["tokens_predicted"] == 5
    end = served.backend.tokenizer.eos_token_id
    banned = {"token": served.backend.encode("b")[0], "bias": -100.0}
    assert told["generation_settings"]["logit_bias"] == [banned, {"token": end, "bias": None}]
    async with served.http.post("/completion", json={"prompt": "a" * (context + 1)}) as answer:
        error = (await answer.json())["error"]
    assert error["type"] == "exceed_context_size_error" and error["n_ctx"] == context < error["n_prompt_tokens"]
    async with served.http.post(
        "/completion", json={"prompt": "a", "post_sampling_probs": True, "temperature": 0.5}
    ) as answer:
        assert answer.status == 400 and (await answer.json())["error"]["param"] == "post_sampling_probs"


async def test_slots_tell_how_many_and_nothing_else(serve: Serve) -> None:
    async with serve(max_running=2) as served:
        served.backend.gate = asyncio.Event()
        asked = asyncio.create_task(served.openai.completions.create(model=served.model, prompt="a", max_tokens=1))
        await served.backend.until(1)
        async with served.http.get("/slots") as answer:
            told = await answer.json()
        assert [slot["is_processing"] for slot in told] == [True, False] and "prompt" not in str(told)
        served.backend.gate.set()
        await asked
    async with serve(slots=False) as served, served.http.get("/slots") as answer:
        assert answer.status == 501


async def test_any_name_means_the_model_where_the_alias_says_so(serve: Serve) -> None:
    async with serve(aliases=(("*", "tiny-random"),)) as served:
        told = await served.openai.chat.completions.create(
            model="gpt-9", messages=[{"role": "user", "content": "a"}], max_tokens=1, extra_body={"verbose": True}
        )
        assert told.model == served.model and (told.system_fingerprint or "").startswith("build-")
        assert told.model_extra is not None and "<|im_start|>user\na" in told.model_extra["__verbose"]["prompt"]
        assert [model.id for model in (await served.openai.models.list()).data] == [served.model]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [USER], "max_tokens": 12}),
        ("/v1/completions", {"prompt": "hi", "max_tokens": 12}),
        ("/completion", {"prompt": "hi", "n_predict": 12}),
        ("/v1/responses", {"input": "hi", "max_output_tokens": 12}),
    ],
)
async def test_a_stream_tells_how_fast_it_is_and_how_much_is_read(
    served: Served, path: str, body: dict[str, Any]
) -> None:
    asked = {**body, "timings_per_token": True, "return_progress": True, "ignore_eos": True}
    asked.pop("ignore_eos") if path == "/v1/responses" else None
    events = await events_of(served, path, asked)
    read = [event["prompt_progress"] for event in events if "prompt_progress" in event]
    total = len(served.backend.requests[-1].prompt_ids)
    assert [each["processed"] for each in read] == sorted({0, total // 2, total})
    assert all(each["total"] == total and each["cache"] == 0 and each["time_ms"] >= 0 for each in read)
    paced = [event["timings"] for event in events if "timings" in event]
    counted = [pace["predicted_n"] for pace in paced]
    assert counted == sorted(counted) and counted[0] < counted[-1] == 12
    assert all(pace["prompt_n"] == total for pace in paced)
    assert not [event for event in await events_of(served, path, body) if "prompt_progress" in event]


async def test_a_last_message_of_the_assistant_is_gone_on_with_where_clients_expect_it(served: Served) -> None:
    chat = {"messages": [USER, BEGUN], "max_tokens": 2}
    begun, anew = "<|im_start|>assistant\nWell, ", "<|im_start|>assistant\n"
    for path, body in {
        "/chat/completions": chat,
        "/v1/messages": {**chat, "model": served.model},
        "/api/chat": {"messages": chat["messages"], "model": served.model, "stream": False},
    }.items():
        async with served.http.post(path, json=body) as answer:
            assert answer.status == 200, await answer.text()
        assert prompt_of(served).endswith(begun.rstrip()) or prompt_of(served).endswith(begun), path
    async with served.http.post("/apply-template", json=chat) as answer:
        assert (await answer.json())["prompt"].rstrip().endswith("Well,")
    for path, body in {
        "/v1/chat/completions": chat,
        "/chat/completions": {**chat, "add_generation_prompt": True},
    }.items():
        async with served.http.post(path, json=body) as answer:
            assert answer.status == 200
        assert prompt_of(served).endswith(anew), path
    async with served.http.post("/chat/completions", json={"messages": [USER, BEGUN, BEGUN]}) as answer:
        assert answer.status == 400


async def test_content_is_cut_into_its_own_tokens_alone(served: Served) -> None:
    wanted = {"prompt": True, "content": False}
    seen = []
    served.backend.encode = lambda text: seen.append(text) or (1, 2)  # type: ignore[assignment, method-assign, func-returns-value]
    for name, special in wanted.items():
        for more, expected in (({}, special), ({"add_special": True}, True), ({"add_special_tokens": False}, False)):
            async with served.http.post("/tokenize", json={name: "ab", **more}) as answer:
                assert ((await answer.json())["tokens"] == [1, 2]) is expected, (name, more)


async def test_variables_of_the_template_come_from_the_gateway_the_request_and_the_day(serve: Serve) -> None:
    async with serve(template_options={"enable_thinking": True}) as served:
        served.backend.tokenizer.chat_template = WITH_VARIABLES
        today = date.today()

        async def prompt(**more: Any) -> str:
            async with served.http.post("/apply-template", json={"messages": [USER], **more}) as answer:
                return str((await answer.json())["prompt"])

        assert await prompt() == f"{today:%d %b %Y}think|user:hi|assistant:"
        assert (await prompt(reasoning_effort="none")).endswith(f"{today:%Y}|user:hi|assistant:")
        own = {"enable_thinking": False, "date_string": "now"}
        assert await prompt(chat_template_kwargs=own) == "now|user:hi|assistant:"
        async with served.http.post("/tokenize", json={"messages": [USER]}) as answer:
            ids = (await answer.json())["tokens"]
        assert "think|user" in served.backend.tokenizer.decode(ids)


def test_what_templates_ask_for_by_names_of_their_own() -> None:
    day, plain = date(2026, 11, 8), TemplateOptions()
    assert offered("{{ messages }}", plain, day) is plain
    told = offered("{{ functions }}{{ datetime }}", plain, day).variables
    assert told == {"functions": "", "datetime": "Nov 08 2026"}
    offering = TemplateOptions(tools=[{"type": "function", "function": {"name": "f"}}])
    assert offered("{{ tools }}{{ functions }}", offering, day).variables == {"functions": '[{"name": "f"}]'}
    for bad in ("[]", "{", '{"tools": 1}', '{"_x": 1}'):
        with pytest.raises(UsageError, match="chat-template-kwargs"):
            template_options(bad)


async def test_thoughts_that_come_back_reach_the_template(served: Served) -> None:
    served.backend.tokenizer.chat_template = WITH_VARIABLES + "{# tools #}"
    call = {"function": {"name": "f", "arguments": {}}}
    block = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "a", "content": "r"}
    thought = {"type": "thinking", "thinking": "hm", "signature": ""}
    item = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "a", "output": "r"}
    reasoning = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "hm"}],
    }
    bodies: dict[str, Any] = {
        "/v1/messages": {
            "max_tokens": 1,
            "messages": [
                USER,
                {"role": "assistant", "content": [thought, block]},
                {"role": "user", "content": [result]},
            ],
        },
        "/api/chat": {
            "stream": False,
            "messages": [
                USER,
                {"role": "assistant", "thinking": "hm", "tool_calls": [call]},
                {"role": "tool", "tool_name": "a", "content": "r"},
            ],
        },
        "/v1/responses": {"input": [{**USER, "type": "message"}, reasoning, item, output], "max_output_tokens": 1},
    }
    for path, body in bodies.items():
        async with served.http.post(path, json={**body, "model": served.model}) as answer:
            assert answer.status == 200, await answer.text()
        assert "|assistant:hmcall|tool:r" in prompt_of(served), path


async def test_a_model_tells_its_aliases(serve: Serve) -> None:
    async with serve(aliases=(("small", "tiny-random"), ("*", "tiny-random"))) as served:
        async with served.http.get("/v1/models") as answer:
            listed = (await answer.json())["data"]
    assert [model["id"] for model in listed] == ["tiny-random", "small"]
    assert listed[0]["aliases"] == ["small"]

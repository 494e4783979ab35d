"""What clients of llama-server ask besides chats."""

from __future__ import annotations

import asyncio
import json

from tests.swarm.serve.conftest import Serve, Served


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
    async with served.http.post("/infill", json={}) as answer:
        assert answer.status == 501 and "fill-ins" in (await answer.json())["error"]["message"]


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
    for prompt in ([], [[]], {}, {"prompt_string": "a", "multimodal_data": "x"}):
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

"""What clients of llama-server ask besides chats."""

from __future__ import annotations

from tests.swarm.serve.conftest import Served


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

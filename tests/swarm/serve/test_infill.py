"""A text with something missing, asked for in the words of three APIs: the same prompt, by the model's own marks."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import ollama
import pytest

from swarm.serve.infill import File, InfillMarks
from tests.swarm.serve.conftest import Serve, Served
from tests.swarm.serve.tiny import TinyBackend, TinyManifest, tiny_tokenizer

MARKS = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|endoftext|>", "<|repo_name|>", "<|file_sep|>"]
BEFORE, BEHIND = "def add(a, b):\n    return ", "\n\nprint(add(1, 2))\n"
ASKED = f"<|fim_prefix|>{BEFORE}<|fim_suffix|>{BEHIND}<|fim_middle|>"


@pytest.fixture
def backend(tmp_path: Any) -> TinyBackend:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *MARKS]})
    return TinyBackend(tmp_path, replace(TinyManifest(), vocab_size=len(tokenizer)), tokenizer)


@pytest.fixture
async def served(serve: Serve) -> AsyncIterator[Served]:
    async with serve() as running:
        running.backend.script = "a + b<|file_sep|>other.py"
        yield running


def prompt_of(served: Served) -> str:
    return str(served.backend.tokenizer.decode(served.backend.requests[-1].prompt_ids))


async def asked(served: Served, path: str, **body: Any) -> dict[str, Any]:
    async with served.http.post(path, json=body) as answer:
        assert answer.status == 200, await answer.text()
        return dict(await answer.json())


async def test_openais_suffix_is_filled_in(served: Served) -> None:
    told = await asked(served, "/v1/completions", prompt=BEFORE, suffix=BEHIND, max_tokens=30)
    assert told["choices"][0]["text"] == "a + b" and told["choices"][0]["finish_reason"] == "stop"
    run = served.backend.requests[-1]
    assert prompt_of(served) == ASKED and set(run.stop_token_ids) == {
        int(served.backend.tokenizer.convert_tokens_to_ids(mark)) for mark in MARKS
    }
    stream = await served.openai.completions.create(
        model=served.model, prompt=BEFORE, suffix=BEHIND, max_tokens=30, stream=True
    )
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "a + b"
    await asked(served, "/v1/completions", prompt=BEFORE, suffix="", max_tokens=3)
    assert prompt_of(served) == BEFORE


async def test_llama_servers_infill_takes_further_files_and_a_beginning(served: Served) -> None:
    body = {"input_prefix": BEFORE, "input_suffix": BEHIND, "prompt": "a", "n_predict": 30, "samplers": ["top_k"]}
    told = await asked(served, "/infill", **body, t_max_predict_ms=500, cache_prompt=True)
    assert told["content"] == "a + b" and told["stop"] and prompt_of(served) == ASKED + "a"
    await asked(served, "/infill", **body, input_extra=[{"filename": "b.py", "text": "x = 1\n"}])
    assert prompt_of(served) == f"<|repo_name|>project\n<|file_sep|>b.py\nx = 1\n<|file_sep|>file\n{ASKED}a"
    async with served.http.post("/infill", json={"input_prefix": "a"}) as answer:
        error = (await answer.json())["error"]
        assert answer.status == 400 and error["type"] == "invalid_request_error" and error["param"] == "input_suffix"


async def test_ollamas_suffix_and_raw_prompts(served: Served) -> None:
    client = ollama.AsyncClient(host=served.url)
    options = {"num_predict": 30}
    told = await client.generate(model=served.model, prompt=BEFORE, suffix=BEHIND, options=options)
    assert told.response == "a + b" and told.done_reason == "stop" and prompt_of(served) == ASKED
    parts = [
        part.response
        async for part in await client.generate(
            model=served.model, prompt=ASKED, raw=True, options={**options, "stop": ["<|file_sep|>", " b"]}, stream=True
        )
    ]
    assert "".join(parts) == "a +" and prompt_of(served) == ASKED
    assert "insert" in (await client.show(served.model)).capabilities
    with pytest.raises(ollama.ResponseError, match="'system' is not supported here"):
        await client.generate(model=served.model, prompt="a", raw=True, system="Be brief.")
    await client._client.aclose()


async def test_a_model_that_fills_in_nothing_says_so(serve: Serve, tmp_path: Any) -> None:
    plain = TinyBackend(tmp_path)
    assert InfillMarks.of(plain.tokenizer) is None
    async with serve() as served:
        served.backend.tokenizer = plain.tokenizer
        for path, body, name in (
            ("/v1/completions", {"prompt": "a", "suffix": "b"}, "suffix"),
            ("/infill", {"input_prefix": "a", "input_suffix": "b"}, "input_suffix"),
            ("/api/generate", {"prompt": "a", "suffix": "b"}, "suffix"),
        ):
            async with served.http.post(path, json=body) as answer:
                assert answer.status == 400 and f"'{name}' is not supported" in json.dumps(await answer.json())


def test_files_of_a_model_without_marks_for_them_come_before() -> None:
    marks = InfillMarks("<P>", "<S>", "<M>", (), files=False)
    assert marks.prompt("a", "b", [File("x.py", "x = 1")]) == "<P>x = 1\na<S>b<M>"

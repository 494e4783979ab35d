"""Text token by token over a real ring: special tokens by id, left context, log-probabilities, templates."""

from __future__ import annotations

import asyncio
import io
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from receipts.check.verify import Options, verify
from receipts.format.document import secrets_untrusted
from swarm.base.config import MemberConfig
from swarm.base.errors import ModelError, UsageError
from swarm.client.client import Requester, RequesterConfig
from swarm.model.files.generation_config import generation_defaults
from swarm.model.files.store import ModelStore
from swarm.model.sampler import Sampling
from swarm.recheck.check import CheckConfig, check
from swarm.run.api import RunRequest
from swarm.serve.config import GatewayConfig
from swarm.serve.gateway import gateway
from swarm.terminal.chat import ChatConfig, chat
from swarm.terminal.chat_screen import PlainScreen
from swarm.testbed.cluster import LocalRing, LocalSwarm, local_ring
from tests.swarm.serve.conftest import Served
from tests.swarm.serve.spoken import save_spoken
from tests.swarm.serve.tiny import TinyBackend
from tests.warm import warm

pytestmark = pytest.mark.asyncio(loop_scope="module")
ADD: Any = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "spoken"
    save_spoken(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 1, "top_k": 1, "repetition_penalty": null}')
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ring(model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalRing]:
    swarm = LocalSwarm(
        tmp_path_factory.mktemp("swarm"),
        model=str(model),
        arguments=("--cpu", "--threads", "1", "--dtype", "float32"),
        command=warm(),
    )
    async with local_ring(swarm, [(0, 1), (1, 2)]) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(ring: LocalRing, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    state = tmp_path_factory.mktemp("requester")
    config = replace(GatewayConfig(default_temperature=0.0), patience_s=5.0)
    async with (
        await Requester.connect(
            RequesterConfig(MemberConfig(state, state / "models", ring.invite, lan=False), draft="suffix")
        ) as requester,
        gateway(requester, config, lambda data: verify(data).as_json(), "127.0.0.1", 0) as (host, port),
        aiohttp.ClientSession(f"http://{host}:{port}") as http,
        AsyncOpenAI(base_url=f"http://{host}:{port}/v1", api_key="unused", max_retries=0, timeout=60) as client,
    ):
        yield Served(f"http://{host}:{port}", requester, http, client)  # type: ignore[arg-type]


async def text_of(served: Served, prompt: str, **options: Any) -> str:
    """The same answer whole and in a stream."""
    ask = {"model": served.model, "prompt": prompt, "max_tokens": 16, **options}
    whole = (await served.openai.completions.create(**ask)).choices[0].text
    stream = await served.openai.completions.create(**ask, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream if chunk.choices]) == whole
    return whole


async def test_an_answer_goes_on_where_its_prompt_ends(served: Served) -> None:
    assert await text_of(served, "capital is") == " Paris😀 big city"
    assert await text_of(served, "capital is", echo=True) == "capital is Paris😀 big city"


async def test_special_tokens_are_not_shown_and_stop_by_name(served: Served) -> None:
    going_on = {"ignore_eos": True}
    assert await text_of(served, "end", max_tokens=3) == " done after"
    assert await text_of(served, "end", stop=["<|im_end|>"]) == " done"
    assert await text_of(served, "end", stop=["done<|im_end|> af"], extra_body=going_on) == " "
    assert await text_of(served, "capital is", stop=["g c"]) == " Paris😀 bi"  # over a token that is not shown
    assert await text_of(served, "capital is", stop=["note"]) == " Paris😀 big city"  # within its name


async def test_stops_by_id_and_stops_that_are_shown(served: Served) -> None:
    city, note = (served.backend.tokenizer.get_vocab()[token] for token in ("▁city", "<|note|>"))
    assert await text_of(served, "capital is", extra_body={"stop_token_ids": [city]}) == " Paris😀 big"
    assert (
        await text_of(served, "capital is", extra_body={"stop_token_ids": [note], "ignore_eos": True}) == " Paris😀 big"
    )
    shown = {"include_stop_str_in_output": True}
    assert await text_of(served, "capital is", extra_body={"stop_token_ids": [city], **shown}) == " Paris😀 big city"
    assert await text_of(served, "capital is", stop=["ig"], extra_body=shown) == " Paris😀 big"
    kept = await text_of(served, "cry capital is", echo=True, extra_body={"truncate_prompt_tokens": 2})
    assert kept == "capital is Paris😀 big city"


async def test_the_models_own_sampling_is_the_default(served: Served, model: Path, tmp_path: Path) -> None:
    """Its generation_config.json says top_k 1, so even a high temperature leaves one token."""
    assert dict(served.backend.generation_defaults)["top_k"] == 1  # type: ignore[attr-defined]
    assert await text_of(served, "capital is", temperature=2.0, seed=1) == " Paris😀 big city"
    free = [await text_of(served, "capital is", temperature=2.0, seed=s, extra_body={"top_k": -1}) for s in (1, 2)]
    assert free != [" Paris😀 big city"] * 2
    folder = tmp_path / "bad"
    shutil.copytree(model, folder)
    (folder / "generation_config.json").write_text('{"temperature": "hot"}')
    with pytest.raises(ModelError, match="expected temperature from 0 to 2"):
        generation_defaults(ModelStore(tmp_path), str(folder))


async def test_tool_calls_are_found_by_the_id_of_their_mark(served: Served) -> None:
    async def ask(text: str, **options: Any) -> Any:
        messages: Any = [{"role": "user", "content": text}]
        answer = await served.openai.chat.completions.create(
            model=served.model, messages=messages, max_tokens=16, **options
        )
        return answer.choices[0]

    called = await ask("call", tools=[ADD])
    assert called.finish_reason == "tool_calls" and called.message.content is None
    assert [c.function.model_dump() for c in called.message.tool_calls] == [{"name": "add", "arguments": '{"a": 1}'}]
    # The same letters in ordinary tokens are what the model says, not what it does.
    written = await ask("write", tools=[ADD])
    assert written.message.content == ' mark[TOOL_CALLS][{"name": "add", "arguments": {}}]'
    assert not written.message.tool_calls and written.finish_reason == "stop"
    assert (await ask("call")).message.content == '[{"name": "add", "arguments": {"a": 1}}]'


async def test_logprobs_have_the_bytes_of_the_vocabulary(served: Served) -> None:
    messages: Any = [{"role": "user", "content": "capital is"}]
    ask: Any = {"model": served.model, "messages": messages, "max_tokens": 16, "logprobs": True, "top_logprobs": 3}
    choice = (await served.openai.chat.completions.create(**ask)).choices[0]
    assert choice.logprobs is not None and choice.logprobs.content is not None and choice.message.content is not None
    entries = choice.logprobs.content
    assert b"".join(bytes(entry.bytes or []) for entry in entries) == choice.message.content.encode()
    assert [bytes(entry.bytes or []) for entry in entries[1:5]] == [b"\xf0", b"\x9f", b"\x98", b"\x80"]
    assert entries[1].token == "bytes:\\xf0"
    assert [entry.token for entry in entries if not entry.bytes] == ["<|note|>", "</s>"]
    for entry in entries:
        assert len({top.token for top in entry.top_logprobs}) == 3
        assert (entry.top_logprobs[0].token, entry.top_logprobs[0].logprob) == (entry.token, entry.logprob)
    stream = await served.openai.chat.completions.create(**ask, stream=True)
    told, text = [], ""
    async for chunk in stream:
        text += chunk.choices[0].delta.content or ""
        told += (chunk.choices[0].logprobs and chunk.choices[0].logprobs.content) or []
    assert told == entries and text == choice.message.content


async def test_completions_count_characters_and_keep_every_alternative(served: Served) -> None:
    ask: Any = {"model": served.model, "prompt": "capital is", "max_tokens": 16, "logprobs": 3}
    choice = (await served.openai.completions.create(**ask)).choices[0]
    assert choice.logprobs is not None and choice.logprobs.text_offset is not None
    assert choice.logprobs.text_offset == [0, 6, 6, 6, 6, 7, 11, 11, 16] and choice.text == " Paris😀 big city"
    assert choice.logprobs.top_logprobs is not None and all(len(top) == 3 for top in choice.logprobs.top_logprobs)
    top = choice.logprobs.top_logprobs[0]
    assert set(top) == {" Paris", "<s>", "</s>"} and top["<s>"] > top["</s>"]
    # Tokens of a stop string are no part of the text, and have no entry.
    cut = (await served.openai.completions.create(**ask, stop=["ig"])).choices[0]
    assert cut.text == " Paris😀 b" and cut.logprobs is not None and cut.logprobs.text_offset == [0, 6, 6, 6, 6, 7]


async def test_a_byte_level_vocabulary_is_spelled_too(tmp_path: Path) -> None:
    backend = TinyBackend(tmp_path)
    backend.script = "é😀!"
    async with (
        gateway(backend, GatewayConfig(), lambda data: {}, "127.0.0.1", 0) as (host, port),
        AsyncOpenAI(base_url=f"http://{host}:{port}/v1", api_key="unused") as client,
    ):
        chatted = await client.chat.completions.create(
            model="tiny-random", messages=[{"role": "user", "content": "x"}], logprobs=True
        )
        continued = await client.completions.create(model="tiny-random", prompt="ab", logprobs=1, max_tokens=50)
    assert chatted.choices[0].logprobs is not None and chatted.choices[0].logprobs.content is not None
    assert bytes(b for e in chatted.choices[0].logprobs.content for b in e.bytes or []) == "é😀!".encode()
    assert continued.choices[0].logprobs is not None
    assert continued.choices[0].logprobs.text_offset == [0, 0, 1, 1, 1, 1, 2]


async def test_options_reach_the_chat_template(served: Served) -> None:
    async def said(**options: Any) -> str | None:
        answer = await served.openai.chat.completions.create(
            model=served.model, messages=[{"role": "user", "content": "cry"}], max_tokens=4, **options
        )
        return answer.choices[0].message.content

    assert await said() == " shout loud"
    assert await said(extra_body={"chat_template_kwargs": {"enable_thinking": False}}) == " quiet"
    assert await said(reasoning_effort="none") == " quiet"
    assert await said(reasoning_effort="high") == " hard"
    for name in ("messages", "tokenize", "_x", "a b"):
        with pytest.raises(openai.BadRequestError, match=f"chat_template_kwargs.{name}"):
            await said(extra_body={"chat_template_kwargs": {name: 1}})


async def test_a_template_without_a_system_role_says_so_everywhere(served: Served) -> None:
    says = "refuses these messages: System role not supported"
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "cry"}]
    with pytest.raises(openai.BadRequestError, match=says):
        await served.openai.chat.completions.create(model=served.model, messages=system)  # type: ignore[arg-type]
    requester: Any = served.backend
    with pytest.raises(UsageError, match=says):
        requester.encode_chat(system)
    out, errors, lines = io.StringIO(), io.StringIO(), iter(["cry", "/system -", "cry"])

    async def read() -> str:
        await asyncio.sleep(0)
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    config = ChatConfig(RunRequest((0,), 4, Sampling(), receipt=False), "Be brief.")
    await chat(requester, config, PlainScreen(out, errors), read)
    assert says in errors.getvalue() and out.getvalue().strip() == "shout loud"


async def test_a_receipt_of_an_answer_that_was_cut_replays(served: Served, model: Path, tmp_path: Path) -> None:
    raw = await served.openai.completions.with_raw_response.create(
        model=served.model, prompt="capital is", max_tokens=16, stop=["ig"]
    )
    async with served.http.get(raw.headers["x-receipt"]) as receipt:
        data = await receipt.read()
    name = raw.headers["x-receipt"].rpartition("/")[2]
    (kept,) = served.backend.receipts_dir.glob(f"*{name}*.secrets.json")
    secrets = secrets_untrusted(kept.read_bytes())
    config = CheckConfig(models=tmp_path, model=str(model), replay=True, options=Options(secrets=secrets))
    verdict = await check(data, config)
    assert verdict.exit_code == 0 and any(claim.subject == "replay" for claim in verdict.claims)

"""Several models behind one gateway: who answers, under which names, and who leaves the list."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from swarm.base.errors import UsageError
from swarm.base.swarm_state import NodeState, SwarmState
from swarm.cli.serve import members_of, runs_at_once
from swarm.discovery import bootstrap
from swarm.mesh.invite import make_invite
from swarm.serve.config import GatewayConfig, alias, alias_prompt
from swarm.serve.desks import LOOK_S, TAG
from swarm.serve.gateway import gateway
from tests.swarm.mesh.make import ANN, MEMBERSHIP, MODEL, NOW
from tests.swarm.serve.conftest import Served, fake_verify
from tests.swarm.serve.tiny import TinyBackend, TinyManifest

ASK = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "temperature": 0}


def swarm_of(*layers: tuple[int, int]) -> SwarmState:
    """One in which these layers are served."""
    return SwarmState(
        "00" * 32, nodes=tuple(NodeState(f"{n:02x}" * 32, layers=span) for n, span in enumerate(layers, 1))
    )


def backend(folder: Path, model: str, *layers: tuple[int, int]) -> TinyBackend:
    return TinyBackend(folder, TinyManifest(model), state=swarm_of(*(layers or ((0, 2),))), script=f"I am {model}.")


@asynccontextmanager
async def serving(first: TinyBackend, *others: TinyBackend, **options: Any) -> AsyncIterator[Served]:
    config = GatewayConfig(default_temperature=0.0, **options)
    async with gateway(first, config, fake_verify, "127.0.0.1", 0, others=others) as (host, port):
        url = f"http://{host}:{port}"
        async with (
            aiohttp.ClientSession(url) as http,
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=60) as client,
        ):
            yield Served(url, first, http, client)


async def post(served: Served, path: str, body: dict[str, Any]) -> Any:
    async with served.http.post(path, json=body) as answer:
        return await answer.json()


async def listed(served: Served) -> list[str]:
    return [model.id async for model in served.openai.models.list()]


async def said(served: Served, model: str | None) -> str:
    body = {**ASK, "max_tokens": 20, **({} if model is None else {"model": model})}
    answer = await post(served, "/v1/chat/completions", body)
    return str(answer["choices"][0]["message"]["content"])


async def test_a_request_goes_to_the_model_that_it_names(tmp_path: Path) -> None:
    small, large = backend(tmp_path, "small"), backend(tmp_path, "large")
    async with serving(small, large, aliases=(("gpt-4o", "large"),)) as served:
        assert await listed(served) == ["small", "large", "gpt-4o"]
        for asked, answers in (("small", "small"), ("large", "large"), ("gpt-4o", "large"), (None, "small")):
            assert await said(served, asked) == f"I am {answers}."
        with pytest.raises(openai.NotFoundError, match="serves 'small', 'large', 'gpt-4o'"):
            await served.openai.chat.completions.create(model="other", messages=[{"role": "user", "content": "hi"}])
        one = await served.openai.models.retrieve("gpt-4o")
        assert one.id == "large"
        for wrong in (7, ["large"], {}):
            answer = await post(served, "/v1/chat/completions", {**ASK, "model": wrong})
            assert answer["error"]["param"] == "model"
        assert (await post(served, "/v1/chat/completions", [1]))["error"]["type"] == "invalid_request_error"  # type: ignore[arg-type]


async def test_every_api_finds_its_model(tmp_path: Path) -> None:
    small, large = backend(tmp_path, "small"), backend(tmp_path, "large")
    async with serving(small, large, aliases=(("claude-x", "large"),)) as served:
        tags = await (await served.http.get("/api/tags")).json()
        assert [entry["name"] for entry in tags["models"]] == ["small", "large"]
        chat = await post(served, "/api/chat", {**ASK, "model": f"large{TAG}", "stream": False})
        assert chat["message"]["content"].startswith("I am large"), chat
        assert (await post(served, "/api/show", {"name": "large"}))["model_info"]["wanswarm.block_count"] == 2
        message = await post(served, "/v1/messages", {**ASK, "model": "claude-x", "max_tokens": 30})
        assert message["content"][0]["text"] == "I am large." and message["model"] == "large"
        first = await post(served, "/v1/responses", {"model": "large", "input": "hi"})
        again = {"model": "small", "input": "hi", "previous_response_id": first["id"]}
        assert (await post(served, "/v1/responses", again))["output"][0]["content"][0]["text"] == "I am small."
        assert (await served.http.get(f"/v1/responses/{first['id']}")).status == 200
        text = await post(served, "/v1/completions", {"model": "large", "prompt": "x", "max_tokens": 20})
        assert text["choices"][0]["text"] == "I am large."
        assert (await post(served, "/tokenize", {"model": "large", "prompt": "hi"}))["count"] == 2
        assert (await post(served, "/tokenize", {"model": "none", "prompt": "hi"}))["error"][
            "code"
        ] == "model_not_found"


async def test_a_model_that_loses_layers_leaves_the_list_and_comes_back(tmp_path: Path) -> None:
    small, large = backend(tmp_path, "small"), backend(tmp_path, "large", (0, 1), (1, 2))
    async with serving(small, large, aliases=(("big", "large"),)) as served:
        assert await listed(served) == ["small", "large", "big"]
        large.state = swarm_of((0, 1))
        assert await listed(served) == ["small"]
        entry = await (await served.http.get("/v1/models/large")).json()
        assert entry["state"] == "forming"
        large.state = swarm_of((0, 2))
        assert await listed(served) == ["small", "large", "big"]
    async with serving(backend(tmp_path, "only", (0, 1))) as served:
        assert await listed(served) == ["only"]


async def test_of_two_swarms_for_one_model_the_one_that_serves_and_has_time_answers(tmp_path: Path) -> None:
    here, there = backend(tmp_path, "same"), backend(tmp_path, "same")
    async with serving(here, there) as served:
        here.gate = there.gate = asyncio.Event()
        asked = [asyncio.create_task(said(served, "same")) for _ in range(4)]
        await here.until(2)
        await there.until(2)
        here.gate.set()
        await asyncio.gather(*asked)
        here.state = swarm_of((0, 1))
        await asyncio.sleep(LOOK_S)  # it is not looked at oftener
        for _ in range(3):
            await said(served, None)
        assert len(here.requests) == 2 and len(there.requests) == 5
        assert await listed(served) == ["same"]


async def test_each_model_has_places_of_its_own(tmp_path: Path) -> None:
    small, large = backend(tmp_path, "small"), backend(tmp_path, "large")
    async with serving(small, large, max_running=4, max_running_of=(("large", 1),)) as served:
        small.gate = large.gate = asyncio.Event()
        asked = [asyncio.create_task(said(served, name)) for name in ("small", "large") for _ in range(3)]
        await small.until(3)
        await large.until(1)
        shown = await served.state(lambda state: state["waiting"] == 2, "large")
        assert shown["models"] == ["small", "large"] and shown["model"] == "large"
        assert (await (await served.http.get("/api/state")).json())["waiting"] == 0
        metrics = await (await served.http.get("/metrics")).text()
        assert 'wanswarm_requests_waiting{model="large"} 2.0' in metrics
        assert 'wanswarm_runs_active{model="small"} 3.0' in metrics
        small.gate.set()
        await asyncio.gather(*asked)
        assert large.most_open == 1


async def test_names_that_mean_nothing_are_refused_at_the_start(tmp_path: Path) -> None:
    small = backend(tmp_path, "small")
    for options, words in (
        ({"aliases": (("x", "none"),)}, "the alias 'x' to mean a model that is served here"),
        ({"aliases": (("small", "small"),)}, "'small' to mean one model"),
        ({"alias_prompts": (("none", "Be brief."),)}, "a prompt of an alias"),
        ({"max_running_of": (("none", 2),)}, "a limit for a model that is served here"),
    ):
        with pytest.raises(UsageError, match=words):
            async with serving(small, **options):
                pass


def test_where_no_open_swarm_is_heard_the_option_that_opens_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from swarm.cli.main import build_parser

    async def nobody() -> tuple[bytes, ...]:
        return ()

    monkeypatch.setattr(bootstrap, "open_lan_swarms", nobody)
    with pytest.raises(UsageError, match="start one with swarm join --open, or give --swarm INVITE"):
        members_of(build_parser().parse_args(["serve", "--swarm", "lan"]))
    assert build_parser().parse_args(["join", "--open"]).open is True


def test_options_for_names_and_limits() -> None:
    from swarm.cli.main import build_parser

    assert alias("gpt-4o=org/model") == ("gpt-4o", "org/model")
    assert runs_at_once("3") == ("", 3) and runs_at_once("a=b=3") == ("a=b", 3)
    here = [(ANN.id, [("198.51.100.4", 7000)])]
    first, second = (make_invite(MEMBERSHIP, MODEL, name, here, NOW, 60).text() for name in ("one", "two"))
    words = ["serve", "--swarm", first, "--swarm", second]
    words += ["--max-running", "2", "--max-running", "m=5", "--alias", "x=m"]
    arguments = build_parser().parse_args(words)
    assert [member.invite for member in members_of(arguments)] == [first, second]
    with pytest.raises(UsageError, match="found both"):
        members_of(build_parser().parse_args(["serve", "--swarm", "lan", "--no-lan"]))


async def test_an_alias_with_a_prompt_begins_every_chat_with_it(tmp_path: Path) -> None:
    file = tmp_path / "guide.txt"
    file.write_text("Guide us.\n")
    assert alias_prompt(f"guide={file}") == ("guide", "Guide us.")
    for words in ("guide", f"guide={tmp_path / 'none'}", f"={file}"):
        with pytest.raises(UsageError):
            alias_prompt(words)
    small = backend(tmp_path, "small")
    aliases, prompts = (("guide", "small"), ("other", "small")), (alias_prompt(f"guide={file}"),)
    hello: list[Any] = [{"role": "user", "content": "hi"}]
    brief: list[Any] = [{"role": "system", "content": "Be brief."}, *hello]
    both = [{"role": "system", "content": "Guide us.\n\nBe brief."}, *hello]
    async with serving(small, aliases=aliases, alias_prompts=prompts) as served:
        for path, body, told in (
            (
                "/v1/chat/completions",
                {"model": "guide", "messages": hello},
                [{**both[0], "content": "Guide us."}, *hello],
            ),
            ("/v1/chat/completions", {"model": "guide", "messages": brief}, both),
            ("/v1/responses", {"model": "guide", "instructions": "Be brief.", "input": "hi"}, both),
            ("/v1/messages", {"model": "guide", "system": "Be brief.", "messages": hello}, both),
            ("/api/chat", {"model": "guide:latest", "messages": brief, "stream": False}, both),
            ("/v1/chat/completions", {"model": "other", "messages": brief}, brief),
            ("/v1/chat/completions", {"model": "small", "messages": brief}, brief),
        ):
            async with served.http.post(path, json={**body, "max_tokens": 2}) as answer:
                assert answer.status == 200, await answer.text()
            run = small.requests[-1]
            assert tuple(run.prompt_ids) == tuple(small.encode_chat(told)), path
            begun = small.encode_chat([{"role": "system", "content": "Guide us."}])
            assert run.public == 0 if told is brief else 0 < run.public <= len(begun) + len("<|im_start|>user"), path
        counted = {"model": "guide", "messages": brief}
        async with served.http.post("/v1/messages/count_tokens", json={**counted, "messages": hello}) as answer:
            told = [{"role": "system", "content": "Guide us."}, *hello]
            assert (await answer.json())["input_tokens"] == len(small.encode_chat(told))
        async with served.http.post("/tokenize", json=counted) as answer:
            assert (await answer.json())["count"] == len(small.encode_chat(both))

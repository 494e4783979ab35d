"""The gateway over a real ring: two `swarm join` processes, a requester here, the OpenAI client, receipts checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel, Field

from receipts.check.verify import verify
from swarm.base.config import MemberConfig
from swarm.base.errors import CoverageError
from swarm.client.client import Requester, RequesterConfig
from swarm.client.route_policy import RouteRules
from swarm.run.api import RunRequest
from swarm.serve.config import GatewayConfig
from swarm.serve.gateway import gateway
from swarm.serve.keys import ApiKey
from swarm.testbed.cluster import LocalRing, LocalSwarm, local_ring
from tests.swarm.serve.conftest import Served
from tests.swarm.serve.tiny import TinyBackend, tiny_model, tiny_tokenizer
from tests.warm import warm

pytestmark = pytest.mark.asyncio(loop_scope="module")
HELLO = [{"role": "user", "content": "hello"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ring(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalRing]:
    model = tmp_path_factory.mktemp("model") / "tiny"
    whole = tiny_model(258)
    whole.config.eos_token_id = whole.generation_config.eos_token_id = tiny_tokenizer().eos_token_id
    whole.save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    swarm = LocalSwarm(
        tmp_path_factory.mktemp("swarm"),
        model=str(model),
        arguments=("--cpu", "--threads", "1", "--dtype", "float32"),
        command=warm(),
    )
    async with local_ring(swarm, [(0, 1), (1, 2)]) as running:
        yield running


@asynccontextmanager
async def asking(ring: LocalRing, state: Path, keep_s: float = 0.0, **options: Any) -> AsyncIterator[Served]:
    member = MemberConfig(state, state / "models", ring.invite, lan=False)
    config = replace(GatewayConfig(default_temperature=0.0), patience_s=5.0, **options)
    async with (
        await Requester.connect(RequesterConfig(member, draft="suffix", keep_s=keep_s)) as requester,
        gateway(requester, config, lambda data: verify(data).as_json(), "127.0.0.1", 0) as (host, port),
        aiohttp.ClientSession(f"http://{host}:{port}") as http,
        AsyncOpenAI(base_url=f"http://{host}:{port}/v1", api_key="unused", max_retries=0, timeout=60) as client,
    ):
        yield Served(f"http://{host}:{port}", requester, http, client)  # type: ignore[arg-type]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(ring: LocalRing, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with asking(ring, tmp_path_factory.mktemp("requester")) as running:
        yield running


@asynccontextmanager
async def alone(folder: Path) -> AsyncIterator[AsyncOpenAI]:
    """The same model, whole, in this process."""
    async with (
        gateway(TinyBackend(folder), GatewayConfig(), lambda data: {}, "127.0.0.1", 0) as (host, port),
        AsyncOpenAI(base_url=f"http://{host}:{port}/v1", api_key="unused") as client,
    ):
        yield client


@pytest.mark.parametrize("temperature", [0.0, 0.9])
async def test_the_ring_says_what_one_machine_says(served: Served, tmp_path: Path, temperature: float) -> None:
    ask = {"messages": HELLO, "max_tokens": 30, "temperature": temperature, "seed": 5}
    async with alone(tmp_path) as client:
        expected = await client.chat.completions.create(model="tiny-random", **ask)
    answer = await served.openai.chat.completions.create(model=served.model, **ask)
    assert answer.choices[0].message.content == expected.choices[0].message.content
    assert answer.choices[0].finish_reason == expected.choices[0].finish_reason
    assert answer.usage is not None and expected.usage is not None
    assert answer.usage.total_tokens == expected.usage.total_tokens
    stream = await served.openai.chat.completions.create(model=served.model, **ask, stream=True)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == expected.choices[0].message.content


async def test_logprobs_come_round_the_ring(served: Served) -> None:
    answer = await served.openai.chat.completions.create(
        model=served.model, messages=HELLO, max_tokens=6, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert len(logprobs.content) == 6
    for entry in logprobs.content:
        assert len(entry.top_logprobs) == 2 and entry.logprob == pytest.approx(entry.top_logprobs[0].logprob)


class Person(BaseModel):
    name: str = Field(pattern="^[A-Z][a-z]{1,6}$")
    age: int = Field(ge=0, le=130)


async def test_an_answer_of_a_given_form_comes_round_the_ring(served: Served) -> None:
    ask: dict[str, Any] = {"messages": HELLO, "model": served.model, "max_tokens": 90}
    told = await served.openai.chat.completions.parse(**ask, response_format=Person)
    person = told.choices[0].message.parsed
    assert person is not None and 0 <= person.age <= 130
    run = told.model_extra["wanswarm"]["runs"][0] if told.model_extra else {}
    assert run["held_to"] == "json_schema" and run["passes"] < run["tokens_per_pass"] * run["passes"]
    async with served.http.get(run["receipt"]) as receipt:
        verdict = verify(await receipt.read())
        assert verdict.exit_code == 0 and verdict.run is not None and verdict.run.order.held_to is not None
    plain = await served.openai.chat.completions.parse(
        **ask, response_format=Person, extra_body={"speculation": "plain"}
    )
    assert plain.choices[0].message.parsed == person


async def test_an_answer_leaves_a_receipt_that_verifies(served: Served) -> None:
    raw = await served.openai.chat.completions.with_raw_response.create(
        model=served.model, messages=HELLO, max_tokens=8
    )
    async with served.http.get(raw.headers["x-receipt"]) as receipt:
        verdict = verify(await receipt.read())
        assert receipt.status == 200 and verdict.exit_code == 0
    async with served.http.get(raw.headers["x-receipt"].replace("/v1/receipts/", "/api/verify/")) as answer:
        told = await answer.json()
        assert told["level"] == 1 and {"proven", "co-signed", "claimed"} <= {c["standing"] for c in told["claims"]}


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_whose_receipt_cannot_be_written_comes_and_says_so(
    ring: LocalRing, tmp_path: Path, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    async with asking(ring, tmp_path) as served:
        (tmp_path / "receipts").write_text("where the folder of receipts should be")
        body = {"messages": HELLO, "max_tokens": 3, "stream": stream, "ignore_eos": True}
        async with served.http.post("/v1/chat/completions", json=body) as answer:
            text = await answer.text()
        assert answer.status == 200 and ("x-receipt" in answer.headers) == stream  # said before it was known
        told = json.loads(text.split("data: ")[-2]) if stream else json.loads(text)
        facts = told["wanswarm"] if stream else told["wanswarm"]["runs"][0]
        assert facts["receipt"] is None and facts["receipt_unwritten"] is True
        assert str(tmp_path) not in text and f"cannot write the receipt {tmp_path}" in caplog.text


async def test_the_state_shows_the_ring_and_its_paths(served: Served, ring: LocalRing) -> None:
    state = await served.state(lambda state: bool(state["runs"]))
    assert state["phase"] == "serving" and {node["id"] for node in state["nodes"]} == {node.id for node in ring.nodes}
    assert [stage["layers"] for stage in state["runs"][0]["ring"]] == [[0, 1], [1, 2]]
    assert any(edge["rtt_ms"] > 0 for edge in state["edges"])


async def test_leaving_frees_the_stages(served: Served) -> None:
    stream = await served.openai.chat.completions.create(
        model=served.model, messages=HELLO, max_tokens=200, stream=True, extra_body={"ignore_eos": True}
    )
    await anext(aiter(stream))
    await stream.close()
    await served.state(lambda state: state["runs"][0]["state"] == "cancelled")
    await served.state(lambda state: all(node["sessions"] == 0 for node in state["nodes"]))


async def test_every_node_shows_the_swarm_on_its_own_port(served: Served, ring: LocalRing) -> None:
    async with aiohttp.ClientSession() as http:
        for node in ring.nodes:
            async with http.get(f"http://{node.ready['listen']}/api/state") as answer:
                state = await answer.json()
                assert state["role"] == "node" and state["here"] == node.id and state["phase"] == "serving"


async def scrape(http: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """Every sample of a real scrape, by name and labels."""
    async with http.get(f"{url}/metrics") as answer:
        assert answer.status == 200 and answer.content_type == "text/plain"
        families = text_string_to_metric_families(await answer.text())
    found: dict[str, float] = {}
    for sample in (sample for family in families for sample in family.samples):
        labels = ",".join(sample.labels[key] for key in sorted(sample.labels))
        found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


async def test_gateway_and_nodes_count_the_same_run(served: Served, ring: LocalRing) -> None:
    urls = [f"http://{node.ready['listen']}" for node in ring.nodes]
    before = [await scrape(served.http, url) for url in (served.url, *urls)]
    raw = await served.openai.chat.completions.create(
        model=served.model, messages=HELLO, max_tokens=9, extra_body={"ignore_eos": True}
    )
    after = [await scrape(served.http, url) for url in (served.url, *urls)]
    gateway, head, tail = (
        {name: now - then.get(name, 0.0) for name, now in new.items()} for new, then in zip(after, before, strict=True)
    )
    assert raw.usage is not None
    assert gateway["wanswarm_tokens_total{generated}"] == 9
    assert gateway["wanswarm_tokens_total{prompt}"] == raw.usage.prompt_tokens
    assert gateway["wanswarm_runs_total{length}"] == 1 and gateway["wanswarm_recoveries_total"] == 0
    passes, rows = gateway["wanswarm_passes_total"], gateway["wanswarm_rows_sent_total"]
    # Frames that were still under way when the answer was complete are not computed everywhere.
    for node in (head, tail):
        assert node["wanswarm_stage_runs_total"] == 1 and node["wanswarm_stage_recoveries_total"] == 0
        assert 0 < node["wanswarm_stage_passes_total"] <= passes
        assert raw.usage.prompt_tokens <= node["wanswarm_stage_rows_total"] <= rows
        assert 0 < node["wanswarm_stage_forwards_total"] <= node["wanswarm_stage_passes_total"]
        assert node["wanswarm_stage_part_seconds_total{compute}"] > 0
    assert head["wanswarm_stage_tokens_total"] == 0 and tail["wanswarm_stage_tokens_total"] >= 9
    parts = {name: gateway[f"wanswarm_pass_part_seconds_total{{{name}}}"] for name in ("queue", "compute", "network")}
    assert parts["compute"] > 0 and parts["network"] > 0
    for seen in after:
        assert {name.split("{")[0] for name in seen} >= {
            "wanswarm_node_kv_used_bytes", "wanswarm_node_kv_budget_bytes", "wanswarm_node_sessions",
            "wanswarm_edge_rtt_seconds", "wanswarm_rows_in_flight", "wanswarm_node_layer_seconds",
        }  # fmt: skip


@pytest.mark.parametrize(
    ("sharing", "other", "again"), [("off", False, False), ("user", False, True), ("shared", True, True)]
)
async def test_what_one_user_asked_shows_to_another_only_when_shared(
    ring: LocalRing, tmp_path: Path, sharing: str, other: bool, again: bool
) -> None:
    keys = tuple(ApiKey(name, hashlib.sha256(name.encode()).digest()) for name in ("ann", "bob"))
    async with asking(ring, tmp_path, keep_s=60.0, api_keys=keys, prefix_cache=sharing) as served:
        asked = [{"role": "user", "content": "what shall we do about the thing that nobody knows of"}]
        cached = []
        for name in ("ann", "bob", "ann"):
            client = served.openai.with_options(api_key=name)
            answer = await client.chat.completions.create(model=served.model, messages=asked, max_tokens=2)
            assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
            cached.append(answer.usage.prompt_tokens_details.cached_tokens or 0)
    assert [bool(count) for count in cached] == [False, other, again]


async def test_of_an_alias_its_prompt_alone_is_shared(ring: LocalRing, tmp_path: Path) -> None:
    """Who asks for an alias profits from others that do, by its prompt and not by a word that they said, however he
    guesses; of what has no alias' prompt he learns nothing."""
    keys = tuple(ApiKey(name, hashlib.sha256(name.encode()).digest()) for name in ("ann", "bob", "cyd", "dan"))
    prompt = "You are the guide of a museum of rivers and their bridges."
    options: dict[str, Any] = {"aliases": (("guide", "tiny"),), "alias_prompts": (("guide", prompt),)}
    async with asking(ring, tmp_path, keep_s=60.0, api_keys=keys, **options) as served:
        own = {"role": "user", "content": "my secret is the number four thousand and nine, keep it well"}
        begun = served.backend.encode_chat([{"role": "system", "content": prompt}])

        async def cached(name: str, messages: Any, model: str = "guide") -> int:
            client = served.openai.with_options(api_key=name)
            answer = await client.chat.completions.create(model=model, messages=messages, max_tokens=2)
            assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
            return answer.usage.prompt_tokens_details.cached_tokens or 0

        assert await cached("ann", [own]) == 0
        shared = await cached("bob", [own])
        assert 32 <= shared <= len(begun) + len("<|im_start|>user")
        assert await cached("cyd", [{"role": "user", "content": "what is to be seen?"}]) == shared
        assert await cached("ann", [own]) > shared
        told = [{"role": "system", "content": prompt}, own]
        assert await cached("dan", told, "tiny") == 0  # the alias was not asked for
        assert await cached("bob", [{"role": "system", "content": "Be brief."}, own]) <= shared


async def test_the_next_turn_begins_where_the_last_one_ended(ring: LocalRing, tmp_path: Path) -> None:
    async with asking(ring, tmp_path / "keeping", keep_s=60.0) as served, alone(tmp_path) as client:
        asked = [{"role": "user", "content": "tell me of rivers, and slowly"}]
        ask = {"messages": asked, "max_tokens": 20, "temperature": 0.9, "seed": 5}
        first = await served.openai.chat.completions.create(model=served.model, **ask)
        said = first.choices[0].message.content
        ask["messages"] = [*asked, {"role": "assistant", "content": said}, {"role": "user", "content": "more"}]
        second = await served.openai.chat.completions.create(model=served.model, **ask)
        expected = await client.chat.completions.create(model="tiny-random", **ask)
        assert second.choices[0].message.content == expected.choices[0].message.content
        assert second.usage is not None and second.usage.prompt_tokens_details is not None
        assert (second.usage.prompt_tokens_details.cached_tokens or 0) >= len(served.backend.encode_chat(asked))


async def test_a_request_that_may_pass_through_nobody_is_refused_in_words(ring: LocalRing, tmp_path: Path) -> None:
    member = MemberConfig(tmp_path, tmp_path / "models", ring.invite, lan=False)
    config = RequesterConfig(member, draft="none", rules=RouteRules(exclude=(ring.nodes[0].id[:8],)))
    for rules, says in (
        (config.rules, "layer 0 is held only by nodes that this request"),
        (RouteRules(only=frozenset({ring.nodes[0].id})), "layer 1 is held only by nodes that this request"),
        (RouteRules(owners=3), "no route passes through 3 different owners; the 2 usable nodes"),
    ):
        async with await Requester.connect(replace(config, rules=rules, await_news=False)) as requester:
            while len(requester.gossip.members()) < 2:
                await requester.gossip.wait_change()
            with pytest.raises(CoverageError, match=says):
                async with aclosing(requester.run(RunRequest((1, 2), 4, patience_s=0.0))) as events:
                    await anext(events)


async def test_a_request_keeps_to_the_nodes_that_it_trusts(ring: LocalRing, tmp_path: Path) -> None:
    member = MemberConfig(tmp_path, tmp_path / "models", ring.invite, lan=False)
    rules = RouteRules(only=frozenset(node.id for node in ring.nodes), owners=2)
    async with await Requester.connect(RequesterConfig(member, draft="none", rules=rules)) as requester:
        async with aclosing(requester.run(RunRequest((1, 2), 4))) as events:
            assert [event async for event in events][-1].result.new_tokens == 4


async def test_a_swarm_that_lost_layers_is_503(served: Served, ring: LocalRing) -> None:
    """The last test here: it kills a node."""
    ring.nodes[1].child.process.kill()
    await served.state(lambda state: state["phase"] == "forming" and state["missing"] == [[1, 2]])
    async with served.http.post("/generate", json={"prompt": "hello", "max_tokens": 4}) as answer:
        error = (await answer.json())["error"]
        assert answer.status == 503 and int(answer.headers["Retry-After"]) >= 1
        assert error["code"] in ("swarm_incomplete", "run_failed")

"""Answers that outlive their connection, over HTTP: read on from an event, stopped, kept from others."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import aiohttp

from swarm.serve.keys import ApiKey
from tests.swarm.serve import scenes
from tests.swarm.serve.conftest import Serve, Served
from tests.swarm.serve.tiny import TinyBackend

NAME = "0123456789abcdef"
ASKED = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 8, "stream": True}


async def read(answer: aiohttp.ClientResponse) -> tuple[list[int], str]:
    """Numbers of the events, and the text that they tell."""
    numbers, text = [], ""
    async with asyncio.timeout(20):
        async for line in answer.content:
            if line.startswith(b"id: "):
                numbers.append(int(line[4:]))
            elif line.startswith(b"data: {"):
                for choice in json.loads(line[6:]).get("choices", ()):
                    text += choice["delta"].get("content") or ""
    return numbers, text


async def begin(served: Served, name: str = NAME, **more: Any) -> aiohttp.ClientResponse:
    return await served.http.post(f"/api/answers/{name}", json={"model": served.model, **ASKED, **more})


async def test_it_is_read_on_from_any_event(served: Served) -> None:
    async with await begin(served) as asked:
        numbers, text = await read(asked)
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > 4 and text
    async with served.http.get(f"/api/answers/{NAME}?after=3") as later:
        rest, said = await read(later)
    assert rest == numbers[3:] and text.endswith(said)


async def test_it_goes_on_when_whoever_asked_has_gone(served: Served, backend: TinyBackend) -> None:
    gate = backend.gate = asyncio.Event()
    asked = await begin(served)
    asked.close()
    await backend.until(runs=1)
    gate.set()
    async with served.http.get(f"/api/answers/{NAME}") as later:
        numbers, text = await read(later)
    assert numbers and text and backend.cancelled == 0


async def test_it_is_stopped_when_told_to(served: Served, backend: TinyBackend) -> None:
    backend.gate = asyncio.Event()
    async with await begin(served) as asked:
        await backend.until(runs=1)
        async with served.http.delete(f"/api/answers/{NAME}") as stopped:
            assert (await stopped.json())["stopped"] is True
        await backend.until(runs=0)
        assert b"this answer was stopped" in await asked.read()


async def test_what_is_wrong_is_said(served: Served) -> None:
    for name, status in (("short", 400), ("../../etc/passwd000", 404)):
        async with await begin(served, name) as refused:
            assert refused.status == status
    async with await begin(served, stream=False) as whole:
        assert whole.status == 400
    async with await begin(served, temperature=99) as bad:
        assert bad.status == 400
    async with await begin(served) as first:
        await read(first)
    async with await begin(served) as again:
        assert again.status == 409
    async with served.http.get(f"/api/answers/{NAME}?after=x") as bad:
        assert bad.status == 400


async def test_it_is_told_to_the_same_key_alone(serve: Serve) -> None:
    keys = tuple(ApiKey(name, hashlib.sha256(name.encode()).digest()) for name in ("ann", "ben"))
    async with serve(key="ann", api_keys=keys) as served:
        url = f"/api/answers/{NAME}"
        ann, ben = ({"Authorization": f"Bearer {name}"} for name in ("ann", "ben"))
        async with served.http.post(url, json={"model": served.model, **ASKED}, headers=ann) as asked:
            await read(asked)
        for method in ("GET", "DELETE"):
            async with served.http.request(method, url, headers=ben) as refused:
                assert refused.status == 404
        async with served.http.get(url, headers=ann) as own:
            assert own.status == 200


async def test_the_oldest_that_are_over_make_room(served: Served, backend: TinyBackend, monkeypatch: Any) -> None:
    monkeypatch.setattr("swarm.serve.lasting.KEPT", 2)
    names = [f"{number:016d}" for number in range(3)]
    for name in names:
        async with await begin(served, name) as asked:
            await read(asked)
    statuses = []
    for name in names:
        async with served.http.get(f"/api/answers/{name}") as found:
            statuses.append(found.status)
    assert statuses == [404, 200, 200]


async def test_a_run_says_which_request_it_answers(served: Served, backend: TinyBackend) -> None:
    headers = {"x-request-id": "page-1"}
    async with served.http.post(
        "/v1/chat/completions", json={"model": served.model, **ASKED}, headers=headers
    ) as asked:
        await asked.read()
    state = await served.state(lambda state: bool(state["runs"]))
    assert state["runs"][0]["request"] == "page-1"


async def test_the_memory_that_is_missing_is_what_errors_say(serve: Serve, backend: TinyBackend) -> None:
    backend.state = scenes.swarm(scenes.node(0, 0, 1))
    asked: list[Any] = []
    backend.memory_for = lambda holes: asked.append(holes) or 123_000_000  # type: ignore[attr-defined]
    async with serve() as served:
        state = await served.state(lambda state: state["phase"] == "forming")
    assert state["missing_bytes"] == 123_000_000 and asked[0] == ((1, 2),)


async def test_it_is_stopped_when_nobody_follows_it_for_a_while(
    served: Served, backend: TinyBackend, monkeypatch: Any
) -> None:
    monkeypatch.setattr("swarm.serve.lasting.ALONE_S", 0.05)
    backend.gate = asyncio.Event()
    (await begin(served)).close()
    await backend.until(runs=1)
    await backend.until(runs=0)
    assert backend.cancelled == 1


async def test_whoever_comes_back_in_time_keeps_it(served: Served, backend: TinyBackend, monkeypatch: Any) -> None:
    """The wait begins anew with each one who leaves: an earlier one's does not end it early."""
    waits: list[asyncio.TimerHandle] = []
    left: asyncio.Queue[None] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    later = loop.call_later

    def noted(delay: float, *rest: Any, **more: Any) -> asyncio.TimerHandle:
        handle = later(delay, *rest, **more)
        if delay == 47.0:
            waits.append(handle)
            left.put_nowait(None)
        return handle

    monkeypatch.setattr("swarm.serve.lasting.ALONE_S", 47.0)
    monkeypatch.setattr(loop, "call_later", noted)
    gate = backend.gate = asyncio.Event()
    (await begin(served)).close()
    await backend.until(runs=1)
    async with asyncio.timeout(20):
        await left.get()
        for before in range(2):
            (await served.http.get(f"/api/answers/{NAME}")).close()
            await left.get()
            assert waits[before].cancelled()
    gate.set()
    async with served.http.get(f"/api/answers/{NAME}") as last:
        numbers, _ = await read(last)
    assert numbers and waits[-1].cancelled() and backend.cancelled == 0


async def test_a_page_that_names_no_temperature_gets_the_makers_or_none(serve: Serve, backend: TinyBackend) -> None:
    async with serve(default_temperature=None) as served, await begin(served) as asked:
        await read(asked)
    assert backend.requests[-1].sampling.temperature == 0.0
    backend.generation_defaults = {"temperature": 0.7, "top_p": 0.8}  # type: ignore[attr-defined]
    async with serve(default_temperature=None) as served:
        for name, more in (("b" * 16, {}), ("c" * 16, {"temperature": 0.3})):
            async with await begin(served, name, **more) as asked:
                await read(asked)
    own, named = (request.sampling for request in backend.requests[-2:])
    assert (own.temperature, own.top_p, named.temperature) == (0.7, 0.8, 0.3)

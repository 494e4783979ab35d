"""Limits of API keys: counted rightly whatever is asked and however it ends, and told to whoever asks."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from swarm.base.errors import UsageError
from swarm.serve.access_log import AccessLog
from swarm.serve.allowance import Allowances, Wanted
from swarm.serve.errors import ApiError
from swarm.serve.keys import ApiKey, KeyLimits, load_keys
from tests.swarm.serve.conftest import Serve

SECRET = "ann-0123456789abcdef"
ASK = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "temperature": 0}
EVENTS = st.lists(
    st.tuples(
        st.floats(0, 20_000),  # seconds until then
        st.lists(st.builds(Wanted, st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=3),
        st.one_of(st.none(), st.floats(0, 1)),  # share of the answer that came; None: nothing
        st.integers(0, 3),  # how many of those under way end first
    ),
    max_size=40,
)


def key(**limits: int) -> ApiKey:
    return ApiKey("ann", hashlib.sha256(SECRET.encode()).digest(), KeyLimits(**limits))


@given(EVENTS, st.integers(1, 5), st.integers(50, 400), st.integers(1, 6))
def test_no_limit_is_overrun_and_nothing_is_refused_without_need(
    events: list[tuple[float, list[Wanted], float | None, int]], requests: int, tokens: int, at_once: int
) -> None:
    allowances = Allowances([key(requests_per_minute=requests, tokens_per_day=tokens, at_once=at_once)])
    now, begun, under_way, spent = 0.0, [], [], []
    for wait, runs, share, ending in events:
        now += wait
        for run, part in under_way[:ending]:
            got = None if part is None else round(part * run.most)
            allowances.end("ann", run, got, now)
            if got is not None:
                spent.append((now, run.prompt + got))
        del under_way[:ending]
        day = sum(count for at, count in spent if at > now - 86_400) + sum(r.prompt + r.most for r, _ in under_way)
        day_at_most = sum(c for at, c in spent if at > now - 90_000) + sum(r.prompt + r.most for r, _ in under_way)
        asked = sum(run.prompt + run.most for run in runs)
        minute = sum(at > now - 60 for at in begun)
        try:
            allowances.begin("ann", runs, now)
        except ApiError as error:
            assert error.status == 429 and int(error.headers()["Retry-After"]) >= 1
            assert len(under_way) + len(runs) > at_once or minute >= requests or day_at_most + asked > tokens
            continue
        assert len(under_way) + len(runs) <= at_once and minute < requests and day + asked <= tokens + 0
        begun.append(now)
        under_way += [(run, share) for run in runs]
    account = allowances.usage("ann", now)
    assert account is not None and account["requests"] == len(begun) and account["runs_under_way"] == len(under_way)


def test_what_is_spent_comes_back() -> None:
    allowances = Allowances([key(requests_per_minute=2, tokens_per_day=100)])
    run = Wanted(10, 40)
    allowances.begin("ann", [run], 0.0)
    allowances.begin("ann", [run], 1.0)
    with pytest.raises(ApiError, match="2 times a minute; try again in 58 s"):
        allowances.begin("ann", [run], 2.0)
    with pytest.raises(ApiError, match="0 are left and 50 may be needed") as caught:
        allowances.begin("ann", [run], 70.0)
    assert caught.value.code == "insufficient_quota"
    allowances.end("ann", run, None, 71.0)
    allowances.end("ann", run, 20, 71.0)
    told = allowances.headers("ann", 71.0)
    assert told["x-ratelimit-remaining-tokens"] == "70" and told["x-ratelimit-remaining-requests"] == "2"
    assert told["x-ratelimit-reset-tokens"] == f"{24 * 3600 - 71}s"
    assert allowances.headers("ann", 86_400.0)["x-ratelimit-remaining-tokens"] == "100"
    assert allowances.usage("nobody", 0.0) is None and not allowances.headers("nobody", 0.0)
    allowances.begin("nobody", [run], 0.0)


def test_key_files_with_limits(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"ann:{SECRET} requests=60/min tokens=200000/day at-once=2 # comment\n{SECRET}x\n")
    ann, other = load_keys(path)
    assert ann.limits == KeyLimits(60, 200_000, 2) and other.limits == KeyLimits() and other.name == "key-2"
    for line, words in (
        (f"ann:{SECRET} requests=60", "behind the secret in line 1"),
        (f"ann:{SECRET} money=3/day", "found 'money=3/day'"),
        (f"ann:{SECRET} requests=60/day", "found 'requests=60/day'"),
        (f"ann:{SECRET}\nann:{SECRET}2", "one key named 'ann', found another in line 2"),
    ):
        path.write_text(line)
        with pytest.raises(UsageError, match=words):
            load_keys(path)


async def test_limits_over_http(serve: Serve, tmp_path: Path) -> None:
    log = tmp_path / "access.jsonl"
    bob = ApiKey("bob", hashlib.sha256(b"bob" * 8).digest())
    keys = (key(requests_per_minute=3, at_once=1), bob)
    mine, other = ({"Authorization": f"Bearer {secret}"} for secret in (SECRET, "bob" * 8))

    async with serve(api_keys=keys, key=SECRET, access_log=log) as served:

        async def ask(headers: dict[str, str], **more: Any) -> tuple[int, Any, Any]:
            async with served.http.post("/v1/chat/completions", json={**ASK, **more}, headers=headers) as answer:
                return answer.status, answer.headers, await answer.json()

        async def get(path: str, headers: dict[str, str]) -> Any:
            async with served.http.get(path, headers=headers) as answer:
                return await answer.json()

        served.backend.gate = asyncio.Event()
        first = asyncio.create_task(ask(mine))
        await served.backend.until(1)
        status, headers, body = await ask(mine)
        assert status == 429 and "1 runs at once" in body["error"]["message"] and headers["Retry-After"] == "1"
        assert (await ask(mine, n=2))[0] == 429
        served.backend.gate.set()
        status, headers, body = await first
        assert status == 200 and headers["x-ratelimit-remaining-requests"] == "2"
        assert [(await ask(mine))[0] for _ in range(3)] == [200, 200, 429]
        account = await get("/v1/usage", mine)
        used = body["usage"]["prompt_tokens"]
        assert account["requests"] == 3 and account["prompt_tokens"] == 3 * used and account["runs_under_way"] == 0
        status, headers, body = await ask(other)
        assert status == 200 and "x-ratelimit-limit-requests" not in headers
        runs = {name: (await get("/api/state", headers))["runs"] for name, headers in (("ann", mine), ("bob", other))}
        assert len(runs["ann"]) == 3 and len(runs["bob"]) == 1, "each sees its own runs"
        metrics = await (await served.http.get("/metrics", headers=mine)).text()
        assert 'wanswarm_key_requests_total{key="ann"} 3.0' in metrics
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    asked = [line for line in lines if line["path"] == "/v1/chat/completions"]
    assert [(line["key"], line["status"]) for line in asked].count(("ann", 429)) == 3
    assert all(line["receipt"] for line in asked if line["status"] == 200)
    assert SECRET not in log.read_text()


async def test_the_access_log_may_be_moved_away(tmp_path: Path) -> None:
    path = tmp_path / "access.jsonl"
    log = AccessLog(path)
    request = make_mocked_request("GET", "/v1/models")
    for status in (200, 404):
        log.observe(request, status, 0.0125)
        path.rename(tmp_path / f"{status}.jsonl")
    log.close()
    lines = [json.loads((tmp_path / f"{status}.jsonl").read_text()) for status in (200, 404)]
    assert [(line["path"], line["status"], line["ms"]) for line in lines] == [
        ("/v1/models", s, 12.5) for s in (200, 404)
    ]


async def test_a_gateway_without_keys_keeps_no_accounts(serve: Serve, tmp_path: Path) -> None:
    async with serve() as served:
        async with served.http.get("/v1/usage") as answer:
            assert answer.status == 404 and (await answer.json())["error"]["code"] == "no_keys"
    with pytest.raises(UsageError, match="cannot write the access log"):
        async with serve(access_log=tmp_path / "none" / "log"):
            pass

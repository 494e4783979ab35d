"""What the gateway does beside answering: errors, keys, origins, limits, receipts, metrics, live state."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from receipts.check.verify import verify
from swarm.base.errors import UsageError
from swarm.serve.config import GatewayConfig
from swarm.serve.gateway import gateway
from swarm.serve.keys import ApiKey, find_user, load_keys
from swarm.serve.listen import url_of
from tests.swarm.serve.conftest import Serve, Served
from tests.swarm.serve.tiny import TinyBackend

HELLO = [{"role": "user", "content": "hello"}]
SECRET = "0123456789abcdef"
KEYS = (ApiKey("ann", hashlib.sha256(SECRET.encode()).digest()),)


async def raw(url: str, request: bytes) -> bytes:
    """Everything that the server says to these bytes until it hangs up."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.write(request)
    async with asyncio.timeout(20):
        answer = await reader.read()
    writer.close()
    return answer


async def test_generate_is_simple(served: Served) -> None:
    async with served.http.post("/generate", json={"prompt": "Once", "max_tokens": 6}) as answer:
        body = await answer.json()
        assert answer.status == 200 and body["new_tokens"] == 6 and body["finish_reason"] == "length"
        assert body["receipt"] == answer.headers["x-receipt"]
    async with served.http.post("/generate", data=b'{"prompt": "Once", "max_tokens": 6}') as again:
        assert (await again.json())["text"] == body["text"]


async def test_completions_with_echo_logprobs_and_several_prompts(served: Served) -> None:
    both = await served.openai.completions.create(
        model=served.model, prompt=["Once", "Twice"], max_tokens=4, n=2, temperature=1.0, seed=1, echo=True
    )
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert [choice.text[:4] for choice in both.choices] == ["Once", "Once", "Twic", "Twic"]
    assert both.usage is not None and both.usage.prompt_tokens == 4 + 5 and both.usage.completion_tokens == 16
    one = await served.openai.completions.create(model=served.model, prompt="Once", max_tokens=4, logprobs=2)
    logprobs = one.choices[0].logprobs
    assert logprobs is not None and logprobs.top_logprobs is not None
    assert len(logprobs.tokens or []) == 4 and all(1 <= len(top) <= 2 for top in logprobs.top_logprobs)
    ids = served.backend.encode("Once")
    same = await served.openai.completions.create(model=served.model, prompt=list(ids), max_tokens=4)
    assert same.choices[0].text == one.choices[0].text


async def test_a_streamed_text_equals_a_whole_one(served: Served) -> None:
    ask = {"model": served.model, "prompt": "Once", "max_tokens": 20, "logprobs": 1}
    whole = (await served.openai.completions.create(**ask)).choices[0]
    chunks = [chunk async for chunk in await served.openai.completions.create(**ask, stream=True)]
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.text
    tokens = [token for chunk in chunks if (lp := chunk.choices[0].logprobs) for token in lp.tokens or []]
    assert whole.logprobs is not None and tokens == whole.logprobs.tokens


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/v1/chat/completions", b"{", 400, "invalid_json"),
        ("POST", "/v1/chat/completions", b"[1]", 400, "invalid_type"),
        ("POST", "/v1/completions", b'{"prompt": [999999]}', 400, "invalid_value"),
        ("POST", "/v1/completions", b'{"prompt": ""}', 400, "invalid_value"),
        ("GET", "/v1/chat/completions", b"", 405, "wrong_method"),
        ("GET", "/v2/models", b"", 404, "unknown_url"),
        ("GET", "/static/..%2f..%2fgateway.py", b"", 404, "unknown_url"),
        ("GET", "/v1/receipts/none", b"", 404, "receipt_not_found"),
        ("GET", "/v1/receipts/..%2f..%2fetc%2fpasswd", b"", 404, "receipt_not_found"),
        ("GET", "/api/verify/none", b"", 404, "receipt_not_found"),
    ],
)
async def test_errors_have_openais_shape(
    served: Served, method: str, path: str, body: bytes, status: int, code: str
) -> None:
    async with served.http.request(method, path, data=body) as answer:
        error = (await answer.json())["error"]
        assert answer.status == status and error["code"] == code and error["message"] and error["type"]
        assert answer.headers["x-request-id"].startswith("req_")


async def test_a_client_may_name_its_request(served: Served) -> None:
    async with served.http.get("/healthz", headers={"x-request-id": "mine-1"}) as answer:
        assert answer.headers["x-request-id"] == "mine-1"
    async with served.http.get("/healthz", headers={"x-request-id": "<script>"}) as answer:
        assert answer.headers["x-request-id"].startswith("req_")


async def test_a_foreign_page_is_kept_out(served: Served) -> None:
    for headers, status in (
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": served.url}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:80"}, 200),
        ({"Host": "["}, 403),
    ):
        async with served.http.get("/v1/models", headers=headers) as answer:
            assert answer.status == status, headers


async def test_origins_may_be_allowed(serve: Serve) -> None:
    async with serve(allow_origins=("https://app.example",)) as served:
        headers = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
        async with served.http.options("/v1/chat/completions", headers=headers) as answer:
            assert answer.status == 200
            assert "DELETE" in answer.headers["Access-Control-Allow-Methods"]
            assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"
        async with served.http.get("/v1/models", headers={"Origin": "https://app.example"}) as answer:
            assert answer.status == 200 and "x-receipt" in answer.headers["Access-Control-Expose-Headers"]
        async with served.http.get("/v1/models", headers={"Origin": "https://other.example"}) as answer:
            assert answer.status == 403


async def test_keys(serve: Serve) -> None:
    async with serve(api_keys=KEYS, key=SECRET) as served:
        answer = await served.openai.chat.completions.create(model=served.model, messages=HELLO, max_tokens=2)
        assert answer.usage is not None
        with pytest.raises(openai.AuthenticationError) as caught:
            await served.openai.with_options(api_key="wrong").models.list()
        assert caught.value.code == "invalid_api_key"
        for path, status in (
            ("/", 200),
            ("/healthz", 200),
            ("/openapi.json", 200),
            ("/api/state", 401),
            ("/metrics", 401),
            ("/v1/receipts/run1", 401),
        ):
            async with served.http.get(path) as reply:
                assert reply.status == status, path


def test_key_files(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# keys\nann:{SECRET}\n\n{SECRET[::-1]} # bob\n")
    keys = load_keys(path)
    assert [key.name for key in keys] == ["ann", "key-2"] and SECRET not in repr(keys)
    assert find_user(f"Bearer {SECRET}", keys) == "ann"
    assert find_user(f"bearer {SECRET[::-1]}", keys) == "key-2"
    assert all(
        find_user(header, keys) is None for header in (None, "", SECRET, "Bearer", "Bearer x", f"Basic {SECRET}")
    )
    for text in ("", "# nothing", "short"):
        path.write_text(text)
        with pytest.raises(UsageError):
            load_keys(path)
    with pytest.raises(UsageError, match="cannot read"):
        load_keys(tmp_path / "none")


async def test_a_huge_body_is_413_before_it_is_read(serve: Serve) -> None:
    async with serve(max_body_bytes=1000) as served:
        head = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        told = await raw(served.url, head + b"Content-Length: 99999999999\r\n\r\n")
        assert b" 413 " in told and b"body_too_large" in told
        chunk = b"400\r\n" + b"x" * 1024 + b"\r\n"
        untold = await raw(served.url, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 2)
        assert b" 413 " in untold


async def test_a_slow_body_is_408(serve: Serve) -> None:
    async with serve(body_timeout_s=0.1) as served:
        head = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 30\r\n\r\n{"
        answer = await raw(served.url, head)
        assert b" 408 " in answer and b"body_timeout" in answer


async def test_headers_that_never_end_are_hung_up_on(serve: Serve) -> None:
    async with serve(idle_timeout_s=0.1) as served:
        assert await raw(served.url, b"GET / HTTP/1.1\r\nHost: lo") == b""
        assert await raw(served.url, b"") == b""


async def test_one_connection_too_many_is_503(serve: Serve) -> None:
    async with serve(max_connections=20) as served:
        where = urlsplit(served.url)
        idle = [await asyncio.open_connection(where.hostname, where.port) for _ in range(20)]
        answer = await raw(served.url, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 503 ") and b"Retry-After" in answer
        for _, writer in idle:
            writer.close()


async def test_a_reader_that_stops_loses_its_run(serve: Serve) -> None:
    async with serve(write_timeout_s=0.2) as served:
        where = urlsplit(served.url)
        served.backend.script = "word " * 40
        served.backend.flood = 100_000
        reader, writer = await asyncio.open_connection(where.hostname, where.port, limit=1024)
        body = json.dumps({"messages": HELLO, "stream": True, "max_tokens": 200}).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
        writer.write(head + body)
        await served.backend.until(runs=1)
        await served.backend.until(runs=0)
        assert served.backend.cancelled == 1
        writer.close()


async def test_what_is_not_http_is_400(served: Served) -> None:
    assert b" 400 " in await raw(served.url, b"\x16\x03\x01\x02\x00nonsense\r\n\r\n")


async def test_receipts_of_earlier_runs_are_found_in_the_folder(served: Served) -> None:
    whole = (Path(__file__).parents[3] / "docs/receipts/three-cpu-stages.json").read_bytes()
    (served.backend.receipts_dir / "old-run.json").write_bytes(whole)
    (served.backend.receipts_dir / "broken.json").write_bytes(whole[:-5])
    async with served.http.get("/v1/receipts/old-run") as answer:
        shown = await answer.read()
    # Without keys nobody knows who asks: what was said stays behind, the signatures are there.
    assert b'{"name":"text"' in whole and b'{"name":"tokens"' in whole
    assert b'{"name":"text"' not in shown and b'{"name":"tokens"' not in shown
    assert verify(shown).exit_code == 0
    async with served.http.get("/v1/receipts/broken") as answer:
        assert answer.status == 404
    async with served.http.get("/api/verify/old-run") as answer:
        assert await answer.json() == {"bytes": len(whole)}


async def test_a_receipt_is_for_who_asked(serve: Serve) -> None:
    other = SECRET[::-1]
    keys = (*KEYS, ApiKey("bob", hashlib.sha256(other.encode()).digest()))
    async with serve(api_keys=keys, key=SECRET) as served:
        raw = await served.openai.chat.completions.with_raw_response.create(
            model=served.model, messages=HELLO, max_tokens=2
        )
        address = raw.headers["x-receipt"]
        (served.backend.receipts_dir / "earlier.json").write_text("{}")
        for path, secret, status in (
            (address, SECRET, 200),
            (address, other, 404),
            (address.replace("/v1/receipts/", "/api/verify/"), other, 200),
            ("/v1/receipts/earlier", SECRET, 404),
        ):
            async with served.http.get(path, headers={"Authorization": f"Bearer {secret}"}) as answer:
                assert answer.status == status, (path, secret)


async def test_metrics_count_what_happened(served: Served) -> None:
    await served.openai.chat.completions.create(model=served.model, messages=HELLO, max_tokens=7)
    async with served.http.get("/nowhere/<%s>" % ("x" * 50)):
        pass
    async with served.http.get("/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        families = {family.name: family for family in text_string_to_metric_families(await answer.text())}
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert samples["wanswarm_tokens_total", (("kind", "generated"),)] == 7
    assert samples["wanswarm_tokens_total", (("kind", "foreseen"),)] == 3
    assert samples["wanswarm_runs_total", (("outcome", "length"),)] == 1
    assert samples["wanswarm_passes_total", ()] == 7
    labels = (("method", "GET"), ("route", "unknown"), ("status", "404"))
    assert samples["wanswarm_http_requests_total", labels] == 1
    assert samples["wanswarm_runs_active", ()] == 0


async def test_live_state_follows_a_run(served: Served) -> None:
    served.backend.gate = asyncio.Event()
    ask = served.openai.chat.completions.create(model=served.model, messages=HELLO, max_tokens=5)
    task = asyncio.create_task(ask)
    live = await served.state(lambda state: any(run["state"] == "answering" for run in state["runs"]))
    assert [stage["layers"] for stage in live["runs"][0]["ring"]] == [[0, 1], [1, 2]]
    served.backend.gate.set()
    done = await served.state(lambda state: any(run["state"] == "done" for run in state["runs"]))
    assert done["runs"][0]["tokens"] == 5 and done["runs"][0]["receipt"]
    await task
    assert "hello" not in json.dumps(done)


async def test_rows_in_flight_come_from_the_requester(served: Served) -> None:
    served.backend.gate = asyncio.Event()
    ask = served.openai.chat.completions.create(model=served.model, messages=HELLO, max_tokens=5)
    task = asyncio.create_task(ask)
    live = await served.state(lambda state: any(run["run_id"] for run in state["runs"]))
    served.backend.flights = {live["runs"][0]["run_id"]: 12}
    assert await served.state(lambda state: state["runs"][0].get("rows_in_flight") == 12)
    async with served.http.get("/metrics") as answer:
        assert "wanswarm_rows_in_flight 12.0" in await answer.text()
    served.backend.gate.set()
    await task


async def test_every_page_has_a_policy(served: Served) -> None:
    for path in ("/", "/v1/models", "/nowhere"):
        async with served.http.get(path) as answer:
            assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
            assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_a_taken_port_is_one_clear_line(serve: Serve, served: Served) -> None:
    from swarm.serve.config import GatewayConfig
    from swarm.serve.gateway import gateway
    from tests.swarm.serve.conftest import fake_verify

    port = urlsplit(served.url).port
    assert port is not None
    with pytest.raises(UsageError, match=f"port {port}"):
        async with gateway(served.backend, GatewayConfig(), fake_verify, "127.0.0.1", port):
            pass


async def test_text_to_tokens_and_back(served: Served) -> None:
    async def post(path: str, **body: object) -> tuple[int, dict[str, Any]]:
        async with served.http.post(path, json=body) as answer:
            return answer.status, await answer.json()

    status, told = await post("/tokenize", prompt="hé", return_token_strs=True)
    assert status == 200 and told["tokens"] == list(served.backend.encode("hé")) and told["count"] == 3
    assert len(told["token_strs"]) == 3 and told["max_model_len"] == served.backend.manifest.context
    assert (await post("/tokenize", content="hé", add_special=False))[1]["tokens"] == told["tokens"]
    status, chat = await post("/tokenize", messages=HELLO)
    assert status == 200 and chat["tokens"] == list(served.backend.encode_chat(HELLO))
    status, text = await post("/detokenize", tokens=chat["tokens"])
    assert (
        status == 200 and text["content"] == text["prompt"] and "<|im_start|>user\nhello<|im_end|>" in text["content"]
    )
    assert (await post("/detokenize", tokens=[999]))[1]["error"]["param"] == "tokens"
    assert (await post("/tokenize", prompt=3))[1]["error"]["param"] == "prompt"


async def test_manners_that_clients_expect(serve: Serve) -> None:
    async with serve(api_keys=KEYS, allow_origins=("https://a.example",)) as served:
        for name in ("X-Api-Key", "Authorization"):
            secret = SECRET if name == "X-Api-Key" else f"Bearer {SECRET}"
            async with served.http.get("/v1/models", headers={name: secret}) as answer:
                assert answer.status == 200
        async with served.http.get("/v1/models", headers={"X-Api-Key": SECRET[::-1]}) as answer:
            assert answer.status == 401
        async with served.http.get("/health") as answer:
            assert answer.status == 200 and await answer.json() == {"status": "ok"}
        async with served.http.get("/v1/chat/completions", headers={"X-Api-Key": SECRET}) as answer:
            assert answer.status == 405 and answer.headers["Allow"] == "POST"
        asked = "authorization, x-stainless-os, X-Stainless-Retry-Count, x-evil"
        headers = {
            "Origin": "https://a.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": asked,
        }
        async with served.http.options("/v1/chat/completions", headers=headers) as answer:
            allowed = answer.headers["Access-Control-Allow-Headers"].split(", ")
            assert {"x-api-key", "x-stainless-os", "x-stainless-retry-count"} < set(allowed) and "x-evil" not in allowed


async def test_a_huge_body_is_not_asked_for(served: Served) -> None:
    head = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Type: application/json\r\n"
    refused = await raw(served.url, head + b"Content-Length: 1000000000\r\n\r\n")
    assert refused.startswith(b"HTTP/1.1 413 ") and b"body_too_large" in refused and b"100 Continue" not in refused
    body = b'{"prompt": "Once", "max_tokens": 2}'
    invited = await raw(served.url, head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert invited.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")


async def test_fields_that_nobody_reads_are_named_in_a_header(served: Served) -> None:
    for path in ("/generate", "/v1/completions"):
        body = {"prompt": "x", "max_tokens": 1, "temprature": 1, "a\r\nb: c": 2}
        async with served.http.post(path, json=body) as answer:
            assert answer.status == 200 and answer.headers["x-ignored-fields"] == "temprature, a??b??c"


@pytest.mark.parametrize("given", ["::", "localhost"])
async def test_all_addresses_and_this_machine_mean_both_families(backend: TinyBackend, given: str) -> None:
    async with (
        gateway(backend, GatewayConfig(), lambda data: {}, given, 0) as (host, port),
        aiohttp.ClientSession() as client,
    ):
        assert url_of(host, port) == f"http://localhost:{port}"
        for name in ("127.0.0.1", "[::1]"):
            async with client.get(f"http://{name}:{port}/healthz") as answer:
                assert answer.status == 200


def test_an_address_that_is_told_can_be_pasted() -> None:
    assert url_of("::1", 80) == "http://[::1]:80" and url_of("127.0.0.1", 8080) == "http://127.0.0.1:8080"
    assert url_of("0.0.0.0", 8080) == "http://127.0.0.1:8080"

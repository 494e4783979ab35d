"""Clients that mean harm, over real sockets: each is refused or hung up on, and others are answered meanwhile."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import socket
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.swarm.serve.conftest import Serve, Served
from tests.swarm.serve.test_load import dial, post

HELLO = [{"role": "user", "content": "hello"}]
BOUND_S = 10.0
"""Beyond this a refusal counts as none: far above what any takes, on a machine that others use too."""
POSTED = (
    "/v1/chat/completions", "/v1/completions", "/generate", "/v1/responses", "/v1/messages",
    "/v1/messages/count_tokens", "/infill", "/api/chat", "/api/generate", "/api/show", "/completion", "/tokenize",
    "/detokenize", "/apply-template",
)  # fmt: skip


async def raw(url: str, request: bytes) -> bytes:
    """All that the server says to these bytes; nothing where it hangs up on a client that goes on talking."""
    where, told = urlsplit(url), b""
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    with suppress(ConnectionError):
        writer.write(request)
        while part := await reader.read(1 << 16):
            told += part
    writer.transport.abort()
    return told


def get(target: str = "/healthz", *headers: str, version: str = "HTTP/1.1", method: str = "GET") -> bytes:
    """A request without a body whose connection ends with it."""
    lines = [f"{method} {target} {version}", "Host: localhost", "Connection: close", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def head(*lines: str, path: str = "/generate") -> bytes:
    """The head of a request with a body."""
    told = [f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close", "Content-Type: application/json", *lines]
    return ("\r\n".join(told) + "\r\n\r\n").encode()


ASK = b'{"prompt": "Once", "max_tokens": 2, "receipt": false}'
HUNG_UP = 0
UPGRADE = ("Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
WIRE: dict[str, tuple[bytes, set[int]]] = {
    "the address in full": (get("http://localhost/healthz"), {200}),
    "somebody else's address": (get("http://example.org/v1/models"), {200, 400, 403, 404}),
    "a tunnel": (get("example.org:443", method="CONNECT"), {400, 403, 404, 405}),
    "a websocket": (get("/v1/models", *UPGRADE), {200}),
    "a websocket where one posts": (get("/v1/chat/completions", *UPGRADE), {405}),
    "HTTP/2 beforehand": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400}),
    "HTTP/9": (get(version="HTTP/9.9"), {400}),
    "no version": (b"GET /healthz\r\n\r\n", {200, 400}),
    "another host": (b"GET /v1/models HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n", {403}),
    "two hosts": (get("/v1/models", "Host: example.org"), {400, 403}),
    "two lengths": (head("Content-Length: 2", "Content-Length: 3") + b"{}}", {400}),
    "a length and chunks": (head("Content-Length: 2", "Transfer-Encoding: chunked") + b"0\r\n\r\n", {400}),
    "an encoding of its own": (head("Transfer-Encoding: rot13") + b"{}", {400, 411, 501}),
    "a length below nothing": (head("Content-Length: -1"), {400}),
    "a length with a sign": (head("Content-Length: +2") + b"{}", {400}),
    "a length of 31 digits": (head("Content-Length: 1" + "0" * 30), {400}),
    "a billion bytes": (head("Content-Length: 1000000000"), {413}),
    "chunks of no number": (head("Transfer-Encoding: chunked") + b"xyz\r\n{}\r\n", {400}),
    "a chunk of 2^64": (head("Transfer-Encoding: chunked") + b"10000000000000000\r\n{}", {400}),
    "a chunk of a billion": (head("Transfer-Encoding: chunked") + b"3b9aca00\r\n" + b"x" * (5 << 20), {413}),
    "a hundred thousand chunks": (head("Transfer-Encoding: chunked") + b"1\r\n[\r\n" * 100_000 + b"0\r\n\r\n", {400}),
    "an extension of a megabyte": (
        head("Transfer-Encoding: chunked") + b"1;" + b"a" * (1 << 20) + b"\r\n{\r\n0\r\n\r\n",
        {400, HUNG_UP},
    ),
    "trailers of a megabyte": (
        head("Transfer-Encoding: chunked") + b"1\r\n{\r\n0\r\n" + b"X-A: bbbb\r\n" * 100_000 + b"\r\n",
        {400, HUNG_UP},
    ),
    "a header of a megabyte": (get("/healthz", "X-A: " + "a" * (1 << 20)), {400, HUNG_UP}),
    "a hundred thousand headers": (get("/healthz", *(f"X-{n}: 1" for n in range(100_000))), {400, HUNG_UP}),
    "a header without a colon": (get("/healthz", "X-A"), {400}),
    "a zero byte in a header": (get("/healthz", "X-A: a\0b"), {400}),
    "a space before the colon": (get("/healthz", "X-A : b"), {400}),
    "a header over two lines": (get("/healthz", "X-A: a\r\n b"), {200, 400}),
    "an address of a megabyte": (get("/" + "a" * (1 << 20)), {400, HUNG_UP}),
    "a method of a megabyte": (get(method="A" * (1 << 20)), {400, HUNG_UP}),
    "a method that is none": (get(method="B\x01"), {400}),
    "zero bytes": (b"\0" * 4096 + b"\r\n\r\n", {400}),
    "another expectation": (head("Expect: the-unexpected", "Content-Length: 2") + b"{}", {417}),
    "an unknown packing": (head("Content-Encoding: nonsense", f"Content-Length: {len(ASK)}") + ASK, {200, 400, 415}),
    "what is no gzip": (head("Content-Encoding: gzip", f"Content-Length: {len(ASK)}") + ASK, {400}),
    "a form of parts": (head("Content-Type: multipart/form-data; boundary=x", "Content-Length: 2") + b"{}", {400, 415}),
}


@pytest.mark.parametrize("name", WIRE)
async def test_what_is_odd_on_the_wire_is_refused(served: Served, name: str) -> None:
    sent, statuses = WIRE[name]
    async with asyncio.timeout(BOUND_S):
        answer = await raw(served.url, sent)
    assert (int(answer.split(b" ")[1]) if answer.startswith(b"HTTP/") else HUNG_UP) in statuses, answer[:300]
    async with served.http.get("/healthz") as after:
        assert after.status == 200


async def test_an_upgrade_that_is_not_wanted_is_answered_as_if_it_was_not_asked_for(served: Served) -> None:
    """Java's client asks for HTTP/2 with its first request, and sends the body all the same."""
    lines = ("Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAAB", f"Content-Length: {len(ASK)}")
    asked = head(*lines).replace(b"Connection: close", b"Connection: Upgrade, HTTP2-Settings, close")
    answer = await raw(served.url, asked + ASK)
    assert answer.startswith(b"HTTP/1.1 200 ") and b'"new_tokens": 2' in answer, answer[:300]


INJECTED = (
    "%0d%0aX-Injected:%201%0d%0a%0d%0a<script>",
    "%0aX-Injected:%201",
    "%00",
    "%c0%ae%c0%ae%2f",
    "%ff",
    "%e2%80%a8",
)
ADDRESSES = ("/v1/models/{}", "/v1/responses/{}", "/v1/receipts/{}", "/api/verify/{}", "/api/timeline/{}",
             "/api/recoveries/{}", "/api/answers/{}", "/static/{}", "/props?model={}", "/api/state?model={}",
             "/nowhere/{}")  # fmt: skip
CLIMBING = ("..%2f..%2f..%2fetc%2fpasswd", "../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "..%5c..%5cetc",
            "%2fetc%2fpasswd", "a" * 4000, "null", "-1", "*", "~root")  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
async def test_names_in_addresses_open_nothing_and_add_no_header(served: Served, address: str) -> None:
    for name in (*INJECTED, *CLIMBING):
        answer = await raw(served.url, get(address.format(name), f"x-request-id: {name}", f"Origin: {name}"))
        told, _, body = answer.partition(b"\r\n\r\n")
        assert 400 <= int(told.split(b" ")[1]) < 500, (name, answer[:300])
        assert b"x-injected" not in told.lower() and b"root:" not in body and b"<script>" not in told


async def test_a_request_id_of_a_client_cannot_break_a_line(served: Served) -> None:
    answer = await raw(served.url, get("/healthz", "x-request-id: a\tb<c>", "Origin: http://localhost"))
    told = answer.partition(b"\r\n\r\n")[0].lower()
    assert b"x-request-id: req_" in told, told


def deep(depth: int) -> str:
    return "[" * depth + "]" * depth


def many_tools(count: int) -> list[Any]:
    return [{"type": "function", "function": {"name": f"f{n}", "parameters": {"type": "object"}}} for n in range(count)]


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def chat(**more: Any) -> bytes:
    return json.dumps({"messages": HELLO, "max_tokens": 1, "receipt": False, **more}).encode()


TOOL = {"type": "function", "function": {"name": "f", "parameters": nested(400)}}
BODIES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[1]",
    "null": b"null",
    "not a number": b'{"temperature": NaN}',
    "no end of a number": b'{"temperature": Infinity}',
    "an exponent": b'{"temperature": 1e999}',
    "a number of 5,000 digits": b'{"seed": ' + b"9" * 5000 + b"}",
    "a fraction of a megabyte": b'{"temperature": 0.' + b"1" * (1 << 20) + b", 5}",
    "bytes of no text": b'{"prompt": "\xff\xfe"}',
    "UTF-16": '{"prompt": "x"}'.encode("utf-16"),
    "a mark of bytes first": b"\xef\xbb\xbf{}",
    "an overlong letter": b'{"prompt": "\xc0\xae"}',
    "deep lists": deep(100_000).encode(),
    "deep lists in a field": b'{"messages": %b}' % deep(100_000).encode(),
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a million fields": b"{" + b",".join(b'"%d":1' % n for n in range(300_000)) + b"}",
    "a list of a million": b"[" + b"0," * 1_000_000 + b"0]",
    "a control character": b'{"prompt": "a\x01"}',
    "what comes behind": b'{"prompt": "x"} {"prompt": "y"}',
    "objects without number": b'{"x": [' + b"{}," * 300_000 + b"{}]}",
    "an open string": b'{"prompt": "' + b"x" * 1_000_000,
}
HALVES = {
    "half a pair": b'{"prompt": "\\ud800", "messages": [{"role": "user", "content": "\\udfff"}], "max_tokens": 1, '
    b'"input": "\\ud800", "model": "tiny-random", "content": "\\ud800"}',
    "half a pair as a name": b'{"\\ud800": 1, "messages": 1, "prompt": 1, "input": 1, "tokens": "a", "content": 1}',
    "half a pair as a model": b'{"model": "\\ud800", "messages": [], "prompt": "x", "input": "x", "tokens": []}',
}
CHATS: dict[str, bytes] = {
    "10,000 tools": chat(tools=many_tools(10_000)),
    "a tool of 400 storeys": chat(tools=[TOOL]),
    "100,000 messages": chat(messages=HELLO * 100_000),
    "100,000 parts": chat(messages=[{"role": "user", "content": [{"type": "text", "text": "a"}] * 100_000}]),
    "100,000 stops": chat(stop=["a"] * 100_000),
    "a stop of a megabyte": chat(stop="a" * (1 << 20)),
    "100,000 biases": chat(logit_bias={str(n): 1 for n in range(100_000)}),
    "a bias of a word": chat(logit_bias={"x" * 10_000: 1}),
    "a billion choices": chat(n=10**9),
    "a billion tokens": chat(max_tokens=10**9),
    "a number beyond 64 bits": chat(seed=2**64),
    "a schema of 400 storeys": chat(response_format={"type": "json_schema", "json_schema": {"schema": nested(400)}}),
    "a schema of 10,000 names": chat(
        json_schema={"type": "object", "properties": {f"a{n}": {"type": "string"} for n in range(10_000)}}
    ),
    "a role of no chat": chat(messages=[{"role": "root\r\n", "content": "x"}]),
    "a model of another": chat(model="../../../etc/passwd\r\nX-Injected: 1"),
    "variables of 400 storeys": chat(chat_template_kwargs={"a": nested(400)}),
    "a variable that is none": chat(chat_template_kwargs={"__class__": 1}),
    "more text than the context": chat(messages=[{"role": "user", "content": "a" * 1_000_000}]),
}


@pytest.mark.parametrize("path", POSTED)
async def test_bodies_that_are_none_are_refused_everywhere(served: Served, path: str) -> None:
    for name, body in {**BODIES, **HALVES}.items():
        async with asyncio.timeout(BOUND_S), served.http.post(path, data=io.BytesIO(body)) as answer:
            if answer.status == 200:  # nothing was said that is known there
                assert path.startswith("/api/") and served.backend.requests == [], name
                continue
            assert 400 <= answer.status < 500, (name, await answer.text())
            assert "error" in await answer.json(), name


@pytest.mark.parametrize("name", CHATS)
async def test_chats_without_measure_are_refused_while_others_are_answered(served: Served, name: str) -> None:
    async with asyncio.TaskGroup() as group:
        asked = {"model": served.model, "messages": HELLO, "max_tokens": 2}
        other = group.create_task(served.openai.chat.completions.create(**asked))
        async with (
            asyncio.timeout(BOUND_S),
            served.http.post("/v1/chat/completions", data=io.BytesIO(CHATS[name])) as answer,
        ):
            assert 400 <= answer.status < 500, await answer.text()
            assert "x-injected" not in {header.lower() for header in answer.headers}
            error = (await answer.json())["error"]
            assert error["message"] and len(error["message"]) < 2000
    assert other.result().usage is not None


async def test_of_two_fields_of_one_name_the_last_counts_everywhere(served: Served) -> None:
    """As Python's, JavaScript's and Go's readers have it: what a proxy before us has checked is what is asked."""
    twice = b'{"prompt": "Once", "max_tokens": 3, "max_tokens": 2, "model": "other", "model": "tiny-random"}'
    async with served.http.post("/generate", data=twice) as answer:
        assert answer.status == 200 and (await answer.json())["new_tokens"] == 2


async def measured(act: Callable[[], Any]) -> int:
    """Bytes that this process held more of at its worst, while `act` ran."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        await act()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("packing", ["gzip", "deflate"])
async def test_what_unpacks_to_a_gigabyte_is_let_go_at_its_bound(served: Served, packing: str) -> None:
    zeros = b"0" * (1 << 20)
    packer = zlib.compressobj(9, zlib.DEFLATED, 31 if packing == "gzip" else 15)
    bomb = b"".join([packer.compress(zeros) for _ in range(256)]) + packer.flush()
    asked = head(f"Content-Encoding: {packing}", f"Content-Length: {len(bomb)}") + bomb

    async def act() -> None:
        async with asyncio.timeout(BOUND_S):
            answer = await raw(served.url, asked)
        assert answer.startswith(b"HTTP/1.1 413 ") or not answer, answer[:200]

    assert await measured(act) < 48 << 20


async def test_a_packed_body_is_read(served: Served) -> None:
    packed = gzip.compress(ASK)
    answer = await raw(served.url, head("Content-Encoding: gzip", f"Content-Length: {len(packed)}") + packed)
    assert answer.startswith(b"HTTP/1.1 200 "), answer[:200]


async def test_a_body_that_comes_drop_by_drop_is_over_at_its_time(serve: Serve) -> None:
    """Each drop is no new start of the clock."""
    async with serve(body_timeout_s=0.5) as served, dial(served) as (reader, writer):
        writer.write(post(b"", length=1000))
        ended = asyncio.create_task(reader.readline())
        async with asyncio.timeout(BOUND_S):
            while not ended.done():
                with suppress(ConnectionError):
                    writer.write(b" ")
                await asyncio.wait({ended}, timeout=0.05)
        assert b" 408 " in ended.result()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one loopback address")
async def test_bodies_on_their_way_in_have_room_for_so_much_and_no_more(serve: Serve) -> None:
    """From one address half of it, as long as they are not whole, and as long as their request is under way."""
    async with serve(max_bodies_bytes=8 << 20) as served, AsyncExitStack() as flood:
        heard = []
        for _ in range(8):
            reader, writer = await flood.enter_async_context(dial(served, "127.0.0.2"))
            writer.write(post(b" " * (1 << 20), length=2 << 20))
            heard.append(asyncio.create_task(reader.readline()))
        async with asyncio.timeout(BOUND_S):
            while sum(each.done() for each in heard) < 4:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            answer = await served.openai.chat.completions.create(model=served.model, messages=HELLO, max_tokens=2)
        assert answer.usage is not None
        assert {each.result() for each in heard if each.done()} == {b"HTTP/1.1 503 Service Unavailable\r\n"}
    async with serve(max_bodies_bytes=1 << 20) as served:
        for _ in range(8):  # what is over is free again
            body = {"prompt": "Once", "max_tokens": 1, "receipt": False, "x": "y" * 200_000}
            async with served.http.post("/generate", json=body) as told:
                assert told.status == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_closes_its_half_gets_its_answer(served: Served, stream: bool) -> None:
    served.backend.gate = asyncio.Event()
    async with dial(served) as (reader, writer):
        body = {"messages": HELLO, "max_tokens": 3, "stream": stream}
        writer.write(post(json.dumps(body).encode()).replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        writer.write_eof()
        await served.backend.until(runs=1)
        await asyncio.sleep(0.5)
        assert served.backend.open_runs == 1
        served.backend.gate.set()
        async with asyncio.timeout(BOUND_S):
            told = await reader.read()
    assert b"HTTP/1.1 200 OK" in told and (b"[DONE]" if stream else b'"completion_tokens": 3') in told, told[:300]


async def test_closing_a_half_of_nothing_ends_the_connection(served: Served) -> None:
    for begun in (b"", b"GET /hea", post(b"{", length=1000)):
        async with dial(served) as (reader, writer):
            writer.write(begun)
            writer.write_eof()
            async with asyncio.timeout(BOUND_S):
                assert b" 200 " not in await reader.read()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("reset", [False, True])
async def test_a_client_that_is_gone_before_its_answer_begins_frees_the_ring(
    served: Served, stream: bool, reset: bool
) -> None:
    served.backend.gate = asyncio.Event()
    async with dial(served) as (_, writer):
        writer.write(post(json.dumps({"messages": HELLO, "max_tokens": 3, "stream": stream}).encode()))
        await served.backend.until(runs=1)
        if reset:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.close()
        await served.backend.until(runs=0)
    assert served.backend.cancelled == 1


async def test_two_hundred_that_leave_in_mid_stream_leave_nothing_behind(serve: Serve) -> None:
    async with serve(max_waiting_per_user=300, max_waiting=300) as served:

        async def leaving() -> None:
            async with dial(served) as (reader, writer):
                writer.write(post(json.dumps({"messages": HELLO, "max_tokens": 200, "stream": True}).encode()))
                async with asyncio.timeout(60):
                    while not (await reader.readline()).startswith(b"data: "):
                        pass

        await asyncio.gather(*(leaving() for _ in range(200)))
        await served.backend.until(runs=0)
        after = await served.state(lambda state: state["waiting"] == 0)
        assert not [run for run in after["runs"] if run["state"] in ("queued", "opening", "answering")]
        answer = await served.openai.chat.completions.create(model=served.model, messages=HELLO, max_tokens=2)
        assert answer.usage is not None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one loopback address")
async def test_two_thousand_streams_of_one_address_leave_the_next_his_turn(serve: Serve) -> None:
    async with serve() as served:
        served.backend.gate = asyncio.Event()
        asked = post(json.dumps({"messages": HELLO, "max_tokens": 4, "stream": True}).encode())
        asked = asked.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        async with AsyncExitStack() as flood:
            held = []
            for _ in range(2200):
                reader, writer = await flood.enter_async_context(dial(served, "127.0.0.2"))
                with suppress(ConnectionError):
                    writer.write(asked)
                held.append(reader)
            await served.backend.until(runs=8)
            refused = asyncio.gather(*(reader.readline() for reader in held), return_exceptions=True)
            other = served.openai.chat.completions.create(model=served.model, messages=HELLO, max_tokens=2)
            answered = asyncio.create_task(other)
            await served.state(lambda state: state["waiting"] == 33)
            served.backend.gate.set()
            async with asyncio.timeout(30):
                assert (await answered).usage is not None
                lines = [line for line in await refused if isinstance(line, bytes)]
        told = [int(line.split(b" ")[1]) for line in lines if line]
        assert {200, 429, 503} >= set(told) and told.count(200) == 40, {
            status: told.count(status) for status in set(told)
        }
        await served.backend.until(runs=0)


async def test_a_long_stream_that_is_read_slowly_is_not_held_here(serve: Serve) -> None:
    """What a client does not take stays unsaid: the ring waits, and no more is on its way than sockets hold."""
    async with serve(write_timeout_s=20.0) as served, dial(served) as (reader, writer):
        served.backend.flood = 200_000
        said: list[int] = []
        served.backend.on_token = said.append
        writer.write(post(json.dumps({"messages": HELLO, "stream": True, "max_tokens": 230}).encode()))
        taken = 0
        async with asyncio.timeout(60):
            while taken < 2 << 20:
                taken += len(await reader.read(16 << 10))
                await asyncio.sleep(0.001)
            before = -1
            while before != len(said):  # until nothing more is said
                before = len(said)
                await asyncio.sleep(0.5)
        assert len(said) * 200_000 - taken < 24 << 20 and len(said) < 200
    await served.backend.until(runs=0)


async def test_answers_that_go_on_from_each_other_make_no_ring(served: Served) -> None:
    """An id is known once its answer is there, so none names itself or a later one; a chain ends at the context."""
    async with served.http.post("/v1/responses", json={"input": "a", "previous_response_id": "resp_x"}) as answer:
        assert answer.status == 404
    name, answers = None, 0
    while True:
        asked = {"input": "a", "max_output_tokens": 1, "previous_response_id": name}
        async with served.http.post("/v1/responses", json=asked) as answer:
            told = await answer.json()
            if answer.status != 200:
                break
        name, answers = told["id"], answers + 1
    assert answers > 3 and answer.status == 400 and told["error"]["code"] == "context_length_exceeded"

"""`swarm generate --gateway`: the answer and the receipt of a gateway, without loading what a requester needs."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.base.errors import PeerError, RunError, SwarmError, UsageError
from swarm.cli import main
from swarm.client.through_gateway import (
    Gateway,
    GatewayAnswer,
    event_untrusted,
    fetch_receipt,
    refusal_untrusted,
    stream,
)
from tests.swarm.serve.conftest import Serve, Served
from tests.swarm.serve.tiny import EXAMPLE_RECEIPT, TinyBackend

ASK = ("generate", "hello", "--max-tokens", "6")


async def asked(served: Served, state: Path, *words: str, key: Path | None = None) -> int:
    given_key = [] if key is None else ["--gateway-key", str(key)]
    return await asyncio.to_thread(main, [*ASK, "--gateway", served.url, "--state", str(state), *given_key, *words])


async def through(served: Served, words: Sequence[str]) -> tuple[int, bytes, bytes]:
    """The command as a process of its own, which then says which large modules it loaded."""
    script = (
        "import sys; from swarm.cli import main; code = main(sys.argv[1:]); "
        "print(sorted({'torch', 'transformers', 'aiohttp', 'numpy'} & set(sys.modules)), file=sys.stderr); "
        "sys.exit(code)"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(120):
        out, errors = await process.communicate()
    return process.returncode or 0, out, errors


async def test_text_and_receipt_come_through(served: Served, tmp_path: Path) -> None:
    want = await served.openai.chat.completions.create(
        model=served.model, messages=[{"role": "user", "content": "hello"}], max_tokens=6
    )
    receipt = tmp_path / "kept.json"
    words = [*ASK, "--gateway", served.url, "--receipt", str(receipt)]
    code, out, errors = await through(served, words)
    assert code == 0, errors
    assert out.decode().rstrip("\n") == (want.choices[0].message.content or "").rstrip("\n")
    assert receipt.read_bytes() == (served.backend.receipts_dir / _run(served.backend, receipt)).read_bytes()
    assert errors.decode().rstrip().endswith("[]"), "a command that only asks loads no model code"


def _run(backend: TinyBackend, receipt: Path) -> str:
    """The name of the newest receipt that the gateway wrote."""
    return max(backend.receipts_dir.glob("*.json"), key=lambda path: path.stat().st_mtime).name


async def test_options_reach_the_run(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str], backend: TinyBackend
) -> None:
    words = ("--raw", "--temperature", "0.5", "--seed", "9", "--speculation", "plain", "--no-receipt", "--json")
    assert await asked(served, tmp_path, *words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["receipt"] is None and isinstance(told["text"], str)
    request = backend.requests[-1]
    assert (request.sampling.temperature, request.sampling.seed, request.max_tokens) == (0.5, 9, 6)
    assert (request.speculation, request.receipt) == ("plain", False)


async def test_a_receipt_that_cannot_be_kept_costs_no_answer(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "receipts").write_bytes(b"")  # where the folder would be
    for words in ((), ("--json",)):
        assert await asked(served, tmp_path, *words) == 1
        out, err = capsys.readouterr()
        assert len(json.loads(out)["text"] if words else out.strip()) > 5
        assert "cannot write the receipt" in err and "Traceback" not in err


async def test_refusals_are_told_in_a_line(serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with serve() as served:
        assert await asked(served, tmp_path, "--regex", "(") == 2
        assert "the gateway refused (400)" in capsys.readouterr().err
        assert await asked(served, tmp_path, "--private", "1") == 2
        assert "expected no --private with --gateway" in capsys.readouterr().err
        url = served.url
    assert await asyncio.to_thread(main, [*ASK, "--gateway", url]) == 1
    assert "expected a gateway at" in capsys.readouterr().err


async def test_an_error_within_the_stream_ends_the_command(
    served: Served, tmp_path: Path, backend: TinyBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    backend.fail, backend.fail_after = RunError("a stage burned down"), 2
    assert await asked(served, tmp_path) == 1
    assert "a stage burned down" in capsys.readouterr().err


EVENTS, JSON = b"Content-Type: text/event-stream; charset=utf-8\r\n", b"Content-Type: application/json\r\n"


async def _speaking(answer: bytes, until: bytes = b"}", header: bytes = EVENTS) -> tuple[asyncio.Server, Gateway]:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(until)  # the whole request: closing over unread bytes resets the connection
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n" + header + b"\r\n" + answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    return server, Gateway.at(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n', RunError),
        (b"data: [1]\n\n", PeerError),
        (b'data: {"choices": [{"delta": {"content": 7}}]}\n\n', PeerError),
        (b'data: {"choices": [{"delta": {"content": "\\ud800"}}]}\n\n', PeerError),
        (b"data: " + b"x" * (1 << 21), PeerError),
        (b'data: {"choices": [], "wanswarm": {"tokens_per_second": NaN}}\n\n', PeerError),
    ],
)
async def test_a_gateway_that_says_nonsense(answer: bytes, error: type[SwarmError]) -> None:
    server, gateway = await _speaking(answer)
    async with server:
        with pytest.raises(error):
            await asyncio.to_thread(lambda: list(stream(gateway, True, {}, GatewayAnswer())))


async def test_an_account_of_the_run_overrides_no_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    account = b'{"text": "another", "finish_reason": "stop", "tokens": 3}'
    answer = b'data: {"choices": [{"text": "said", "finish_reason": "length"}], "wanswarm": %s}\n\ndata: [DONE]\n\n'
    server, gateway = await _speaking(answer % account)
    async with server:
        words = [*ASK, "--raw", "--json", "--no-receipt", "--state", str(tmp_path), "--gateway", gateway.url]
        assert await asyncio.to_thread(main, words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"text": "said", "finish_reason": "length", "receipt": None, "tokens": 3}


async def test_half_a_receipt_is_none() -> None:
    server, gateway = await _speaking(b'{"order": 1', b"\r\n\r\n", JSON + b"Content-Length: 99\r\n")
    async with server:
        with pytest.raises(RunError, match="broke off within a receipt"):
            await asyncio.to_thread(fetch_receipt, gateway, "/v1/receipts/ab12")


@pytest.mark.parametrize(
    ("body", "header", "why"),
    [
        (b"<html>sign in</html>", b"Content-Type: text/html\r\n", "expected application/json .*, found text/html"),
        (b"{}", JSON, "refused"),
        (EXAMPLE_RECEIPT.read_bytes().replace(b"smollm2", b"smollm3"), JSON, "refused .*signed"),
    ],
)
async def test_what_is_no_receipt_is_not_kept_as_one(body: bytes, header: bytes, why: str) -> None:
    server, gateway = await _speaking(body, b"\r\n\r\n", header)
    async with server:
        with pytest.raises(PeerError, match=why):
            await asyncio.to_thread(fetch_receipt, gateway, "/v1/receipts/ab12")


@pytest.mark.parametrize("header", [b"", b"Content-Type: text/html\r\n", JSON])
async def test_a_page_is_no_answer(header: bytes) -> None:
    server, gateway = await _speaking(b'data: {"choices": [{"text": "a"}]}\n\ndata: [DONE]\n\n', header=header)
    async with server:
        with pytest.raises(PeerError, match=r"expected text/event-stream .* is it a `swarm serve`"):
            await asyncio.to_thread(lambda: list(stream(gateway, False, {}, GatewayAnswer())))


async def test_a_speed_beyond_any_number_is_not_told(tmp_path: Path) -> None:
    facts = b'data: {"wanswarm": {"tokens_per_second": 1' + b"0" * 400 + b"}}\n\ndata: [DONE]\n\n"
    server, gateway = await _speaking(facts)
    async with server:
        assert await asyncio.to_thread(main, [*ASK, "--gateway", gateway.url, "--state", str(tmp_path)]) == 0


def test_a_receipt_is_fetched_from_its_own_address_alone() -> None:
    assert GatewayAnswer(facts={"run_id": "ab12", "receipt": "/v1/receipts/ab12"}).receipt == "/v1/receipts/ab12"
    for facts in ({"run_id": "../x", "receipt": "/v1/receipts/../x"}, {"run_id": "ab", "receipt": "http://elsewhere"}):
        with pytest.raises(PeerError):
            _ = GatewayAnswer(facts=facts).receipt


@given(st.binary(max_size=300))
def test_any_line_is_an_event_or_a_peer_error(data: bytes) -> None:
    for line in (data, b"data: " + data):
        try:
            assert event_untrusted(line) is None or isinstance(event_untrusted(line), dict | str)
        except PeerError:
            pass
    assert isinstance(refusal_untrusted(400, data), UsageError)


ODD = ("http://a:0", "http://a b", "http://a\nb", "http://u:p@a", "http://a/b c", f"http://{'a' * 300}", "http://[::1")


@pytest.mark.parametrize("key", ["a\nb", "clé"])
def test_keys_that_no_header_holds(key: str) -> None:
    with pytest.raises(UsageError):
        Gateway.at("http://a", key)


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://a", "http://", "http://a:b", "http://a?x=1", *ODD])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UsageError):
        Gateway.at(url)
    assert Gateway.at("http://[::1]:80/v1").url == "http://[::1]:80"

"""`swarm generate` asks a gateway of its user that runs here, unasked: where that says the same, and only there."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from swarm.base.errors import RunError
from swarm.cli import main
from swarm.cli.announce import with_owners_key
from swarm.client.local_gateway import LocalGateway, ServedSwarm, announced
from swarm.mesh.invite import Invite
from swarm.serve.config import GatewayConfig
from swarm.serve.keys import ApiKey
from tests.swarm.serve.conftest import Serve, Served
from tests.swarm.serve.tiny import EXAMPLE_RECEIPT, TinyBackend

SWARM, DIGEST = bytes(range(10)), "0f" * 32
INVITE = Invite(SWARM, bytes.fromhex(DIGEST)[:16], "/nowhere/tiny", ((b"n" * 32, (("127.0.0.1", 1),)),)).text()
TINY = ServedSwarm(SWARM.hex(), "tiny-random", DIGEST)
ASK = ("generate", "hello", "--max-tokens", "6", "--no-lan")
ELSEWHERE = "expected a swarm to ask, found none"
"""What is said where there is neither a gateway nor a swarm: the gateway was not asked."""


@contextmanager
def here(served: Served, state: Path, of: ServedSwarm = TINY, **more: object) -> Iterator[None]:
    """The gateway is told of in `state`, where its swarm is the one used last."""
    (state / "last.invite").write_text(INVITE)
    with announced(state, replace(LocalGateway(served.url, (of,)), **more)):  # type: ignore[arg-type]
        yield


async def generate(state: Path, *words: str) -> int:
    return await asyncio.to_thread(main, [*ASK, "--state", str(state), *words])


@pytest.fixture
async def found(served: Served, tmp_path: Path) -> AsyncIterator[Served]:
    with here(served, tmp_path):
        yield served


async def test_the_answer_is_the_models_whole_text(
    found: Served, backend: TinyBackend, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backend.script = "<think>so</think>yes"
    assert await generate(tmp_path, "--max-tokens", "30", "--swarm", INVITE, "--system", "be brief", "--seed", "3") == 0
    told = capsys.readouterr()
    assert told.out == "<think>so</think>yes\n"
    assert f"through your gateway at {found.url}" in told.err
    [request] = backend.requests
    assert request.prompt_ids == tuple(
        backend.encode_chat([{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}])
    )
    assert (request.sampling.seed, request.sampling.temperature, request.max_tokens) == (3, 0.0, 30)


async def test_no_model_code_is_loaded_on_that_way(found: Served, tmp_path: Path) -> None:
    script = (
        "import sys; from swarm.cli import main; code = main(sys.argv[1:]); "
        "print(sorted({'torch', 'transformers', 'aiohttp', 'numpy'} & set(sys.modules)), file=sys.stderr); "
        "sys.exit(code)"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, *ASK, "--state", str(tmp_path), "--swarm", INVITE,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(120):
        _, errors = await process.communicate()
    assert process.returncode == 0, errors
    assert errors.decode().rstrip().endswith("[]")


async def test_the_receipt_stays_whole(
    found: Served, backend: TinyBackend, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backend.receipts_dir = tmp_path / "receipts"
    backend.receipts_dir.mkdir()
    assert await generate(tmp_path) == 0
    [kept] = backend.receipts_dir.glob("*.json")
    assert str(kept) in capsys.readouterr().err
    assert kept.read_bytes() == EXAMPLE_RECEIPT.read_bytes()
    assert await generate(tmp_path, "--receipt", str(tmp_path / "mine.json")) == 0
    assert (tmp_path / "mine.json").read_bytes() == EXAMPLE_RECEIPT.read_bytes()
    # Asked by its address it hands out no texts, and what lies there already is not overwritten with that.
    words = [*ASK[:2], "--gateway", found.url, "--state", str(tmp_path), "--max-tokens", "2"]
    assert await asyncio.to_thread(main, words) == 0
    for path in backend.receipts_dir.glob("*.json"):
        assert path.read_bytes() == EXAMPLE_RECEIPT.read_bytes()


async def test_a_receipt_under_the_name_of_another_is_refused(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "asker"
    (state / "receipts").mkdir(parents=True)
    kept = state / "receipts" / "run1.json"
    kept.write_bytes(before := b'{"of": "another run"}')
    assert await asyncio.to_thread(main, [*ASK, "--gateway", served.url, "--state", str(state)]) == 1
    assert "found one named as" in capsys.readouterr().err
    assert kept.read_bytes() == before


async def test_a_gateway_with_keys_gives_its_user_one(
    serve: Serve, backend: TinyBackend, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, key = with_owners_key(GatewayConfig(api_keys=(ApiKey("owner", b"x" * 32),)))
    assert key is not None and [each.name for each in config.api_keys] == ["owner", "owner-"]
    assert with_owners_key(GatewayConfig()) == (GatewayConfig(), None)
    async with serve(api_keys=config.api_keys) as served:
        with here(served, tmp_path, key=key):
            assert await generate(tmp_path, "--receipt", str(tmp_path / "r" / "mine.json")) == 0
            assert (tmp_path / "r" / "mine.json").read_bytes() == EXAMPLE_RECEIPT.read_bytes()  # fetched whole
        with here(served, tmp_path, key="another"):
            backend.requests.clear()
            assert await generate(tmp_path, "-v") != 0
    assert "the gateway refused (401)" in capsys.readouterr().err
    assert not backend.requests


UNSAID = (
    "--json", "--private=1", "--wire=int8", "--witness=0", "--owners=2", "--patience=5", "--no-relay", "--no-punch",
    "--draft-model=x", "--keep-receipts=1", "--color=always",
)  # fmt: skip


@pytest.mark.parametrize("word", UNSAID)
async def test_what_no_request_can_say_goes_the_usual_way(
    word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with announced(tmp_path, LocalGateway("http://127.0.0.1:1", (TINY,))):
        assert await generate(tmp_path, "-v", word) == 2
    told = capsys.readouterr().err
    assert (
        f"not through a gateway: no request to one can say {word.replace('=always', ' always').split('=')[0]}" in told
    )
    assert ELSEWHERE in told


async def test_where_the_gateway_would_say_something_else(
    found: Served, backend: TinyBackend, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Invite(b"y" * 10, bytes.fromhex(DIGEST)[:16], "/nowhere/tiny", ((b"n" * 32, (("127.0.0.1", 1),)),)).text()
    assert await generate(tmp_path, "-v", "--swarm", other) != 0
    assert "no gateway that runs here serves this swarm" in capsys.readouterr().err
    assert await generate(tmp_path, "--gateway", "none") != 0
    assert "through" not in capsys.readouterr().err
    (second := tmp_path / "second").mkdir()
    with here(found, second, replace(TINY, digest=DIGEST[:32] + "ee" * 16)):
        assert await generate(second, "-v", "--swarm", INVITE) != 0
    assert "serves another model than it tells" in capsys.readouterr().err
    with here(found, second, own_template=True):
        assert await generate(second, "-v", "--swarm", INVITE) != 0
    assert "--chat-template-kwargs of its own" in capsys.readouterr().err
    assert not backend.requests


async def test_the_makers_sampling_is_what_it_would_be_without(
    served: Served, backend: TinyBackend, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with here(served, tmp_path, replace(TINY, sampling={"temperature": 0.5, "top_k": 20})):
        assert await generate(tmp_path) == 0
        assert "as the model's makers recommend: temperature 0.5, top-k 20" in capsys.readouterr().err
        assert await generate(tmp_path, "--top-p", "0.5") == 0
    drawn = [(each.sampling.temperature, each.sampling.top_k, each.sampling.top_p) for each in backend.requests]
    assert drawn == [(0.5, 20, 1.0), (0.0, 0, 0.5)]


async def test_a_failure_before_the_first_word_goes_the_usual_way(
    found: Served, backend: TinyBackend, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backend.fail = RunError("a stage burned down")
    assert await generate(tmp_path) != 0
    assert ": a stage burned down" in capsys.readouterr().err
    backend.requests.clear()
    assert await generate(tmp_path, "--temperature", "3") != 0
    told = capsys.readouterr().err
    assert "not through a gateway: the gateway refused (400)" in told  # the API ends at 2
    assert not backend.requests


async def speaking(events: Sequence[str]) -> tuple[asyncio.Server, LocalGateway]:
    """A gateway that dies within its answer."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        await reader.readexactly(length)
        kind, body = "application/json", json.dumps({"manifest_digest": DIGEST, "tokens": [1, 2]})
        if b"/v1/completions" in head:
            kind, body = "text/event-stream", "".join(f"data: {event}\n\n" for event in events)
        writer.write(f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: {kind}\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    return server, LocalGateway(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", (TINY,))


async def test_a_gateway_that_dies_within_its_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server, gateway = await speaking(['{"choices": [{"text": "half an"}]}'])
    async with server:
        with announced(tmp_path, gateway):
            assert await generate(tmp_path, "--swarm", INVITE) == 1
    told = capsys.readouterr()
    assert told.out == "half an" and "broke off before the end; run it again" in told.err


async def test_a_gateway_that_dies_before_its_first_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server, gateway = await speaking([])
    async with server:
        with announced(tmp_path, replace(gateway, served=(replace(TINY, searched=True),))):
            words = [*ASK[:-1], "--state", str(tmp_path), "--raw", "--swarm", INVITE, "--draft", "none"]
            assert await asyncio.to_thread(main, words) != 0
    told = capsys.readouterr()
    assert told.out == "" and "not through a gateway: the gateway at" in told.err
    assert "swarm: " in told.err.splitlines()[-1], "then the swarm itself was asked, which is not there"


async def test_a_gateway_that_answers_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server, gateway = await speaking([])
    server.close()
    with announced(tmp_path, gateway):
        assert await generate(tmp_path, "-v", "--swarm", INVITE) != 0
    told = capsys.readouterr().err
    assert "not through a gateway: expected a gateway at" in told

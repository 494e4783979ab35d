"""The owner's word from another terminal: `swarm admit` and the port that it reaches, and what others find there."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from swarm.base.errors import BusyError, UsageError
from swarm.base.owner import OwnerDesk, Question
from swarm.cli.main import main
from swarm.discovery.control import AT_ONCE, CONTROL, LINE_BYTES, control_port, open_question

QUESTION = Question("a machine asks. Does it show the code 123456?", "123456")


async def command(state: Path, *words: str) -> int:
    return await asyncio.to_thread(main, ["admit", *words, "--state", str(state)])


async def test_a_code_is_confirmed_refused_or_mistyped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    desk = OwnerDesk()
    async with control_port(tmp_path, desk):
        assert (tmp_path / CONTROL).stat().st_mode & 0o077 == 0
        assert await command(tmp_path) == 0 and "nobody asks" in capsys.readouterr().err
        assert await command(tmp_path, "123456") == 2 and "nobody asks" in capsys.readouterr().err
        for words, yes in ((("123456",), True), (("123 456",), True), (("--no",), False), (("123456", "--no"), False)):
            answer = asyncio.create_task(desk.agrees(QUESTION))
            await asyncio.sleep(0)
            assert await command(tmp_path, "654321") == 2
            assert "somebody is between them: say no" in capsys.readouterr().err and not answer.done()
            with pytest.raises(UsageError, match="expected the code itself for a yes"):
                desk.answer(None, True)
            with pytest.raises(BusyError):
                await desk.agrees(QUESTION)
            assert await command(tmp_path, "--json") == 0
            assert json.loads(capsys.readouterr().out)["question"]["code"] == "123456"
            assert await command(tmp_path, *words) == 0
            assert await answer is yes
    assert not (tmp_path / CONTROL).exists()
    assert await command(tmp_path, "123456") == 2 and "expected a running swarm join" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["12345"], ["12345x"], ["１２３４５６"]])
def test_what_is_no_code(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["admit", *words])
    assert end.value.code == 2 and "six digits" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"port": "x", "secret": 1}', b'{"port": 1, "secret": "s"}'])
async def test_a_file_left_by_a_process_that_was_killed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CONTROL).write_bytes(content)
    with pytest.raises(UsageError, match="expected a running swarm join"):
        await open_question(tmp_path)


async def test_others_of_this_machine_learn_and_decide_nothing(tmp_path: Path) -> None:
    desk = OwnerDesk()
    async with control_port(tmp_path, desk):
        answer = asyncio.create_task(desk.agrees(QUESTION))
        await asyncio.sleep(0)
        port = json.loads((tmp_path / CONTROL).read_text())["port"]

        async def say(line: bytes) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(line)
            got = await reader.read()
            writer.close()
            return got

        secret = {"secret": "0" * 64, "do": "answer", "code": "123456", "yes": True}
        lines = [json.dumps(secret), json.dumps({**secret, "secret": 1}), "[]", "GET / HTTP/1.1", "é" * 9]
        for line in lines:
            got = await say(line.encode() + b"\n")
            assert b"error" in got and b"123456" not in got
        assert await say(b"x" * 2 * LINE_BYTES) == b""
        many = [await asyncio.open_connection("127.0.0.1", port) for _ in range(AT_ONCE + 1)]
        assert await many[-1][0].read() == b""  # one too many at once
        for _, writer in many:
            writer.close()
        assert not answer.done()
        answer.cancel()
        await asyncio.wait({answer})

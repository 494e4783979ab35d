"""A real `swarm serve` process over two real swarms gets SIGTERM while it answers; it and a tail keep public logs."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from pathlib import Path
from typing import Any

import aiohttp

from swarm.cli.main import main
from swarm.testbed.cluster import LocalSwarm, local_ring
from tests.swarm.serve.tiny import tiny_model, tiny_tokenizer
from tests.warm import warm

STREAMS = 6
ASK = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 200, "temperature": 0, "stream": True}


async def rest(stream: aiohttp.ClientResponse) -> list[Any]:
    lines = [line[6:].strip() for line in (await stream.content.read()).split(b"\n") if line.startswith(b"data: ")]
    return [line.decode() if line == b"[DONE]" else json.loads(line) for line in lines]


async def said(process: asyncio.subprocess.Process, wanted: str) -> re.Match[str]:
    assert process.stderr is not None
    lines = []
    while line := (await process.stderr.readline()).decode():
        lines.append(line)
        if found := re.search(wanted, line):
            return found
    raise AssertionError(f"the gateway ended before it said {wanted}: {''.join(lines)}")


def local_swarm(folder: Path, name: str) -> LocalSwarm:
    model = folder / name
    tiny_model(258).save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    words = ("--cpu", "--threads", "1", "--dtype", "float32")
    return LocalSwarm(folder / f"swarm-{name}", model=str(model), arguments=words, command=warm())


async def test_answers_under_way_end_and_new_ones_are_refused(tmp_path: Path) -> None:
    here, there = (local_swarm(tmp_path, name) for name in ("here", "there"))
    logs = [tmp_path / "tail.log", tmp_path / "asker.log"]
    async with asyncio.timeout(150), local_ring(here, [(0, 1)]) as ring, local_ring(there, [(0, 2)]) as other:
        tail = await ring.add((1, 2), "--log", str(logs[0]))
        words = ["serve", "--swarm", ring.invite, "--state", str(tmp_path / "asker"), "--models", str(tmp_path / "m")]
        words += ["--swarm", other.invite, "--alias", "gpt-4o=there"]
        words += ["--no-lan", "--port", "0", "--speculation", "plain", "--grace", "60", "--log", str(logs[1])]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*warm(), *words, stdin=pipe, stderr=pipe)
        try:
            url = (await said(process, r"http://[a-z0-9.:]+")).group()
            async with aiohttp.ClientSession(url) as http:
                models = (await (await http.get("/v1/models")).json())["data"]
                assert [(model["id"], model["root"]) for model in models][2:] == [("gpt-4o", models[1]["id"])]
                elsewhere = {**ASK, "model": "gpt-4o", "stream": False, "max_tokens": 5}
                answer = await (await http.post("/v1/chat/completions", json=elsewhere)).json()
                assert answer["model"] == models[1]["id"] and answer["usage"]["completion_tokens"] == 5
                streams = [await http.post("/v1/chat/completions", json=ASK) for _ in range(STREAMS)]
                assert all([await stream.content.readline() for stream in streams])
                process.send_signal(signal.SIGTERM)
                await said(process, "stopping: answers under way may finish")
                refused = await http.post("/v1/chat/completions", json=ASK)
                assert refused.status == 503 and int(refused.headers["Retry-After"]) > 0
                assert (await refused.json())["error"]["code"] == "gateway_stopping"
                for stream in streams:
                    *chunks, last = await rest(stream)
                    assert last == "[DONE]" and chunks[-1]["choices"][0]["finish_reason"] in ("length", "stop")
            assert await process.wait() == 0
            assert await tail.stop() == 0
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
    receipts = [p for p in (tmp_path / "asker" / "receipts").glob("*.json") if "." not in p.stem]
    assert len(receipts) == STREAMS + 1
    first = min(receipts, key=lambda path: path.stat().st_mtime)
    receipts.remove(first)  # of the other swarm, whose nodes keep no log
    for receipt in receipts:
        for log in (logs[0], logs[1] / "1"):
            assert await asyncio.to_thread(main, ["verify", str(receipt), "--log", str(log)]) == 0
    elsewhere = tmp_path / "elsewhere.log"
    assert await asyncio.to_thread(main, ["verify", str(receipts[0]), "--log", str(elsewhere)]) == 2

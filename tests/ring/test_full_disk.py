"""Nodes and requesters whose disk is full or read-only: they say so in a line, and the swarm goes on without them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from swarm.run.api import RunRequest
from tests.ring.nest import nest
from tests.ring.test_processes import folder
from tests.ring.trials import Blows, all_serve, connected, undisturbed

__all__ = ["folder"]  # a fixture, used by name

SIZE = "256k"
PAGE = 4096
STATEMENT = 512
"""Bytes; less than any statement in a log."""


@contextlib.contextmanager
def small_disk(where: Path) -> Iterator[Path]:
    """A file system of its own for the folder `where`."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs root on Linux, to mount a small file system")
    where.mkdir(parents=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(where)]
    if subprocess.run(words, capture_output=True).returncode:
        pytest.skip("needs leave to mount a small file system")
    try:
        yield where
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=True)


def fill(disk: Path) -> Path:
    """Use up all that is left of it."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(512))
    return filler


async def use_up(disk: Path, ask: Callable[[], Awaitable[set[str]]]) -> None:
    """Run until no statement fits behind the others: the last page of a file may be written though the disk is full."""

    def length() -> int:
        return sum(log.stat().st_size for log in disk.rglob("statements.jsonl"))

    idle = 0
    while -length() % PAGE >= STATEMENT and idle < 6:
        before = length()
        await ask()
        idle = idle + 1 if length() == before else 0


def freeze(disk: Path) -> None:
    """Let nobody write to it any more."""
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)


async def test_a_node_whose_disk_fills_up_is_routed_around_and_comes_back(folder: Path, tmp_path: Path) -> None:
    whole = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    request = RunRequest((5, 4, 3), max_tokens=30, speculation="plain", draft="none", ignore_eos=True)
    with small_disk(tmp_path / "nodes" / "tight") as disk:
        async with nest(folder, tmp_path / "nodes") as nodes:
            await nodes.add((0, 3))
            tight = await nodes.add((3, 6), name="tight")
            spare = await nodes.add((3, 6))
            async with await connected(nodes, tmp_path / "asker", draft="none") as requester:

                async def ask() -> set[str]:
                    """The nodes that served a run; its tokens must be right."""
                    async with asyncio.timeout(60):
                        await all_serve(nodes, requester)
                        trial = await Blows(nodes, requester, request, 10**6, 0, 0.0, lambda node: None).run()
                    assert list(trial.result.token_ids) == undisturbed(whole, request)
                    return {stage.node for stage in trial.result.ring}

                assert {tight.id, spare.id} & await ask()
                filler = fill(disk)
                await use_up(disk, ask)
                for _ in range(3):
                    assert spare.id in await ask()
                log = (disk / "node.log").read_text()
                assert "Traceback" not in log
                filler.unlink()
                spare.signal(signal.SIGKILL)
                await spare.ended()
                nodes.nodes.remove(spare)
                assert tight.id in await ask()
                fill(disk)
                tight.signal(signal.SIGKILL)
                await tight.ended()
                (disk / "filler").unlink()
                tight = await nodes.again(tight)  # its key, its log and its swarm are whole
                assert tight.id in await ask()


@pytest.mark.parametrize("how", ["full", "read-only"])
async def test_commands_say_in_one_line_that_they_cannot_write(folder: Path, tmp_path: Path, how: str) -> None:
    async with nest(folder, tmp_path / "nodes") as nodes:
        await nodes.add((0, 6))
        with small_disk(tmp_path / "small") as disk:
            if how == "full":
                fill(disk)
            else:
                freeze(disk)
            state = ("--state", str(disk / "state"))
            for words in (("join", "--model", str(folder), "--cpu"), ("generate", "hello", "--draft", "none")):
                code, out, errors = await (await nodes.ask(*words, last=state)).ended()
                lines = [line for line in errors.splitlines() if line.startswith("swarm: ")]
                assert code in (1, 2) and not out and len(lines) == 1, errors
                assert str(disk) in lines[0] and "Traceback" not in errors

"""From the start of a `swarm generate` to its first token: wall clock and processor time of that process alone.

python -m tests.bench.first_token [--nodes 1] [--rounds 5] [--gateway] [WORDS for swarm generate ...]

A swarm of the default model on this machine, its nodes warm; then the command, cold, again and again. Processor time is
that of the process when its first byte of text is there (/proc, so Linux only).
--gateway: with a `swarm serve` on this machine, which the command finds by itself. WORDS: for example `--draft none`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

from swarm.client.local_gateway import FOLDER
from swarm.testbed.cluster import LocalSwarm, local_ring, split_layers

PROMPT = "Tell me about the sea."


def spent_s(pid: int) -> float:
    """Seconds of processor time of a process so far."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


async def once(words: list[str]) -> tuple[float, float]:
    """Wall clock and processor time to the first byte of the answer, in seconds."""
    start = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "swarm.cli.child_main", "generate", PROMPT, "--max-tokens", "8", *words,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    if not await process.stdout.read(1):
        raise SystemExit(f"no answer: swarm generate {' '.join(words)}")
    found = time.perf_counter() - start, spent_s(process.pid)
    await process.stdout.read()
    await process.wait()
    return found


@asynccontextmanager
async def serving(where: list[str]) -> AsyncIterator[None]:
    """While a `swarm serve` runs that is ready."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "swarm.cli.child_main", "serve", "--port", str(port), *where,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(300):
            while True:
                try:
                    (await asyncio.open_connection("127.0.0.1", port))[1].close()
                    break
                except OSError:
                    await asyncio.sleep(0.2)
        yield
    finally:
        process.terminate()
        await process.wait()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gateway", action="store_true", help="with a `swarm serve` on this machine")
    asked, words = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as state:
        async with local_ring(LocalSwarm(Path(state)), split_layers(30, asked.nodes)) as ring:
            state_words = ["--swarm", ring.invite, "--state", str(ring.requester_state)]
            async with serving(state_words) if asked.gateway else nullcontext():
                await once([*state_words, *words])
                if asked.gateway and not list((ring.requester_state / FOLDER).glob("*.json")):
                    raise SystemExit("the gateway does not tell of itself")
                found = [await once([*state_words, *words]) for _ in range(asked.rounds)]
    wall, spent = (statistics.median(column) for column in zip(*found, strict=True))
    print(f"first token after {wall:.2f} s, {spent:.2f} s of processor time (least {min(s for _, s in found):.2f})")


if __name__ == "__main__":
    asyncio.run(main())

"""What 500 connections that never say who they are cost an honest run.

    python -m tests.bench.half_open [--connections 500] [--tokens 300]

Three node processes, plain decoding. The same run is measured alone, then while strangers hold connections to every
node half open: some silent, some sending a byte now and then; whoever is closed comes again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import time
from pathlib import Path

from swarm.client.client import Requester
from swarm.model.files.store import ModelStore
from swarm.run.api import CommittedTokens, RunRequest
from swarm.testbed.cluster import split_layers
from tests.ring.nest import nest
from tests.ring.trials import all_serve, connected


async def passes(requester: Requester, tokens: int) -> list[float]:
    """Milliseconds between the tokens of one run."""
    request = RunRequest((5, 4, 3, 2, 1), tokens, speculation="plain", draft="none", ignore_eos=True)
    times = [time.perf_counter() async for event in requester.run(request) if isinstance(event, CommittedTokens)]
    return [1e3 * (b - a) for a, b in zip(times, times[1:], strict=False)]


async def stranger(host: str, port: int, slow: bool) -> None:
    """Hold a connection half open, again and again."""
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                while slow:
                    writer.write(b"w")
                    await writer.drain()
                    await asyncio.sleep(2.0)
                await reader.read()
            finally:
                writer.close()
        await asyncio.sleep(0.5)


def line(name: str, found: list[float]) -> str:
    """Median and 99th percentile."""
    return f"{name:8s} median {statistics.median(found):7.2f} ms   p99 {sorted(found)[int(0.99 * len(found))]:7.2f} ms"


async def measure(args: argparse.Namespace) -> None:
    """Alone, beside strangers, alone again."""
    store = ModelStore()
    n_layers = store.open(args.model, (0, 1)).manifest.n_layers
    with tempfile.TemporaryDirectory() as state:
        async with nest(args.model, Path(state), models=store.root) as nodes:
            for block in split_layers(n_layers, 3):
                await nodes.add(block)
            async with await connected(nodes, Path(state) / "asker", draft="none") as requester:
                await all_serve(nodes, requester)
                await passes(requester, 20)
                print(line("alone", await passes(requester, args.tokens)), flush=True)
                tasks = []
                for number in range(args.connections):
                    host, port = str(nodes.nodes[number % 3].ready["listen"]).rsplit(":", 1)
                    tasks.append(asyncio.create_task(stranger(host, int(port), number % 2 == 0)))
                await asyncio.sleep(3.0)
                print(line("beside", await passes(requester, args.tokens)), flush=True)
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                print(line("alone", await passes(requester, args.tokens)), flush=True)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--connections", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=300)
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()

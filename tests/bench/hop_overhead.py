"""What one hop costs beside the network: encode, seal, send, open and decode one frame on one core.

    python tests/bench/hop_overhead.py [--rows 64] [--hidden 4096] [--wire bfloat16] [--json PATH]

Two nodes in one process on loopback, so both ends share the core. Prints medians in milliseconds, the CPU time of
the process per frame, and the longest that the event loop was kept from a timer meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from pathlib import Path

import torch

from swarm.net.channel.message import Message
from swarm.net.channel.wire import decode_tensor_untrusted, encode_tensor
from swarm.net.identity import Identity
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard


async def measure(rows: int, hidden: int, wire: str, frames: int) -> dict[str, object]:
    tensor = torch.randn(rows, hidden).to(torch.bfloat16)
    arrived: asyncio.Queue[torch.Tensor] = asyncio.Queue()

    async def take(peer: Peer, message: Message) -> None:
        arrived.put_nowait(decode_tensor_untrusted(message.header["hidden"], message.body, torch.bfloat16))

    left, right = Identity.generate(), Identity.generate()
    async with Switchboard(left, {"frame": take}) as here, Switchboard(right) as there:
        peer = await there.peer(left.id, [await here.listen("127.0.0.1", 0)])
        times, lag = [], [0.0]
        watch = asyncio.create_task(_watch(lag))
        cpu = time.process_time()
        for number in range(frames):
            start = time.perf_counter()
            header, body = encode_tensor(tensor, wire)
            await peer.send(Message("frame", {"seq": number, "hidden": header}, body))
            back = await arrived.get()
            times.append((time.perf_counter() - start) * 1e3)
            assert back.shape == tensor.shape
        cpu = (time.process_time() - cpu) / frames * 1e3
        watch.cancel()
        ping = await peer.ping(50)
        large = bytes(32 << 20)
        lag[0] = 0.0
        watch = asyncio.create_task(_watch(lag))
        start = time.perf_counter()
        echo = asyncio.create_task(there_to_here(peer, large))
        await echo
        rate = len(large) / (time.perf_counter() - start)
        watch.cancel()
    times.sort()
    return {
        "rows": rows,
        "hidden": hidden,
        "wire": wire,
        "frame_bytes": memoryview(body).nbytes,
        "median_ms": round(statistics.median(times), 3),
        "p95_ms": round(times[int(len(times) * 0.95)], 3),
        "cpu_ms": round(cpu, 3),
        "ping_median_us": ping.median_us,
        "bulk_gbit_s": round(rate * 8 / 1e9, 2),
        "loop_lag_ms_during_bulk": round(lag[0] * 1e3, 2),
    }


async def there_to_here(peer: Peer, large: bytes) -> None:
    await peer.send(Message("bulk", {}, large), priority=3)
    await peer.flush()


async def _watch(lag: list[float]) -> None:
    while True:
        start = time.perf_counter()
        await asyncio.sleep(0.001)
        lag[0] = max(lag[0], time.perf_counter() - start - 0.001)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--wire", default="bfloat16")
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    result = asyncio.run(measure(options.rows, options.hidden, options.wire, options.frames))
    text = json.dumps(result, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()

"""Stands in for the `swarm` command in the tests of what starts it: same words in, same JSON lines out, no model.

It answers one line of "hello" on its listening port, so that the path to it can be measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys


async def join(args: argparse.Namespace) -> int:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    listen = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    first, last = map(int, args.layers.split(":"))
    advertise = args.advertise or listen
    ready = {"event": "ready", "node": f"id-{first}", "listen": listen, "advertise": advertise, "device": "cpu"}
    print("a line that is not JSON", flush=True)
    print(json.dumps(ready | {"invite": f"swarm:{advertise}", "model": "fake", "layers": [first, last]}), flush=True)
    async with server:
        await ended.wait()
    return 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    parser.add_argument("prompt", nargs="?")
    for name in ("listen", "state", "model", "swarm", "layers", "advertise", "threads"):
        parser.add_argument(f"--{name}")
    for name in ("json", "no-lan", "no-punch", "cpu"):
        parser.add_argument(f"--{name}", action="store_true")
    args = parser.parse_args()
    if args.model == "absent":
        print("no model named absent", file=sys.stderr)
        return 1
    if args.command == "generate":
        print(json.dumps({"text": args.prompt, "swarm": args.swarm, "state": args.state}, ensure_ascii=False))
        return 0
    if args.model == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return asyncio.run(deaf(args))
    return asyncio.run(join(args))


async def deaf(args: argparse.Namespace) -> int:
    print(json.dumps({"event": "ready", "node": "x", "invite": "x", "advertise": "x", "layers": [0, 1]}), flush=True)
    await asyncio.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())

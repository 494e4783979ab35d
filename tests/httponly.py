"""A firewall that lets HTTP through and nothing else: a forwarder that looks at how a connection begins.

    python -m tests.httponly LISTEN HOST:PORT        # LISTEN host:port; prints {"event": "ready", "listen": ...}

With `proxy` in the place of HOST:PORT it is a proxy instead: it forwards what asks for an absolute URL, and CONNECT.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from swarm.base.config import parse_address

VERBS = (b"GET ", b"POST ", b"CONNECT ")


@dataclass
class Wall:
    """`passed`: first lines of what was let through; `refused`: connections that did not begin like HTTP."""

    address: tuple[str, int]
    passed: list[str] = field(default_factory=list)
    refused: int = 0


@asynccontextmanager
async def http_only(to: tuple[str, int] | None, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Wall]:
    """Forwards connections to `to`; None: a proxy, which forwards them to where each asks for."""
    wall = Wall((host, port))

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n") if await _begins_like_http(reader) else b""
            if not head:
                wall.refused += 1
                return
            line, rest = head.split(b"\r\n", 1)
            wall.passed.append(line.decode())
            target = to
            if target is None:
                verb, url, version = line.split(b" ")
                whole = url.removeprefix(b"http://")
                where, slash, path = whole.partition(b"/")
                target = parse_address(where.decode())
                head = b"" if verb == b"CONNECT" else b" ".join((verb, slash + path, version)) + b"\r\n" + rest
                if verb == b"CONNECT":
                    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            far_reader, far_writer = await asyncio.open_connection(*target)
            far_writer.write(head)
            await asyncio.wait(
                [asyncio.ensure_future(_copy(reader, far_writer)), asyncio.ensure_future(_copy(far_reader, writer))],
                return_when=asyncio.FIRST_COMPLETED,
            )
            far_writer.close()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(meet, host, port)
    async with server:
        wall.address = server.sockets[0].getsockname()[:2]
        yield wall


async def _begins_like_http(reader: asyncio.StreamReader) -> bool:
    head = b""
    while len(head) < 8:
        piece = await reader.read(8 - len(head))
        if not piece:
            return False
        head += piece
        if not any(verb.startswith(head[: len(verb)]) for verb in VERBS):
            return False
    reader._buffer[:0] = head  # type: ignore[attr-defined]
    return True


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


async def _main(listen: str, to: str) -> None:
    async with http_only(None if to == "proxy" else parse_address(to), *parse_address(listen)) as wall:
        host, port = wall.address
        print(json.dumps({"event": "ready", "listen": f"{host}:{port}"}), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))

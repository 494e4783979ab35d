"""A word with a process of this machine, by whoever may read its state folder: one question, one answer, JSON lines.

The process listens on a port of the loopback address and writes the port and a secret into `control.json` of its folder
(mode 0600): a web page or another user can reach the port and does not know the secret. A Unix socket would do without
it, but paths of sockets end at 107 bytes, and Windows' event loop has none.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import secrets
import shlex
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from swarm.base.config import user_state
from swarm.base.errors import SwarmError, UsageError
from swarm.base.files import write_whole
from swarm.base.owner import OwnerDesk, Question

log = logging.getLogger(__name__)

CONTROL = "control.json"
LINE_BYTES = 4096
ANSWER_S = 5.0
AT_ONCE = 8


@contextlib.asynccontextmanager
async def control_port(state: Path, desk: OwnerDesk) -> AsyncIterator[None]:
    """Answer `swarm admit` while this lasts; where there is no loopback address, do without."""
    secret = secrets.token_hex(32)
    room = asyncio.Semaphore(AT_ONCE)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if not room.locked():
                async with room, asyncio.timeout(ANSWER_S):
                    writer.write(json.dumps(_answer_untrusted(await reader.readline(), secret, desk)).encode() + b"\n")
                    await writer.drain()
        except (OSError, ValueError, TimeoutError):  # gone, or a line that never ends
            pass
        finally:
            writer.close()

    try:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=LINE_BYTES)
        port = server.sockets[0].getsockname()[1]
        write_whole(state / CONTROL, json.dumps({"port": port, "secret": secret}).encode())
    except OSError as error:
        log.warning("swarm admit cannot reach this node: %s", error.strerror or error)
        yield
        return
    try:
        yield
    finally:
        (state / CONTROL).unlink(missing_ok=True)
        server.close()


def admit_command(state: Path) -> str:
    """What answers this node's questions from another terminal."""
    return "swarm admit" if state == user_state() else f"swarm admit --state {shlex.quote(str(state))}"


def _answer_untrusted(line: bytes, secret: str, desk: OwnerDesk) -> dict[str, object]:
    try:
        asked = json.loads(line)
    except ValueError:
        return {"error": "expected JSON"}
    if not isinstance(asked, dict) or not isinstance(asked.get("secret"), str):
        return {"error": "expected a secret"}
    if not hmac.compare_digest(asked["secret"].encode(), secret.encode()):
        return {"error": "expected the secret of this process"}
    waiting = desk.question
    if asked.get("do") == "look":
        return {"question": None if waiting is None else {"text": waiting.text, "code": waiting.code}}
    code, yes = asked.get("code"), asked.get("yes")
    if asked.get("do") != "answer" or not isinstance(code, str) or not isinstance(yes, bool):
        return {"error": "expected look or answer"}
    try:
        desk.answer(code, yes)
    except SwarmError as error:
        return {"error": str(error)}
    return {"done": True}


async def open_question(state: Path) -> Question | None:
    """What the process of that state folder asks its owner. Raises UsageError: none runs."""
    found = (await _tell(state, {"do": "look"})).get("question")
    return Question(str(found.get("text")), str(found.get("code"))) if isinstance(found, dict) else None


async def answer_question(state: Path, code: str, yes: bool) -> None:
    """The owner's word to the process of that state folder. Raises UsageError: none runs, or it refused."""
    await _tell(state, {"do": "answer", "code": code, "yes": yes})


async def _tell(state: Path, asked: Mapping[str, object]) -> dict[str, object]:
    nobody = UsageError(f"expected a running swarm join with the state folder {state}, found none; give its --state")
    try:
        found = json.loads((state / CONTROL).read_bytes())
        port, secret = int(found["port"]), str(found["secret"])
    except (OSError, ValueError, KeyError, TypeError):
        raise nobody from None
    try:
        async with asyncio.timeout(ANSWER_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
            try:
                writer.write(json.dumps({"secret": secret, **asked}).encode() + b"\n")
                answer = json.loads(await reader.readline())
            finally:
                writer.close()
    except (OSError, ValueError, TimeoutError):
        raise nobody from None
    if not isinstance(answer, dict) or "error" in answer:
        raise UsageError(str(answer.get("error")) if isinstance(answer, dict) else "the node answered nothing known")
    return answer

"""Server-sent events with deadlines: a client that stops reading must not hold the ring."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from aiohttp import web

_BEAT = b": waiting\n\n"


class EventStream:
    """One response of server-sent events. Opened on the first write, so that errors before it keep their status."""

    content_type = "text/event-stream"

    def __init__(self, request: web.Request, write_timeout_s: float, beat_s: float) -> None:
        self._request = request
        self._write_timeout_s = write_timeout_s
        self._beat_s = beat_s
        self._lock = asyncio.Lock()
        self._beating: asyncio.Task[None] | None = None
        self._last = 0.0
        self.response: web.StreamResponse | None = None

    async def open(self, headers: Mapping[str, str]) -> None:
        """Send the status line; later headers come too late."""
        if self.response is not None:
            return
        response = web.StreamResponse(
            headers={
                "Content-Type": self.content_type,
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
                **headers,
            }
        )
        self.response = response
        await response.prepare(self._request)
        self._beating = asyncio.create_task(self._beat())

    async def send(self, data: Any, event: str | None = None) -> None:
        """One event. Raises ConnectionError when the client is gone or does not read."""
        await self._write(self.encode(data, event))

    def encode(self, data: Any, event: str | None) -> bytes:
        """One event as it goes over the wire."""
        text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        return (f"event: {event}\n" if event else "").encode() + f"data: {text}\n\n".encode()

    async def _write(self, data: bytes) -> None:
        assert self.response is not None
        async with self._lock:
            self._last = asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(self._write_timeout_s):
                    await self.response.write(data)
            except TimeoutError as exc:
                if self._request.transport is not None:
                    self._request.transport.abort()
                raise ConnectionResetError(f"the client read nothing for {self._write_timeout_s:g} s") from exc

    async def _beat(self) -> None:
        """Comment lines keep proxies from cutting a quiet stream."""
        loop = asyncio.get_running_loop()
        with suppress(ConnectionError):
            while True:
                await asyncio.sleep(self._beat_s)
                if loop.time() - self._last >= self._beat_s:
                    await self._write(_BEAT)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait([self._beating])
        if self.response is not None and kind is None:
            with suppress(ConnectionError):
                async with self._lock, asyncio.timeout(self._write_timeout_s):
                    await self.response.write_eof()

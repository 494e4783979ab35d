"""Receipts over HTTP: the file itself, and what its verification finds."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from swarm.serve.book import RunBook
from swarm.serve.errors import ApiError

MAX_RECEIPT_BYTES = 64 << 20
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")

Verify = Callable[[bytes], Mapping[str, Any]]


class Receipts:
    """Finds the receipt of a run: where the run said, else in the receipts folder (earlier runs)."""

    def __init__(self, folder: Path, book: RunBook, verify: Verify) -> None:
        self._folder = folder
        self._book = book
        self._verify = verify

    async def get(self, request: web.Request) -> web.Response:
        """GET /v1/receipts/{id}: the file, byte for byte."""
        run_id = request.match_info["id"]
        body = await asyncio.to_thread(self._read, run_id)
        headers = {"Content-Disposition": f'attachment; filename="{run_id}.json"', "Cache-Control": "no-cache"}
        return web.Response(body=body, content_type="application/json", headers=headers)

    async def verify(self, request: web.Request) -> web.Response:
        """GET /api/verify/{id}: the standing of each claim, checked now and here."""
        body = await asyncio.to_thread(self._read, request.match_info["id"])
        return web.json_response(await asyncio.to_thread(self._verify, body))

    def _read(self, run_id: str) -> bytes:
        missing = ApiError(404, f"there is no receipt {run_id[:128]!r} here", "receipt_not_found", "id")
        if not _ID.fullmatch(run_id):
            raise missing
        note = self._book.find(run_id)
        told = note.result.receipt if note is not None and note.result is not None else None
        path = Path(told) if told else self._folder / f"{run_id}.json"
        try:
            with path.open("rb") as file:
                body = file.read(MAX_RECEIPT_BYTES + 1)
        except OSError as exc:
            raise missing from exc
        if len(body) > MAX_RECEIPT_BYTES:
            raise ApiError(500, f"the receipt is larger than {MAX_RECEIPT_BYTES} bytes", "receipt_too_large")
        return body

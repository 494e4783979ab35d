"""Receipts over HTTP: the file itself, and what its verification finds."""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from receipts import ReceiptError, svg_timeline, timeline, verify
from receipts.format.document import redact
from swarm.serve.errors import ApiError
from swarm.serve.run_registry import RunBook, RunNote
from swarm.serve.web import USER

MAX_RECEIPT_BYTES = 64 << 20
TEXTS = frozenset({"prompt", "tokens", "text"})
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")

Verify = Callable[[bytes], Mapping[str, Any]]


class Receipts:
    """Finds the receipt of a run: where the run said, else in the receipts folder (earlier runs).

    A receipt may disclose what was said, so only who asked may have that. Users are told apart by their API keys alone:
    behind a proxy of this machine all have its address, so a gateway without keys hands out receipts without prompt,
    tokens and text (every signature fits as before); the whole files lie in the folder. What verifying one finds is for
    all to see, and says nothing by which a guess at the text could be confirmed.
    """

    def __init__(self, folders: Sequence[Path], books: Sequence[RunBook], verify: Verify, keyed: bool) -> None:
        self._folders = folders
        self._books = books
        self._verify = verify
        self._keyed = keyed

    async def get(self, request: web.Request) -> web.Response:
        """GET /v1/receipts/{id}: the file; byte for byte where keys say who asks."""
        run_id = request.match_info["id"]
        if not self._may_have(run_id, request):
            raise _missing(run_id)
        body = await asyncio.to_thread(self._read, run_id)
        if not self._keyed:
            body = await asyncio.to_thread(_without_texts, run_id, body)
        headers = {"Content-Disposition": f'attachment; filename="{run_id}.json"', "Cache-Control": "no-cache"}
        return web.Response(body=body, content_type="application/json", headers=headers)

    async def verify(self, request: web.Request) -> web.Response:
        """GET /api/verify/{id}: the standing of each claim, checked now and here."""
        body = await asyncio.to_thread(self._read, request.match_info["id"])
        return web.json_response(await asyncio.to_thread(self._verify, body))

    async def timeline(self, request: web.Request) -> web.Response:
        """GET /api/timeline/{id}: the run over time as an SVG, recoveries too; says no more than verifying does."""
        run_id = request.match_info["id"]
        body = await asyncio.to_thread(self._read, run_id)
        drawn = await asyncio.to_thread(_drawn, body)
        if drawn is None:
            text = f"the receipt of {run_id} is refused, so nothing is drawn; /api/verify/{run_id} says why"
            raise ApiError(409, text, "receipt_refused")
        headers = {"Cache-Control": "no-cache"}
        return web.Response(text=drawn, content_type="image/svg+xml", headers=headers)

    def _may_have(self, run_id: str, request: web.Request) -> bool:
        note = self._find(run_id)
        if note is not None:
            return note.user == request[USER]
        # Nobody remembers who asked for an earlier run; on this machine itself the files lie open anyway.
        return not self._keyed and _is_loopback(request.remote)

    def _find(self, run_id: str) -> RunNote | None:
        return next((note for book in self._books if (note := book.find(run_id)) is not None), None)

    def _read(self, run_id: str) -> bytes:
        if not _ID.fullmatch(run_id):
            raise _missing(run_id)
        note = self._find(run_id)
        told = note.result.receipt if note is not None and note.result is not None else None
        paths = [Path(told)] if told else [folder / f"{run_id}.json" for folder in self._folders]
        try:
            with next((path for path in paths if path.is_file()), paths[0]).open("rb") as file:
                body = file.read(MAX_RECEIPT_BYTES + 1)
        except OSError as exc:
            raise _missing(run_id) from exc
        if len(body) > MAX_RECEIPT_BYTES:
            raise ApiError(500, f"the receipt is larger than {MAX_RECEIPT_BYTES} bytes", "receipt_too_large")
        return body


def _drawn(body: bytes) -> str | None:
    """The picture of a receipt's run; None for one that is refused."""
    verdict = verify(body)
    if verdict.run is None or verdict.refusal is not None:
        return None
    return svg_timeline(timeline(verdict.run), f"{verdict.run.order.model.name}: {verdict.line}")


def _without_texts(run_id: str, body: bytes) -> bytes:
    try:
        return redact(body, TEXTS)
    except ReceiptError as error:
        raise _missing(run_id) from error


def _missing(run_id: str) -> ApiError:
    return ApiError(404, f"there is no receipt {run_id[:128]!r} for you here", "receipt_not_found", "id")


def _is_loopback(remote: str | None) -> bool:
    try:
        return ipaddress.ip_address(remote or "").is_loopback
    except ValueError:
        return False

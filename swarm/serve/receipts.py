"""Receipts over HTTP: the file itself, and what its verification finds."""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from receipts import ReceiptError, verify
from receipts.format.document import redact
from swarm.base.errors import UsageError
from swarm.run.recoveries import recoveries_json
from swarm.run.trace import read_trace
from swarm.run.trace_draw import Told, svg_run, told
from swarm.serve.errors import ApiError
from swarm.serve.run_registry import RunBook, RunNote
from swarm.serve.web import USER

MAX_RECEIPT_BYTES = 64 << 20
TEXTS = frozenset({"prompt", "tokens", "text"})
_DRAWING = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
"""A drawing has a style of its own, and nothing else that a browser would run or fetch."""
NOT_YOURS = "What the requester saw of this run pass by pass is shown to whoever asked for it."
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
        """GET /api/timeline/{id}: the run over time as an SVG. What the requester saw pass by pass is for whoever
        asked for the run: which guesses were right depends on the text. The rest says no more than verifying does."""
        run_id = request.match_info["id"]
        of, title = await asyncio.to_thread(self._told, run_id, self._may_have(run_id, request))
        headers = {"Cache-Control": "no-cache", "Content-Security-Policy": _DRAWING}
        return web.Response(text=svg_run(of, title), content_type="image/svg+xml", headers=headers)

    async def recoveries(self, request: web.Request) -> web.Response:
        """GET /api/recoveries/{id}: each loss of the run and how it was healed, in steps; `why` there is nothing."""
        run_id = request.match_info["id"]
        of, _ = await asyncio.to_thread(self._told, run_id, self._may_have(run_id, request))
        said: dict[str, Any] = {"run": run_id, "layers": of.run.order.model.layers, "recoveries": [], "why": of.why}
        if of.trace is not None:
            said |= {"recoveries": recoveries_json(of.trace), "why": ""}
        return web.json_response(said, headers={"Cache-Control": "no-cache"})

    def _told(self, run_id: str, whole: bool) -> tuple[Told, str]:
        """A run to draw, from its receipt and the trace beside it. Raises ApiError 404, 409 for a refused receipt."""
        path, body = self._file(run_id)
        verdict = verify(body)
        if verdict.run is None or verdict.refusal is not None:
            text = f"the receipt of {run_id} is refused, so nothing is drawn; /api/verify/{run_id} says why"
            raise ApiError(409, text, "receipt_refused")
        title = f"{verdict.run.order.model.name}: {verdict.line}"
        if not whole:
            return Told(verdict.run, None, NOT_YOURS), title
        try:
            trace = read_trace(path)
        except UsageError as error:
            return Told(verdict.run, None, f"The trace beside the receipt is not drawn: {error}"), title
        return told(verdict.run, trace), title

    def _may_have(self, run_id: str, request: web.Request) -> bool:
        note = self._find(run_id)
        if note is not None:
            return note.user == request[USER]
        # Nobody remembers who asked for an earlier run; on this machine itself the files lie open anyway.
        return not self._keyed and _is_loopback(request.remote)

    def _find(self, run_id: str) -> RunNote | None:
        return next((note for book in self._books if (note := book.find(run_id)) is not None), None)

    def _read(self, run_id: str) -> bytes:
        return self._file(run_id)[1]

    def _file(self, run_id: str) -> tuple[Path, bytes]:
        """The receipt of a run, and where it is. Raises ApiError 404."""
        if not _ID.fullmatch(run_id):
            raise _missing(run_id)
        note = self._find(run_id)
        told = note.result.receipt if note is not None and note.result is not None else None
        paths = [Path(told)] if told else [folder / f"{run_id}.json" for folder in self._folders]
        path = next((path for path in paths if path.is_file()), paths[0])
        try:
            with path.open("rb") as file:
                body = file.read(MAX_RECEIPT_BYTES + 1)
        except OSError as exc:
            raise _missing(run_id) from exc
        if len(body) > MAX_RECEIPT_BYTES:
            raise ApiError(500, f"the receipt is larger than {MAX_RECEIPT_BYTES} bytes", "receipt_too_large")
        return path, body


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

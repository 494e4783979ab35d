"""Who asked for what, and when: one JSON object a line, in a file of its own. No prompt, no answer, no secret."""

from __future__ import annotations

import json
import logging
import time
from logging.handlers import WatchedFileHandler
from pathlib import Path

from aiohttp import web

from swarm.base.errors import UsageError
from swarm.serve.web import RECEIPT, REQUEST_ID, USER


class AccessLog:
    """Appends to `path`; a file that was moved away (logrotate) is begun anew. Raises UsageError where it cannot."""

    def __init__(self, path: Path) -> None:
        try:
            self._handler = WatchedFileHandler(path, encoding="utf-8", delay=False)
        except OSError as error:
            raise UsageError(f"cannot write the access log {path}: {error.strerror}; choose another file") from error
        self._handler.setFormatter(logging.Formatter("%(message)s"))

    def observe(self, request: web.Request, status: int, seconds: float) -> None:
        """One request, once it was answered."""
        line = {
            "time": round(time.time(), 3),
            "request": request.get(REQUEST_ID),
            "key": request.get(USER),
            "address": request.remote,
            "method": request.method[:20],
            "path": request.path[:200],
            "status": status,
            "ms": round(seconds * 1000, 1),
            "receipt": request.get(RECEIPT),
        }
        self._handler.emit(logging.makeLogRecord({"msg": json.dumps(line)}))

    def close(self) -> None:
        self._handler.close()

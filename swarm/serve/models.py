"""GET /v1/models."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from swarm.serve.backend import Backend
from swarm.serve.plan import check_model


class Models:
    """The one model that this gateway serves."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._since = int(time.time())

    async def list(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [self._entry()]})

    async def get(self, request: web.Request) -> web.Response:
        check_model(request.match_info["id"], self._backend)
        return web.json_response(self._entry())

    def _entry(self) -> dict[str, Any]:
        manifest = self._backend.manifest
        return {
            "id": manifest.model,
            "object": "model",
            "created": self._since,
            "owned_by": "wanswarm",
            "context_length": manifest.context,
            "manifest_digest": manifest.digest,
        }

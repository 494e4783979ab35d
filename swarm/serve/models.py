"""Lists of models: GET /v1/models, and ollama's /api/tags and /api/ps.

A model whose swarm lost layers leaves the lists until somebody serves them again. The only model of a gateway stays:
requests for it wait for the layers, and clients that find no model do not even ask.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from swarm.serve.desks import ANY, Desk, Desks


class Models:
    """The handlers."""

    def __init__(self, desks: Desks) -> None:
        self._desks = desks
        self._since = int(time.time())

    async def list(self, request: web.Request) -> web.Response:
        """The models that are served now, then the aliases of them."""
        shown = self._served()
        entries = [self._entry(desk) for desk in shown]
        names = {desk.name: entry for desk, entry in zip(shown, entries, strict=True)}
        aliases = [
            {**names[alias.model], "id": alias.name, "root": alias.model}
            for alias in self._desks.aliases
            if alias.model in names and alias.name != ANY
        ]
        return web.json_response({"object": "list", "data": [*entries, *aliases]})

    async def get(self, request: web.Request) -> web.Response:
        """One of them by name or alias, served now or not: `state` says which."""
        return web.json_response(self._entry(self._desks.find(request.match_info["id"])))

    async def tags(self, request: web.Request) -> web.Response:
        return web.json_response({"models": [desk.ollama.entry() for desk in self._served()]})

    async def running(self, request: web.Request) -> web.Response:
        """Everything that is served is loaded, somewhere."""
        expires = datetime.fromtimestamp(self._since, UTC).isoformat()
        entries = [{**desk.ollama.entry(), "size_vram": 0, "expires_at": expires} for desk in self._served()]
        return web.json_response({"models": entries})

    def _served(self) -> Sequence[Desk]:
        """One desk for each model that is to be listed."""
        by_name: dict[str, Desk] = {}
        for name in self._desks.names:
            desk = self._desks.find(name)
            if len(self._desks.names) == 1 or desk.phase == "serving":
                by_name[name] = desk
        return list(by_name.values())

    def _entry(self, desk: Desk) -> Mapping[str, Any]:
        manifest = desk.backend.manifest
        return {
            "id": manifest.model,
            "object": "model",
            "created": self._since,
            "owned_by": "wanswarm",
            "root": manifest.model,
            "context_length": manifest.context,
            "max_model_len": manifest.context,
            "aliases": [each.name for each in self._desks.aliases if each.model == manifest.model and each.name != ANY],
            "manifest_digest": manifest.digest,
            "state": desk.phase,
            "drafter": getattr(desk.backend, "drafts", None),
        }

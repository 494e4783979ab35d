"""The dashboard's side of HTTP: page, files, live state, health, metrics. The same for gateways and nodes."""

from __future__ import annotations

from typing import Protocol

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from swarm.serve import metrics
from swarm.serve.assets import load_assets, respond
from swarm.serve.config import GatewayConfig
from swarm.serve.layer_watch import LayerWatch
from swarm.serve.state_broadcaster import StateBroadcaster
from swarm.serve.stream import EventStream


class Shows(Protocol):
    """Decides what a page is shown."""

    def hub(self, request: web.Request) -> StateBroadcaster:
        """Whose state a request asks for."""

    def layers(self, request: web.Request) -> LayerWatch:
        """Who held its layers when."""

    def own_runs(self, request: web.Request) -> frozenset[int] | None:
        """Keys of the runs of it that may be shown to whoever asks; None: all."""


class Views:
    """Handlers that only show."""

    def __init__(
        self,
        shows: Shows,
        config: GatewayConfig,
        registries: tuple[CollectorRegistry, ...],
    ) -> None:
        self._shows = shows
        self._config = config
        self._registries = registries
        self._assets = load_assets()

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/", self.page),
            web.get("/static/{name:.+}", self.file),
            web.get("/healthz", self.health),
            web.get("/health", self.health),
            web.get("/metrics", self.metrics),
            web.get("/api/state", self.state),
            web.get("/api/events", self.events),
            web.get("/api/layers", self.layers),
        ]

    async def page(self, request: web.Request) -> web.Response:
        return respond(request, self._assets, "index.html")

    async def file(self, request: web.Request) -> web.Response:
        return respond(request, self._assets, request.match_info["name"])

    async def health(self, request: web.Request) -> web.Response:
        """Alive; says no more, since it asks for no key."""
        return web.json_response({"status": "ok"})

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=metrics.render(*self._registries), headers={"Content-Type": metrics.CONTENT_TYPE})

    async def state(self, request: web.Request) -> web.Response:
        headers = {"Cache-Control": "no-store"}
        text = self._shows.hub(request).compute().shown(self._shows.own_runs(request))
        return web.Response(text=text, content_type="application/json", headers=headers)

    async def layers(self, request: web.Request) -> web.Response:
        """GET /api/layers: who held which layers when, as far back as this process knows."""
        return web.json_response(self._shows.layers(request).told(), headers={"Cache-Control": "no-store"})

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: `state` with the whole state, each time it changed."""
        hub = self._shows.hub(request)
        stream = EventStream(request, self._config.write_timeout_s, self._config.keepalive_comment_s)
        async with hub.viewer(), stream:
            await stream.open({})
            version = 0
            while (fresh := await hub.next(version)) is not None:
                version, text = fresh
                await stream.send(text.shown(self._shows.own_runs(request)), "state")
        assert stream.response is not None
        return stream.response


def state_registry(collector: Collector) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(collector)
    return registry

"""A node's own page on its own port: the same pictures, read-only, without chat, runs or anything secret."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from aiohttp import web
from prometheus_client import CollectorRegistry

from swarm.base.swarm_state import SwarmState
from swarm.serve.backend import ServedModel
from swarm.serve.config import GatewayConfig
from swarm.serve.layer_watch import LayerWatch
from swarm.serve.listen import Entrance, runner_of
from swarm.serve.metrics import RequestMetrics, StageCollector, StateCollector
from swarm.serve.snapshot import state_from
from swarm.serve.state import DashboardState
from swarm.serve.state_broadcaster import StateBroadcaster
from swarm.serve.views import Views, state_registry
from swarm.serve.web import add_headers, frame, observer
from swarm.stage.server import StageServer

# Anybody who can reach the node may look, under whatever name it has; there is nothing here to protect from a page.
VIEW_CONFIG = GatewayConfig(allow_hosts=("*",), max_connections=256)


class ShownNode(Protocol):
    """A node as its page needs to know it."""

    @property
    def stage(self) -> StageServer | None:
        """What it computes with, once it has loaded its layers."""

    def status(self) -> SwarmState:
        """The swarm as it sees it."""


class NodePage:
    """What the page of one node shows: the same to everybody who can reach it."""

    def __init__(self, node: ShownNode, manifest: ServedModel) -> None:
        self._node, self._manifest = node, manifest
        self._hub = StateBroadcaster(self)
        self.history = LayerWatch(manifest, self)

    def state(self) -> DashboardState:
        """As it is now."""
        return state_from(self._node.status(), self._manifest, "node", progress={})

    def hub(self, request: web.Request) -> StateBroadcaster:
        """The only one that there is."""
        return self._hub

    def layers(self, request: web.Request) -> LayerWatch:
        """As this node has seen it since it started."""
        return self.history

    def own_runs(self, request: web.Request) -> None:
        """Nothing is left out."""

    async def close(self, app: web.Application) -> None:
        """Let every viewer go."""
        await self._hub.close()


def make_view(node: ShownNode, manifest: ServedModel, more: Sequence[web.RouteDef] = ()) -> web.Application:
    """The application. `more`: what else the port serves, such as a relay."""
    page = NodePage(node, manifest)
    registry = CollectorRegistry()
    registry.register(StageCollector(node))
    views = Views(page, VIEW_CONFIG, (registry, state_registry(StateCollector(page))))
    app = web.Application(middlewares=[frame(VIEW_CONFIG, observer(RequestMetrics(registry)))])
    app.on_response_prepare.append(add_headers(VIEW_CONFIG))
    app.on_shutdown.append(page.close)
    app.cleanup_ctx.append(page.history.watching)
    app.add_routes(views.routes())
    app.add_routes(more)
    return app


@asynccontextmanager
async def node_view(
    node: ShownNode, manifest: ServedModel, more: Sequence[web.RouteDef] = ()
) -> AsyncIterator[Callable[[], asyncio.Protocol]]:
    """Yields what `Switchboard.http` wants: a maker of protocols for connections that begin like HTTP."""
    async with runner_of(make_view(node, manifest, more), VIEW_CONFIG) as server:
        yield Entrance(server, VIEW_CONFIG.max_connections)

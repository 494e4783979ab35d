"""A node's own page on its own port: the same pictures, read-only, without chat, runs or anything secret."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry

from swarm.serve.backend import ServedModel
from swarm.serve.config import GatewayConfig
from swarm.serve.listen import Entrance, runner_of
from swarm.serve.metrics import RequestMetrics, StageCollector, StateCollector
from swarm.serve.snapshot import Progress, state_from
from swarm.serve.state import DashboardState
from swarm.serve.state_broadcaster import StateBroadcaster
from swarm.serve.views import Views, state_registry
from swarm.serve.web import add_headers, frame, observer
from swarm.stage.server import StageServer
from swarm.stage.stats import StageCounts

# Anybody who can reach the node may look, under whatever name it has; there is nothing here to protect from a page.
VIEW_CONFIG = GatewayConfig(allow_hosts=("*",), max_connections=256)


def make_view(
    status: Callable[[], Mapping[str, Any]],
    manifest: ServedModel,
    progress: Progress = dict,
    more: Sequence[web.RouteDef] = (),
    stage: Callable[[], StageServer | None] = lambda: None,
) -> web.Application:
    """The application. `status`: as `mesh_status` tells it; `progress`: as `terminal.progress.EventLog.as_json` does.

    `more`: what else the port serves, such as a relay. `stage`: the node's stage once it has one, for its metrics.
    """

    def state() -> DashboardState:
        return state_from(status(), manifest, "node", progress=progress())

    def counts() -> StageCounts | None:
        server = stage()
        return None if server is None else server.counts

    def waiting() -> int:
        server = stage()
        return 0 if server is None else server.sessions.rows_waiting

    registry = CollectorRegistry()
    registry.register(StageCollector(counts, waiting))
    hub = StateBroadcaster(state)
    views = Views(lambda _: hub, VIEW_CONFIG, (registry, state_registry(StateCollector(state))))
    app = web.Application(middlewares=[frame(VIEW_CONFIG, observer(RequestMetrics(registry)))])
    app.on_response_prepare.append(add_headers(VIEW_CONFIG))
    app.on_shutdown.append(lambda _: hub.close())
    app.add_routes(views.routes())
    app.add_routes(more)
    return app


@asynccontextmanager
async def node_view(
    status: Callable[[], Mapping[str, Any]],
    manifest: ServedModel,
    progress: Progress = dict,
    more: Sequence[web.RouteDef] = (),
    stage: Callable[[], StageServer | None] = lambda: None,
) -> AsyncIterator[Callable[[], asyncio.Protocol]]:
    """Yields what `Switchboard.http` wants: a maker of protocols for connections that begin like HTTP."""
    async with runner_of(make_view(status, manifest, progress, more, stage), VIEW_CONFIG) as server:
        yield Entrance(server, VIEW_CONFIG.max_connections)

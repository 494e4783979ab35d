"""The gateway: everything wired into one aiohttp application, and the socket it listens on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Handler
from jinja2.exceptions import TemplateError

from swarm.base.errors import SwarmError, UsageError
from swarm.serve.access_log import AccessLog
from swarm.serve.allowance import Allowances
from swarm.serve.backend import Backend
from swarm.serve.compat.kept import KeptAnswers
from swarm.serve.compat.shapes import MISSING, NOT_OLLAMA, missing
from swarm.serve.config import GatewayConfig
from swarm.serve.desks import Desk, Desks
from swarm.serve.errors import ApiError
from swarm.serve.intake import Intake
from swarm.serve.lasting import LastingAnswers
from swarm.serve.layer_watch import LayerWatch
from swarm.serve.listen import listening
from swarm.serve.metrics import GatewayMetrics, KeyCollector, StateCollector
from swarm.serve.models import Models
from swarm.serve.openapi import describe
from swarm.serve.receipts import Receipts, Verify
from swarm.serve.snapshot import Progress
from swarm.serve.state_broadcaster import StateBroadcaster
from swarm.serve.views import Views, state_registry
from swarm.serve.web import INTAKE, USER, add_headers, frame, inviting, observer

DESKS = web.AppKey("desks", Desks)


def make_app(
    backends: Sequence[Backend], config: GatewayConfig, verify: Verify, progress: Progress = dict
) -> web.Application:
    """The application. The first of `backends` answers requests that name no model.

    `verify`: what `/api/verify/{id}` calls with a receipt's bytes, in a worker thread; returns the verdict as JSON.
    `progress`: what is under way, in the shape of `swarm.terminal.progress.EventLog.as_json`.
    Raises UsageError for aliases and limits that mean nothing, and for an access log that cannot be written.
    """
    metrics, kept, allowances = GatewayMetrics(), KeptAnswers(), Allowances(config.api_keys)
    desks = Desks(
        [Desk(backend, config, metrics, kept, allowances, progress) for backend in backends],
        config.aliases,
        config.alias_prompts,
    )
    for name, _ in config.max_running_of:
        if name not in desks.names:
            known = ", ".join(desks.names)
            raise UsageError(f"expected a limit for a model that is served here ({known}), found {name!r}")
    folders = list(dict.fromkeys(backend.receipts_dir for backend in backends))
    receipts = Receipts(folders, [desk.book for desk in desks.all], verify, bool(config.api_keys))
    registries = (
        metrics.registry,
        state_registry(StateCollector(*desks.all)),
        state_registry(KeyCollector(allowances)),
    )
    lasting = LastingAnswers(config)
    views = Views(_Pages(desks, bool(config.api_keys)), config, registries)
    log = [] if config.access_log is None else [AccessLog(config.access_log)]
    observers = [observer(metrics.requests), *(each.observe for each in log)]
    app = web.Application(middlewares=[frame(config, *observers)])
    app.on_response_prepare.append(add_headers(config))
    if config.api_keys:
        app.on_response_prepare.append(_tell_limits(allowances))
    app[DESKS] = desks
    app[INTAKE] = Intake(config.max_bodies_bytes)
    app.on_shutdown.append(_close_hubs)
    app.on_shutdown.append(lasting.close)
    app.cleanup_ctx.extend(desk.layers.watching for desk in desks.all)
    app.on_cleanup.extend(_closing(each) for each in log)
    app.add_routes(views.routes())
    app.add_routes(_asked(desks, config))
    app.add_routes(_kept(desks, config, lasting))
    app.add_routes(_shown(desks, config, receipts))
    app.add_routes([web.get("/v1/usage", _usage(allowances))])
    return app


def _asked(desks: Desks, config: GatewayConfig) -> list[web.RouteDef]:
    """What is posted to a model."""
    invite = inviting(config)
    handlers: Mapping[str, Callable[[Desk], Handler]] = {
        "/v1/chat/completions": lambda desk: desk.completions.chat,
        "/chat/completions": lambda desk: desk.llama.chat,
        "/v1/completions": lambda desk: desk.completions.text,
        "/completion": lambda desk: desk.llama.completion,
        "/completions": lambda desk: desk.llama.completion,
        "/infill": lambda desk: desk.llama.infill,
        "/chat/completions/input_tokens": lambda desk: desk.vocabulary.count,
        "/generate": lambda desk: desk.completions.generate,
        "/v1/responses": lambda desk: desk.responses.create,
        "/responses": lambda desk: desk.responses.create,
        "/v1/messages": lambda desk: desk.anthropic.messages,
        "/v1/messages/count_tokens": lambda desk: desk.anthropic.count,
        "/api/chat": lambda desk: desk.ollama.chat,
        "/api/generate": lambda desk: desk.ollama.generate,
        "/api/show": lambda desk: desk.ollama.show,
        "/tokenize": lambda desk: desk.vocabulary.tokenize,
        "/detokenize": lambda desk: desk.vocabulary.detokenize,
        "/apply-template": lambda desk: desk.vocabulary.apply_template,
    }
    return [web.post(path, desks.posted(of, config), expect_handler=invite) for path, of in handlers.items()]


def _kept(desks: Desks, config: GatewayConfig, lasting: LastingAnswers) -> list[web.RouteDef]:
    """Answers that outlive their connection: the page's."""
    path = "/api/answers/{name}"
    asked = desks.posted(lambda desk: lasting.asking(desk.completions, desk.config), config)
    return [
        web.post(path, asked, expect_handler=inviting(config)),
        web.get(path, lasting.get),
        web.delete(path, lasting.delete),
    ]


def _shown(desks: Desks, config: GatewayConfig, receipts: Receipts) -> list[web.RouteDef]:
    """What is looked up, and what is not there."""
    models, first = Models(desks), desks.first
    return [
        web.get("/v1/models", models.list),
        web.get("/models", models.list),
        web.get("/props", _props(desks)),
        web.get("/tokenizer_info", _tokenizer_info(desks)),
        web.get("/slots", _slots(desks)),
        web.get("/v1/models/{id:.+}", models.get),
        web.get("/v1/responses/{id}", first.responses.get),
        web.delete("/v1/responses/{id}", first.responses.delete),
        *(web.post(path, missing) for path in MISSING),
        web.get("/api/tags", models.tags),
        web.get("/api/ps", models.running),
        web.get("/api/version", first.ollama.version),
        *(web.post(f"/api/{name}", first.ollama.missing) for name in NOT_OLLAMA),
        web.get("/v1/receipts/{id}", receipts.get),
        web.get("/api/verify/{id}", receipts.verify),
        web.get("/api/timeline/{id}", receipts.timeline),
        web.get("/api/recoveries/{id}", receipts.recoveries),
        web.get("/api/invite", _invite(desks, config)),
        web.get("/openapi.json", _openapi(config)),
    ]


def _props(desks: Desks) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await desks.watched(request).vocabulary.props(request)

    return handler


def _tokenizer_info(desks: Desks) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await desks.watched(request).vocabulary.tokenizer_info(request)

    return handler


def _slots(desks: Desks) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await desks.watched(request).llama.slots(request)

    return handler


def _invite(desks: Desks, config: GatewayConfig) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        """GET /api/invite: how one more node comes in, for the dashboard."""
        told = desks.watched(request).invite(config.share_invite)
        return web.json_response(told, headers={"Cache-Control": "no-store"})

    return handler


@dataclass(frozen=True)
class _Pages:
    """What pages are shown, by the desk that they watch."""

    desks: Desks
    keyed: bool

    def hub(self, request: web.Request) -> StateBroadcaster:
        return self.desks.watched(request).hub

    def layers(self, request: web.Request) -> LayerWatch:
        return self.desks.watched(request).layers

    def own_runs(self, request: web.Request) -> frozenset[int] | None:
        """Those of the key that it came with; without keys nobody can be told apart."""
        return self.desks.watched(request).book.of(request[USER]) if self.keyed else None


def _usage(allowances: Allowances) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handler(request: web.Request) -> web.Response:
        """GET /v1/usage: what the key has used. Raises ApiError 404 where there are no keys."""
        account = allowances.usage(request[USER], time.monotonic())
        if account is None:
            raise ApiError(404, "this gateway asks for no keys and keeps no accounts; see --api-key", "no_keys")
        return web.json_response(account)

    return handler


def _tell_limits(allowances: Allowances) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    async def prepare(request: web.Request, response: web.StreamResponse) -> None:
        if request.method == "POST" and USER in request:
            response.headers.update(allowances.headers(request[USER], time.monotonic()))

    return prepare


def _closing(log: AccessLog) -> Callable[[web.Application], Awaitable[None]]:
    async def close(app: web.Application) -> None:
        log.close()

    return close


async def _close_hubs(app: web.Application) -> None:
    for desk in app[DESKS].all:
        await desk.hub.close()


def _openapi(config: GatewayConfig) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response(describe(config))

    return handler


def _warm(backend: Backend) -> None:
    """The first prompts cost more than others: tokenizers settle, and the process for chat templates starts."""
    backend.encode("warm")
    if getattr(backend.tokenizer, "chat_template", None):
        with suppress(SwarmError, TemplateError):  # said to whoever asks
            backend.encode_chat([{"role": "user", "content": "warm"}])


@asynccontextmanager
async def gateway(
    backend: Backend,
    config: GatewayConfig,
    verify: Verify,
    host: str = "127.0.0.1",
    port: int = 8080,
    progress: Progress = dict,
    hurry: asyncio.Event | None = None,
    others: Sequence[Backend] = (),
) -> AsyncIterator[tuple[str, int]]:
    """Serve until the block is left; yields the address that it listens on. Raises UsageError when it is taken.

    `others`: further models; requests that name none are for the first one.

    Then runs have `config.grace_s` to end, less when `hurry` is set, and new ones are refused.
    """
    # The first call may settle a tokenizer's padding and truncation, which must not happen under other threads' eyes.
    for each in (backend, *others):
        await asyncio.to_thread(_warm, each)
    app = make_app((backend, *others), config, verify, progress)
    async with listening(app, config, host, port) as address:
        try:
            yield address
        finally:
            await app[DESKS].drain(config.grace_s, hurry or asyncio.Event())

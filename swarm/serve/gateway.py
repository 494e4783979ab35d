"""The gateway: everything wired into one aiohttp application, and the socket it listens on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

from aiohttp import web
from jinja2.exceptions import TemplateError

from swarm.base.errors import SwarmError
from swarm.serve.admission import FairQueue, RequestQueue
from swarm.serve.backend import Backend
from swarm.serve.compat.anthropic import AnthropicViews
from swarm.serve.compat.ollama import OllamaViews
from swarm.serve.compat.responses import ResponsesViews
from swarm.serve.compat.shapes import MISSING, missing
from swarm.serve.completions import Completions
from swarm.serve.config import GatewayConfig
from swarm.serve.listen import listening
from swarm.serve.metrics import GatewayMetrics, StateCollector
from swarm.serve.models import Models
from swarm.serve.openapi import describe
from swarm.serve.receipts import Receipts, Verify
from swarm.serve.run_registry import RunBook
from swarm.serve.snapshot import Progress, gateway_state
from swarm.serve.state import DashboardState
from swarm.serve.state_broadcaster import StateBroadcaster
from swarm.serve.views import Views, state_registry
from swarm.serve.vocabulary import VocabularyViews
from swarm.serve.web import add_headers, frame, inviting, observer

ADMISSION = web.AppKey("admission", RequestQueue)
HUB = web.AppKey("hub", StateBroadcaster)
BOOK = web.AppKey("book", RunBook)


def make_app(backend: Backend, config: GatewayConfig, verify: Verify, progress: Progress = dict) -> web.Application:
    """The application.

    `verify`: what `/api/verify/{id}` calls with a receipt's bytes, in a worker thread; returns the verdict as JSON.
    `progress`: what is under way, in the shape of `swarm.terminal.progress.EventLog.as_json`.
    """
    config = replace(config, model_sampling=getattr(backend, "generation_defaults", config.model_sampling))
    metrics = GatewayMetrics()
    admission = RequestQueue(
        FairQueue(config.max_running, config.max_waiting, config.max_waiting_per_user), config.max_wait_s
    )
    book = RunBook()

    def state() -> DashboardState:
        return gateway_state(backend, book, admission.queue, progress())

    hub = StateBroadcaster(state)
    book.watch(hub.touch)
    completions = Completions(backend, config, admission, book, metrics)
    ollama, anthropic = OllamaViews(backend, config, completions), AnthropicViews(backend, config, completions)
    responses = ResponsesViews(backend, config, completions)
    receipts = Receipts(backend.receipts_dir, book, verify, bool(config.api_keys))
    models, vocabulary, invite = Models(backend), VocabularyViews(backend, config), inviting(config)
    views = Views(hub, config, (metrics.registry, state_registry(StateCollector(state))))
    app = web.Application(middlewares=[frame(config, observer(metrics.requests))])
    app.on_response_prepare.append(add_headers(config))
    app.on_shutdown.append(lambda _: hub.close())
    app[ADMISSION], app[HUB], app[BOOK] = admission, hub, book
    app.add_routes(views.routes())
    app.add_routes(
        [
            web.get("/v1/models", models.list),
            web.get("/v1/models/{id:.+}", models.get),
            web.post("/v1/chat/completions", completions.chat, expect_handler=invite),
            web.post("/v1/completions", completions.text, expect_handler=invite),
            web.post("/generate", completions.generate, expect_handler=invite),
            web.post("/v1/responses", responses.create, expect_handler=invite),
            web.get("/v1/responses/{id}", responses.get),
            web.delete("/v1/responses/{id}", responses.delete),
            *(web.post(path, missing) for path in MISSING),
            web.post("/v1/messages", anthropic.messages, expect_handler=invite),
            web.post("/v1/messages/count_tokens", anthropic.count, expect_handler=invite),
            web.post("/api/chat", ollama.chat, expect_handler=invite),
            web.post("/api/generate", ollama.generate, expect_handler=invite),
            web.post("/api/show", ollama.show, expect_handler=invite),
            web.get("/api/tags", ollama.tags),
            web.get("/api/ps", ollama.running),
            web.get("/api/version", ollama.version),
            *(web.post(f"/api/{name}", ollama.missing) for name in ("embed", "embeddings", "pull", "push", "create")),
            web.post("/tokenize", vocabulary.tokenize, expect_handler=invite),
            web.post("/detokenize", vocabulary.detokenize, expect_handler=invite),
            web.get("/v1/receipts/{id}", receipts.get),
            web.get("/api/verify/{id}", receipts.verify),
            web.get("/openapi.json", _openapi(config)),
        ]
    )
    return app


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
) -> AsyncIterator[tuple[str, int]]:
    """Serve until the block is left; yields the address that it listens on. Raises UsageError when it is taken.

    Then runs have `config.grace_s` to end, less when `hurry` is set, and new ones are refused.
    """
    # The first call may settle a tokenizer's padding and truncation, which must not happen under other threads' eyes.
    await asyncio.to_thread(_warm, backend)
    app = make_app(backend, config, verify, progress)
    async with listening(app, config, host, port) as address:
        try:
            yield address
        finally:
            await app[ADMISSION].drain(config.grace_s, hurry or asyncio.Event())

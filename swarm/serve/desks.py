"""Several models behind one gateway: each has a desk of handlers, and a request goes to the one that it names."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from aiohttp import web
from aiohttp.typedefs import Handler

from swarm.base.errors import UsageError
from swarm.base.swarm_state import Phase
from swarm.serve.admission import FairQueue, RequestQueue
from swarm.serve.allowance import Allowances
from swarm.serve.backend import Backend
from swarm.serve.compat.anthropic import AnthropicViews
from swarm.serve.compat.kept import KeptAnswers
from swarm.serve.compat.llama import LlamaViews
from swarm.serve.compat.ollama import OllamaViews
from swarm.serve.compat.responses import ResponsesViews
from swarm.serve.completions import Completions
from swarm.serve.config import GatewayConfig
from swarm.serve.errors import ApiError
from swarm.serve.layer_watch import LayerWatch
from swarm.serve.metrics import GatewayMetrics
from swarm.serve.run_registry import RunBook
from swarm.serve.snapshot import Progress, gateway_state, phase_from
from swarm.serve.state import DashboardState
from swarm.serve.state_broadcaster import StateBroadcaster
from swarm.serve.vocabulary import VocabularyViews
from swarm.serve.web import ALIAS_PROMPT, BODY, read_json

TAG = ":latest"
"""What ollama's clients add to a model's name."""


ANY = "*"
"""The alias for every name that is no model's: clients that insist on one of their own are answered by it."""

LOOK_S = 0.2
"""Of two swarms with one model each request goes to one that serves; looking costs a pass over all members."""


class Desk:
    """What answers for one model: its queue, its runs, its handlers."""

    def __init__(
        self,
        backend: Backend,
        config: GatewayConfig,
        metrics: GatewayMetrics,
        kept: KeptAnswers,
        allowances: Allowances,
        progress: Progress = dict,
    ) -> None:
        config = replace(config, model_sampling=getattr(backend, "generation_defaults", config.model_sampling))
        self.backend, self.config = backend, config
        most = dict(config.max_running_of).get(self.name, config.max_running)
        queue = FairQueue(most, config.max_waiting, config.max_waiting_per_user)
        self.admission = RequestQueue(queue, config.max_wait_s)
        self.book = RunBook()
        self.hub = StateBroadcaster(self)
        self.book.watch(self.hub.touch)
        self.layers = LayerWatch(backend.manifest, self, getattr(backend, "state_dir", None))
        self.under_way = 0
        """Requests that are being answered, from the moment in which they were given to this desk."""
        self._progress = progress
        self._names: tuple[str, ...] = ()
        self._look_again, self._served = -math.inf, False
        self.completions = Completions(backend, config, self.admission, self.book, metrics, allowances)
        self.ollama = OllamaViews(backend, config, self.completions)
        self.anthropic = AnthropicViews(backend, config, self.completions)
        self.responses = ResponsesViews(backend, config, self.completions, kept)
        self.vocabulary = VocabularyViews(backend, config)
        self.llama = LlamaViews(backend, config, self.completions, lambda: (queue.n_running, queue.max_running))

    @property
    def name(self) -> str:
        """The model's own name."""
        return self.backend.manifest.model

    @property
    def phase(self) -> Phase:
        """Whether its swarm holds every layer now."""
        return phase_from(self.backend.view(), self.backend.manifest.n_layers)

    def served_lately(self, now: float) -> bool:
        """Whether every layer was held when somebody last looked, `LOOK_S` ago at most."""
        if now >= self._look_again:
            self._look_again, self._served = now + LOOK_S, self.phase == "serving"
        return self._served

    def state(self) -> DashboardState:
        """What the dashboard shows of it."""
        shown = gateway_state(self.backend, self.book, self.admission.queue, self._progress())
        return replace(shown, models=self._names)

    def invite(self, share: bool) -> dict[str, str]:
        """The command that brings a node in, or why it is not told. `share`: whether a secret may be."""
        ask: Callable[[], tuple[str, bool] | None] | None = getattr(self.backend, "invite", None)
        found = ask() if ask is not None else None
        if found is None:
            return {"why": "The invite that this gateway came in by does not let nodes in."}
        text, secret = found
        if secret and not share:
            return {"why": "This page keeps the gateway's own invite to itself; swarm serve --share-invite shows it."}
        return {"command": f"swarm join --swarm {text}"}

    def told_of(self, names: tuple[str, ...]) -> None:
        """Which models there are at this gateway, for the dashboard."""
        self._names = names


@dataclass(frozen=True)
class Named:
    """A name that requests may use, and the model that it means."""

    name: str
    model: str


class Desks:
    """All desks of a gateway, by name and alias. The first one answers requests that name no model."""

    def __init__(
        self,
        desks: Sequence[Desk],
        aliases: Sequence[tuple[str, str]] = (),
        prompts: Sequence[tuple[str, str]] = (),
    ) -> None:
        """`prompts`: (alias, its system prompt). Raises UsageError for an alias of nothing, or one that is the name of
        a model, and for a prompt of no alias."""
        self.all = tuple(desks)
        self._of: dict[str, list[Desk]] = {}
        for desk in desks:
            self._of.setdefault(desk.name, []).append(desk)
        self.names = tuple(self._of)
        self.aliases = tuple(Named(*alias) for alias in aliases)
        for alias in self.aliases:
            if alias.model not in self.names:
                known = ", ".join(self.names)
                raise UsageError(
                    f"expected the alias {alias.name!r} to mean a model that is served here ({known}), found "
                    f"{alias.model!r}; give --alias NAME=MODEL"
                )
            if alias.name in self._of:
                raise UsageError(f"expected {alias.name!r} to mean one model, found two; choose another --alias")
            self._of[alias.name] = self._of[alias.model]
        self._prompts = dict(prompts)
        for name in self._prompts:
            if name not in {alias.name for alias in self.aliases}:
                raise UsageError(f"expected a prompt of an alias, found one of {name!r}; give --alias {name}=MODEL too")
        for desk in desks:
            desk.told_of(self.names)

    def prompt_of(self, name: str | None) -> str:
        """The system prompt of the alias that a request names; "" for none."""
        if name is None or not self._prompts:
            return ""
        plain = name if name in self._of else name.removesuffix(TAG)
        return self._prompts.get(plain if plain in self._of else ANY, "")

    @property
    def first(self) -> Desk:
        """Answers where no model is named."""
        return self.all[0]

    def find(self, name: str | None) -> Desk:
        """The desk for a model's name or alias; of several for one model the one that serves, and has least to do.

        Raises ApiError 404 that names what there is.
        """
        if name is None:
            return self._least(self._of[self.names[0]])
        found = self._of.get(name) or self._of.get(name.removesuffix(TAG)) or self._of.get(ANY)
        if found is None:
            known = ", ".join(repr(known) for known in self._of)
            text = f"the model {name[:200]!r} is not served here; this gateway serves {known}"
            raise ApiError(404, text, "model_not_found", "model")
        return self._least(found)

    @staticmethod
    def _least(desks: Sequence[Desk]) -> Desk:
        if len(desks) == 1:
            return desks[0]
        now = time.monotonic()
        return min(desks, key=lambda desk: (not desk.served_lately(now), desk.under_way))

    def posted(self, handler: Callable[[Desk], Handler], config: GatewayConfig, field: str = "model") -> Handler:
        """A handler of requests whose body names the model in `field`, or in "name" as ollama's older clients do."""

        async def handle(request: web.Request) -> web.StreamResponse:
            body = await read_json(request, config)
            desk = self.first
            if isinstance(body, Mapping):
                name = body.get(field)
                name = body.get("name") if name is None and request.path.startswith("/api/") else name
                if name is None or isinstance(name, str):  # anything else is for the desk to refuse in its words
                    desk = self.find(name or None)
                    request[ALIAS_PROMPT] = self.prompt_of(name or None)
                    if name:
                        body = {**body, field: desk.name}
            request[BODY] = body
            desk.under_way += 1
            try:
                return await handler(desk)(request)
            finally:
                desk.under_way -= 1

        return handle

    def watched(self, request: web.Request) -> Desk:
        """The desk that `?model=` asks for. Raises ApiError 404."""
        return self.find(request.query.get("model"))

    async def drain(self, grace_s: float, hurry: asyncio.Event) -> None:
        """Let every queue empty; see `RequestQueue.drain`."""
        async with asyncio.TaskGroup() as group:
            for desk in self.all:
                group.create_task(desk.admission.drain(grace_s, hurry))

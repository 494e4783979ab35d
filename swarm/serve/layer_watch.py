"""Looks at the swarm now and then, for its history of layers, and keeps that over a restart."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from aiohttp import web

from swarm.base.errors import UsageError
from swarm.base.files import write_whole
from swarm.serve.backend import ServedModel
from swarm.serve.layer_history import LayerHistory
from swarm.serve.state_broadcaster import HasState

log = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0
KEEP_EVERY_S = 60.0


class LayerWatch:
    """Of one model. `shown` knows the swarm as it is now; `folder`: where its history is kept, None for nowhere."""

    def __init__(self, model: ServedModel, shown: HasState, folder: Path | None = None) -> None:
        self.history = LayerHistory(model.digest, model.n_layers)
        self._shown = shown
        self._path = None if folder is None else folder / f"layers-{model.digest[:16]}.json"
        self._kept_at, self._unsaved = time.monotonic(), False

    def told(self) -> dict[str, object]:
        """The history up to now."""
        self._unsaved |= self.history.observe(time.time(), self._shown.state().swarm)
        return self.history.as_json()

    @asynccontextmanager
    async def watching(self, app: web.Application | None = None) -> AsyncIterator[None]:
        """While this is entered it looks every few seconds."""
        await asyncio.to_thread(self._restore)
        task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            await asyncio.to_thread(self._keep)

    async def _watch(self) -> None:
        while True:
            self._unsaved |= self.history.observe(time.time(), self._shown.state().swarm)
            if self._unsaved and time.monotonic() - self._kept_at > KEEP_EVERY_S:
                await asyncio.to_thread(self._keep)
            await asyncio.sleep(LOOK_EVERY_S)

    def _restore(self) -> None:
        if self._path is None:
            return
        with suppress(FileNotFoundError):
            try:
                self.history.restore(self._path.read_bytes())
            except UsageError as error:
                log.warning("the history of layers begins anew: %s", error)

    def _keep(self) -> None:
        if self._path is None:
            return
        self._kept_at, self._unsaved = time.monotonic(), False
        try:
            write_whole(self._path, self.history.to_bytes())
        except OSError as error:
            log.warning("the history of layers is not kept: %s", error)

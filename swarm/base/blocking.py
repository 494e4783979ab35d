"""Asynchronous objects for programs without an event loop: one loop in a thread of its own, asked from any thread."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, aclosing
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from swarm.base.errors import UsageError

Value = TypeVar("Value")
Inner = TypeVar("Inner", bound=AbstractAsyncContextManager[Any])
_END = object()


class Background:
    """An event loop in a thread, which holds one context manager entered for as long as it runs.

    `anyio`'s portal was weighed: it cancels a task again at every wait of its clean-up, so that a run that is left
    early could not tell its ring.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._left: Future[None] = Future()

    def start(self, entered: AbstractAsyncContextManager[object]) -> None:
        """Start the thread and enter there. Raises what that raises, with nothing left running."""
        if self._thread is not None:
            raise UsageError("expected it to be entered once, found it entered already; make another one")
        ready: Future[None] = Future()
        main = self._main(entered, ready)
        self._thread = threading.Thread(target=asyncio.run, args=(main,), name="swarm", daemon=True)
        self._thread.start()
        try:
            ready.result()
        except BaseException:
            self._end()
            self._thread.join()
            raise

    def stop(self) -> None:
        """Leave what was entered, end the thread. Raises what leaving raises. Safe to call twice."""
        if self._thread is None or self._loop is None:
            return
        self._end()
        self._thread.join()
        self._loop = None
        self._left.result()

    def call(self, what: Coroutine[Any, Any, Value]) -> Value:
        """Run a coroutine there and wait for it. Ctrl-C while waiting cancels it."""
        task = self._begin(what)
        try:
            return task.result()
        except BaseException:
            task.cancel()
            raise

    def iterate(self, make: Callable[[], AsyncGenerator[Value]]) -> Generator[Value]:
        """The items of an asynchronous generator; it is closed when this one is, before `close` returns."""
        items: queue.SimpleQueue[Value | object] = queue.SimpleQueue()

        async def pump() -> None:
            # One task for the whole generator: what it holds inside (task groups, deadlines) belongs to a task.
            try:
                async with aclosing(make()) as source:
                    async for item in source:
                        items.put(item)
            finally:
                items.put(_END)

        task = self._begin(pump())
        try:
            while (item := items.get()) is not _END:
                yield item  # type: ignore[misc]
            task.result()
        finally:
            if task.cancel():
                while items.get() is not _END:
                    pass

    def _begin(self, what: Coroutine[Any, Any, Value]) -> Future[Value]:
        if self._loop is None or not self._thread or not self._thread.is_alive():
            what.close()
            raise UsageError("expected it to be entered first, found it closed; write `with ... as client:`")
        return asyncio.run_coroutine_threadsafe(what, self._loop)

    def _end(self) -> None:
        if self._loop is not None and self._stop is not None and not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(self._stop.set)
            except RuntimeError:  # it closed meanwhile
                return

    async def _main(self, entered: AbstractAsyncContextManager[object], ready: Future[None]) -> None:
        self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        try:
            entering = asyncio.current_task()
            assert entering is not None
            early = asyncio.create_task(self._stop.wait())
            early.add_done_callback(lambda _: None if ready.done() else entering.cancel())
            async with entered:
                ready.set_result(None)
                await self._stop.wait()
        except BaseException as error:
            (self._left if ready.done() else ready).set_exception(error)
        else:
            self._left.set_result(None)
        finally:
            early.cancel()


class Blocking(Generic[Inner]):
    """`inner`, an asynchronous context manager, for programs without an event loop: entered and left in a thread."""

    def __init__(self, inner: Inner) -> None:
        self._inner = inner
        self._background = Background()

    def __enter__(self) -> Self:
        self._background.start(self._inner)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._background.stop()

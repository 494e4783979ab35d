"""Running a command's coroutine, so that Ctrl-C ends the command at once, whatever a worker thread is loading."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Coroutine
from importlib import import_module
from types import FrameType
from typing import Any, TypeVar

Result = TypeVar("Result")

INTERRUPTED = 130
"""The shell's exit code for a command that Ctrl-C ended."""


class Interrupts:
    """Whether Ctrl-C came. A KeyboardInterrupt alone does not tell: raised while a library in C imports a module, it
    becomes an ImportError that knows nothing of it."""

    def __init__(self) -> None:
        self.came = False

    def listen(self) -> None:
        """Hear SIGINT from now on, where nobody else does."""
        with contextlib.suppress(ValueError):  # not the main thread
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                signal.signal(signal.SIGINT, self)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        signal.default_int_handler(number, frame)


def load(module: str) -> None:
    """Import a module, and what it takes seconds to import, before a loop begins: inside one, Ctrl-C would be heard
    when the imports are done."""
    import_module(module)


def run_loop(work: Coroutine[Any, Any, Result]) -> Result:
    """`asyncio.run` that does not wait for worker threads at its end."""
    if isinstance(signal.getsignal(signal.SIGINT), Interrupts):  # asyncio has a way of its own, for the usual handler
        signal.signal(signal.SIGINT, signal.default_int_handler)
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    class Unwaited(ThreadPoolExecutor):
        """Worker threads that nobody waits for when the loop closes: a model half read must not hold up Ctrl-C."""

        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=True)

    async def main() -> Result:
        asyncio.get_running_loop().set_default_executor(Unwaited(thread_name_prefix="work"))
        return await work

    return asyncio.run(main())


def leave_now(code: int) -> None:
    """End the process without waiting for worker threads, which Python otherwise joins at exit. Never returns."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

"""Running a command's coroutine, so that Ctrl-C ends the command at once, whatever a worker thread is loading."""

from __future__ import annotations

import os
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")

INTERRUPTED = 130
"""The shell's exit code for a command that Ctrl-C ended."""


def run_loop(work: Coroutine[Any, Any, Result]) -> Result:
    """`asyncio.run` that does not wait for worker threads at its end."""
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

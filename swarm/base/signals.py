"""Being told to stop, on every system: SIGTERM and Ctrl-C as a call inside the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator

STOPS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def on_signals(what: Callable[[], object], numbers: tuple[signal.Signals, ...] = STOPS) -> Iterator[None]:
    """While entered, each of these signals calls `what` in the running loop, and nothing else happens.

    Windows' loops have no handlers of their own: there the process's handler is taken and hands the call over. Outside
    the main thread nothing can be heard, and nothing is changed.
    """
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as undo:
        for number in numbers:
            try:
                loop.add_signal_handler(number, what)
            except NotImplementedError:
                _by_process(loop, number, what, undo)
            except (RuntimeError, ValueError):  # not the main thread
                continue
            else:
                undo.callback(loop.remove_signal_handler, number)
        yield


def _by_process(
    loop: asyncio.AbstractEventLoop, number: signal.Signals, what: Callable[[], object], undo: contextlib.ExitStack
) -> None:
    with contextlib.suppress(ValueError):  # not the main thread
        before = signal.signal(number, lambda *_: loop.call_soon_threadsafe(what))
        undo.callback(signal.signal, number, before)

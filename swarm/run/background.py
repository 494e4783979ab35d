"""Work that takes only what processors others leave: a drafter's prefill beside the ring's own."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

import torch

NICE = 10
"""A tenth of the weight of others where processors are short, all of a processor where one is idle."""


def in_background(work: Callable[[], None]) -> None:
    """Run `work` to its end in a thread of its own, with as many compute threads as the calling one has, that yields to
    all others where the system knows priorities of threads (Linux). What it raises is raised here.

    A thread of its own, since without privileges niceness is never taken back: the steps that follow must not have it.
    """
    raised: list[BaseException] = []
    threads = torch.get_num_threads()

    def run() -> None:
        try:
            torch.set_num_threads(threads)
            if sys.platform == "linux":
                me = threading.get_native_id()
                os.setpriority(os.PRIO_PROCESS, me, min(19, os.getpriority(os.PRIO_PROCESS, me) + NICE))
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="draft-begin")
    thread.start()
    thread.join()
    if raised:
        raise raised[0]

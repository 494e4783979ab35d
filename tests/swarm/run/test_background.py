from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from swarm.run.background import NICE, in_background


def _nice() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux alone")
def test_work_yields_and_what_comes_after_it_does_not() -> None:
    found: list[tuple[int, int]] = []

    def outer() -> tuple[int, int]:
        torch.set_num_threads(1)
        before = _nice()
        in_background(lambda: found.append((_nice(), torch.get_num_threads())))
        return before, _nice()

    with ThreadPoolExecutor(1) as thread:
        before, after = thread.submit(outer).result()
    assert before == after and found == [(min(19, before + NICE), 1)]


def test_errors_come_home() -> None:
    def fails() -> None:
        raise ValueError("no room for the prompt")

    with pytest.raises(ValueError, match="no room"):
        in_background(fails)

"""Hashing beside the run: in order, in batches, and whole whenever somebody asks for the root."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from receipts.record.edge import BATCH_FRAMES, LARGE_BYTES, EdgeLog

SALT = b"\x05" * 32


def edge(executor: ThreadPoolExecutor | None, kept: list[int] | None = None) -> EdgeLog:
    keep = (lambda seq, *_: kept.append(seq)) if kept is not None else None
    return EdgeLog(0, "sender", "x", "y", SALT, executor, keep)


def test_with_and_without_a_thread_the_root_is_the_same() -> None:
    chooser = random.Random(4)
    frames = [(seq, bytes(chooser.choice([10, 400, LARGE_BYTES + 1]))) for seq in range(500)]
    kept: list[int] = []
    with ThreadPoolExecutor(1) as executor:
        beside, alone = edge(executor, kept), edge(None)
        for seq, body in frames:
            beside.frame(seq, b"head", body)
            alone.frame(seq, b"head", body)
            if chooser.random() < 0.02:
                assert beside.root() == alone.root()
        assert beside.root() == alone.root()
    assert kept == list(range(500)) and (beside.frames, beside.bytes) == (alone.frames, alone.bytes)


def test_small_frames_wait_for_each_other() -> None:
    kept: list[int] = []
    with ThreadPoolExecutor(1) as executor:
        log = edge(executor, kept)
        for seq in range(BATCH_FRAMES - 1):
            log.frame(seq, b"head", b"body")
        executor.submit(lambda: None).result()
        assert kept == []
        log.frame(BATCH_FRAMES - 1, b"head", b"body")
        executor.submit(lambda: None).result()
        assert len(kept) == BATCH_FRAMES
        log.frame(99, b"head", bytes(LARGE_BYTES + 1))
        executor.submit(lambda: None).result()
        assert kept[-1] == 99
        log.frame(100, b"head")
        log.flush()
        executor.submit(lambda: None).result()
        assert kept[-1] == 100


@pytest.mark.parametrize("late", [False, True])
def test_a_thread_that_is_gone_loses_nothing(late: bool) -> None:
    executor, alone = ThreadPoolExecutor(1), edge(None)
    log = edge(executor)
    if not late:
        executor.shutdown()
    for seq in range(3 * BATCH_FRAMES):
        log.frame(seq, b"head")
        alone.frame(seq, b"head")
    executor.shutdown()
    assert log.root() == alone.root()


def test_a_frame_that_comes_while_the_thread_stops_is_hashed() -> None:
    """The thread is slow; frames keep coming, and every flush must see them hashed in the end."""
    alone, gate = edge(None), threading.Event()
    with ThreadPoolExecutor(1) as executor:
        log = EdgeLog(0, "sender", "x", "y", SALT, executor, lambda seq, *_: gate.wait(0.001) and None)
        for seq in range(300):
            log.frame(seq, b"head")
            alone.frame(seq, b"head")
            log.flush()
        assert log.root() == alone.root()

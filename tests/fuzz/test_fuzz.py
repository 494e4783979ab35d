"""Parsers of strangers' bytes under damaged and random input: one error type, no hang, no growth.

The normal run takes some thousand inputs each, the same ones every time; the soak a million in all; marker `fuzz` hands
each target to a coverage-guided fuzzer for a minute.
"""

from __future__ import annotations

import gc
import random
import signal
import subprocess
import sys
import time
import tracemalloc
import types
from collections.abc import Callable
from contextlib import nullcontext

import pytest

from tests.fuzz.mutate import mutate
from tests.fuzz.targets import Target, targets

NAMES = sorted(targets())


MOST_SECONDS = 1.0
"""Of this thread's own computing for one input: other threads of the process, other programs and waits do not count."""


def batter(target: Target, count: int, seed: int) -> int:
    """So many mutations; returns how many were taken. Fails on any other error than the target's own."""
    rng, taken, begun = random.Random(seed), 0, 0.0

    def look(number: int, frame: types.FrameType | None) -> None:
        if (left := begun + MOST_SECONDS - time.thread_time()) > 0:
            signal.setitimer(signal.ITIMER_PROF, left)
        else:
            raise TimeoutError("computed over a second in a parser")

    before = signal.signal(signal.SIGPROF, look)
    gc.collect()
    gc.freeze()  # what other tests left behind is not gone through while a parser is timed
    try:
        for _ in range(count):
            data = mutate(target.seeds, rng)
            begun = time.thread_time()
            signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
            try:
                target.run(data)
                taken += 1
            except target.refusal:
                pass
            except Exception as exc:
                raise AssertionError(f"{type(exc).__name__}: {exc}; input {data!r}") from exc
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0.0)
    finally:
        gc.unfreeze()
        signal.signal(signal.SIGPROF, before)
    return taken


def spin(data: bytes) -> None:
    while True:
        pass


@pytest.mark.parametrize(("run", "found"), [(spin, True), (lambda data: time.sleep(1.2), False)])
def test_what_computes_for_long_is_found_and_what_a_busy_machine_delays_is_not(
    run: Callable[[bytes], None], found: bool
) -> None:
    target = Target(run, ValueError, (b"x",))
    with pytest.raises(AssertionError, match="over a second") if found else nullcontext():
        batter(target, 1, seed=1)


@pytest.mark.parametrize("name", NAMES)
def test_honest_bytes_are_taken(name: str) -> None:
    target = targets()[name]
    for seed in target.seeds:
        target.run(seed)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_bytes_are_refused_or_taken_and_nothing_else(name: str) -> None:
    target = targets()[name]
    count = 150 if target.dear else 2500
    assert batter(target, count, seed=1) < count  # not a parser that takes everything


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_kept_of_what_was_refused(name: str) -> None:
    target = targets()[name]
    count = 20 if target.dear else 300
    batter(target, count, seed=2)
    gc.collect()
    tracemalloc.start()
    try:
        batter(target, count, seed=3)
        gc.collect()
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1 << 20 and peak < 10 << 20


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", NAMES)
def test_a_million_mutations_in_all(name: str) -> None:
    target = targets()[name]
    batter(target, (20_000 if target.dear else 1_000_000) // len(NAMES) + 1, seed=4)


@pytest.mark.fuzz
@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", NAMES)
def test_a_coverage_guided_minute_finds_nothing(name: str) -> None:
    pytest.importorskip("atheris", reason="needs the extra: pip install -e '.[fuzz]'")
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", name, "--seconds", "60"], capture_output=True, text=True, timeout=170
    )
    assert done.returncode == 0, done.stderr[-2000:]

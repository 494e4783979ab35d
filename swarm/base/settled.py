"""Python's collector in a process that has loaded what it needs and goes on for days.

It looks at old objects only when a quarter as many have come since it last did, and then at all of them. Torch and
transformers are half a million objects that never die: beside them an hour of connections and runs is no quarter, so
what refers to itself and is dead was kept for hours, and the look itself held the event loop for most of a second.
"""

from __future__ import annotations

import gc

OLD = 2
"""Looks at those of middle age before one at all: after some 20,000 objects more, where Python has 80,000."""


def settle() -> None:
    """What is there stays: look at it no more, so that a look comes in time for what is made from now on, and takes
    milliseconds. For commands, whose process is theirs; a program that embeds this one decides for itself."""
    gc.collect()
    gc.freeze()
    gc.collect()  # how many old objects there are is counted in a look alone
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, OLD)


def collect() -> None:
    """Free everything that is dead, in a settled process too, which stays one."""
    settled = gc.get_freeze_count() > 0
    gc.unfreeze()
    if settled:
        settle()
    else:
        gc.collect()

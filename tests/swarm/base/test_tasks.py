"""Tasks end with their owner; what one failure does to the others is said when the owner is made."""

from __future__ import annotations

import asyncio

import pytest

from swarm.base.tasks import OwnedTasks


async def forever(ended: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append("ended")


async def fail() -> None:
    raise ValueError("broken")


async def test_leaving_ends_what_runs_and_what_was_not_begun() -> None:
    ended: list[str] = []
    async with OwnedTasks() as tasks:
        tasks.spawn(forever(ended))
        await asyncio.sleep(0)
        tasks.spawn(forever(ended))  # cancelled before its first step: never begun, and no warning of that
        assert len(tasks) == 2
    assert ended == ["ended"] and len(tasks) == 0


async def test_a_failure_ends_the_others() -> None:
    ended: list[str] = []
    with pytest.raises(ExceptionGroup, match="unhandled errors"):
        async with OwnedTasks() as tasks:
            tasks.spawn(forever(ended))
            tasks.spawn(fail())
            await asyncio.sleep(10)
    assert ended == ["ended"]


async def test_a_failure_of_tasks_that_stand_apart_is_logged_and_harms_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended: list[str] = []
    async with OwnedTasks(apart="a test") as tasks:
        tasks.spawn(forever(ended))
        await asyncio.wait([tasks.spawn(fail())])
        assert "a task of a test failed" in caplog.text and ended == []

"""How clients and nodes of the Python API end: cancelled, closed twice, entered again, left by an error, in a loop that
runs (as a notebook's), with what was asked for in no shape that can be meant."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, field_validator

import swarm
from tests.swarm.client.test_python import model as model
from tests.swarm.client.test_python import ring as ring


@pytest.fixture
def client(ring: str, tmp_path: Path) -> Iterator[swarm.Client]:
    with swarm.Client(ring, state=tmp_path, lan=False, draft="suffix") as client:
        yield client


async def idle(client: swarm.AsyncClient) -> None:
    """Until no run of it is on a ring."""
    async with asyncio.timeout(20):
        while client._inside.desk.flights():  # noqa: ASYNC110 - nobody tells of an end
            await asyncio.sleep(0.02)


LONG: dict[str, Any] = {"max_tokens": 400, "ignore_eos": True, "speculation": "plain"}


async def test_an_answer_is_cancelled_as_any_task(ring: str, tmp_path: Path) -> None:
    async with swarm.AsyncClient(ring, state=tmp_path, lan=False, draft="none") as client:
        pieces = client.stream("hello", **LONG)
        await anext(aiter(pieces))  # it is under way
        task = asyncio.create_task(client.generate("hello", **LONG))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.generate("hello", **LONG)
        await pieces.aclose()
        await pieces.aclose()
        await idle(client)
        assert (await client.generate("hello", max_tokens=2)).new_tokens == 2
    await client.__aexit__(None, None, None)
    with pytest.raises(swarm.UsageError, match="found it closed"):
        await client.generate("hello")


def test_closing_twice_is_no_error(ring: str, tmp_path: Path) -> None:
    client = swarm.Client(ring, state=tmp_path, lan=False, draft="none")
    with client:
        pieces = client.stream("hello", **LONG)
        assert next(iter(pieces))
        pieces.close()
        pieces.close()
        left = client.stream("hello", **LONG)
        assert next(iter(left))
    client.__exit__(None, None, None)
    for use in (lambda: client.generate("hello"), lambda: next(iter(client.stream("hello"))), client.__enter__):
        with pytest.raises(swarm.UsageError, match="found it (closed|entered already)"):
            use()


def test_an_error_inside_ends_the_client_and_stays_itself(ring: str, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), swarm.Client(ring, state=tmp_path, lan=False, draft="none") as client:
        next(iter(client.stream("hello", **LONG)))
        _ = 1 / 0
    with swarm.Client(ring, state=tmp_path, lan=False, draft="none") as again:  # its folder is free
        assert again.generate("hello", max_tokens=2).new_tokens == 2


async def test_a_client_that_could_not_enter_may_try_again(ring: str, tmp_path: Path) -> None:
    client = swarm.AsyncClient(ring, state=tmp_path, lan=False, draft_model=str(tmp_path / "nothing"))
    for _ in range(2):
        with pytest.raises(swarm.SwarmError, match="nothing"):
            await client.__aenter__()


async def test_a_client_without_await_works_in_a_loop_that_runs(ring: str, tmp_path: Path) -> None:
    """As in a notebook; the ring's nodes have loops of their own."""
    with swarm.Client(ring, state=tmp_path, lan=False, draft="none") as client:
        assert client.generate("hello", max_tokens=2).new_tokens == 2
        with client.stream("hello", max_tokens=3) as pieces:
            assert "".join(pieces) == pieces.result.text


class Small(BaseModel):
    """Has a rule that its schema does not tell."""

    n: Literal[1, 2]

    @field_validator("n")
    @classmethod
    def never(cls, value: int) -> int:
        raise ValueError("never right")


def test_what_comes_of_a_program_s_mistakes_is_a_swarm_error(client: swarm.Client, tmp_path: Path) -> None:
    with pytest.raises(swarm.RunError, match="that Small takes.*never right"):
        client.structured("A number?", Small, max_tokens=400)
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("max_tokens", {"max_tokens": "8"}),
        ("max_tokens", {"max_tokens": -1}),
        ("temperature", {"temperature": -1}),
        ("temperature", {"temperature": "hot"}),
        ("seed", {"seed": 1.5}),
        ("stop", {"stop": 3}),
        ("stop", {"stop": [3]}),
        ("speculation", {"speculation": "fast"}),
        ("grammar", {"grammar": "root ::= ("}),
        ("system", {"system": 3}),
        ("receipt", {"receipt": 3}),
        ("max_tokens", {"max_tokens": True}),
        ("private", {"private": [1]}),
    ]
    for word, options in wrong:
        with pytest.raises(swarm.SwarmError, match=word):
            client.generate("hello", **options)
    prompts: list[Any] = [
        3,
        None,
        b"hello",
        [3],
        [{"content": "x"}],
        [{"role": "user"}],
        {"role": "user", "content": "x"},
    ]
    for prompt in prompts:
        with pytest.raises(swarm.SwarmError, match="prompt|message|role|content"):
            client.generate(prompt, max_tokens=2)
    for schema in (3, "x", None):
        with pytest.raises(swarm.SwarmError):
            client.structured("x", schema)  # type: ignore[call-overload]
    for receipt in (tmp_path / "none.json", "none.json", 3, None):
        with pytest.raises(swarm.SwarmError):
            client.verify(receipt)  # type: ignore[arg-type]
    assert client.verify(b"no receipt").exit_code == 2
    assert client.generate("hello", max_tokens=2).new_tokens == 2  # none of it did harm


def test_invites_and_options_of_other_shapes(tmp_path: Path) -> None:
    bad: list[Any] = [3, b"swarm1x", tmp_path, ["swarm1x"]]
    for make in (swarm.Client, swarm.Node):
        for invite in bad:
            with pytest.raises(swarm.SwarmError), make(invite, state=tmp_path):
                pass
    wrong: list[dict[str, Any]] = [
        {"layers": (0,)}, {"layers": "0:15"}, {"layers": (5, 5)}, {"listen": 7700}, {"listen": "x:1"}, {"grace_s": -1},
        {"state": 3}, {"threads": 0}, {"kv_bytes": -5}, {"dtype": "int3"}, {"gpu": "x"}, {"model": 3},
    ]  # fmt: skip
    for options in wrong:
        with pytest.raises(swarm.SwarmError), swarm.Node(**{"state": tmp_path / "s", "lan": False, **options}):
            pass

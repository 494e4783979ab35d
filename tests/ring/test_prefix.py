"""A run begins from what the stages still hold of another: same output, less computed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from swarm.run.api import RunRequest
from swarm.run.prefix_cache import KeptRun, PrefixCache, common
from swarm.stage.admission import StageLimits
from tests.ring.conftest import VOCAB, reference
from tests.ring.test_ring import generate

ROUTE = ((b"a", 0, 3),)


@given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 3), max_size=8))
def test_common_is_the_longest_shared_beginning(a: list[int], b: list[int]) -> None:
    n = common(a, b)
    assert a[:n] == b[:n] and (n == min(len(a), len(b)) or a[n] != b[n])


def test_only_the_same_route_and_a_living_run_is_taken_over() -> None:
    cache = PrefixCache()
    tokens = tuple(range(50))
    cache.add(KeptRun(b"r", ROUTE, tokens, until=10.0))
    assert cache.best([*tokens, 99], ROUTE, now=1.0) == (b"r", 50)
    assert cache.best(tokens, ROUTE, now=1.0) == (b"r", 49)
    assert cache.best([*tokens, 99], ((b"b", 0, 3),), now=1.0) == (b"", 0)
    assert cache.best(tokens[:20], ROUTE, now=1.0) == (b"", 0)
    assert cache.best([*tokens, 99], ROUTE, now=11.0) == (b"", 0)


def test_only_a_run_of_the_same_name_is_taken_over() -> None:
    cache = PrefixCache()
    tokens = tuple(range(50))
    cache.add(KeptRun(b"r", ROUTE, tokens, until=10.0, name="ann"))
    assert cache.best([*tokens, 99], ROUTE, 1.0, "ann") == (b"r", 50)
    assert cache.best([*tokens, 99], ROUTE, 1.0, "bob") == (b"", 0)
    assert cache.best([*tokens, 99], ROUTE, 1.0) == (b"", 0)


async def test_a_run_without_a_name_leaves_nothing_and_takes_nothing(make_ring: Callable[..., Any]) -> None:
    prompt = tuple(random.Random(9).randrange(VOCAB) for _ in range(80))
    async with make_ring([(0, 3), (3, 6)], keep_s=60.0) as ring:
        for prefix, cached in ((None, 0), ("", 0), (None, 0), ("ann", 0), ("", 79), ("ann", 79)):
            run = await generate(ring, RunRequest(prompt, max_tokens=4, prefix=prefix))
            assert run.cached_prompt_tokens == cached
            held = [len(stage.server.sessions) for stage in ring.stages]
        assert held == [4, 4]


async def test_a_conversation_goes_on_from_what_is_held(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM
) -> None:
    prompt = tuple(random.Random(9).randrange(VOCAB) for _ in range(80))
    async with make_ring([(0, 2), (2, 4), (4, 6)], keep_s=60.0) as ring:
        first = await generate(ring, RunRequest(prompt, max_tokens=12))
        assert first.cached_prompt_tokens == 0
        longer = (*prompt, *first.token_ids, 5, 6, 7)
        second = await generate(ring, RunRequest(longer, max_tokens=12, speculation="chain"))
        assert second.cached_prompt_tokens >= 80
        assert list(second.token_ids) == reference(tiny_model, longer, 12)
        other = (*prompt[:40], 1, 2, 3)
        third = await generate(ring, RunRequest(other, max_tokens=12, speculation="plain"))
        assert third.cached_prompt_tokens == 40
        assert list(third.token_ids) == reference(tiny_model, other, 12)


async def test_a_stage_that_let_go_is_filled_again(make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM) -> None:
    prompt = tuple(random.Random(10).randrange(VOCAB) for _ in range(60))
    for victim in range(3):
        async with make_ring([(0, 2), (2, 4), (4, 6)], keep_s=60.0) as ring:
            await generate(ring, RunRequest(prompt, max_tokens=4))
            server = ring.stages[victim].server
            for session in list(server.sessions.values()):
                server.sessions.free(session)
            again = await generate(ring, RunRequest((*prompt, 3), max_tokens=8))
            assert list(again.token_ids) == reference(tiny_model, (*prompt, 3), 8)


async def test_kept_sessions_make_room_for_new_ones(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM
) -> None:
    async with make_ring([(0, 6)], limits=StageLimits(sessions=2), keep_s=60.0) as ring:
        for start in range(5):
            prompt = tuple((start + i) % VOCAB for i in range(40))
            result = await generate(ring, RunRequest(prompt, max_tokens=4))
            assert list(result.token_ids) == reference(tiny_model, prompt, 4)
        assert len(ring.stages[0].server.sessions) <= 2


def test_what_is_public_is_shared_across_names_and_nothing_else() -> None:
    tokens = tuple(range(90))
    cache = PrefixCache()
    cache.add(KeptRun(b"r", ROUTE, tokens, 10.0, "ann", 40))
    for public, found in ((60, 40), (40, 40), (35, 35), (31, 0), (0, 0)):
        assert cache.best(tokens, ROUTE, 1.0, "bob", public) == (b"r" if found else b"", found)
    assert cache.best([*tokens, 99], ROUTE, 1.0, "ann", 40) == (b"r", 90)
    cache.add(KeptRun(b"q", ROUTE, tokens, 10.0, "ann"))
    assert cache.best((*tokens[:40], 7, 7), ROUTE, 1.0, "bob", 40) == (b"r", 40)

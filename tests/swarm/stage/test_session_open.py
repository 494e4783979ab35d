"""How a stage takes its place in a ring."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from swarm.ring.opening import RingSignal, parse_word_untrusted
from swarm.stage import session_open as forming
from swarm.stage.session_open import SessionOpen


async def test_a_stage_that_kept_no_rows_says_so_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[RingSignal] = []

    async def note(peer: Any, message: Any, flow: bytes = b"") -> None:
        said.append(parse_word_untrusted(message.header))

    monkeypatch.setattr(forming, "post", note)
    me, following = b"a" * 32, b"b" * 32
    stages = [SimpleNamespace(node=me), SimpleNamespace(node=following)]
    opening = SimpleNamespace(keep=8, index=0, stages=stages, run=b"r" * 16, epoch=1, me=stages[0])
    session: Any = SimpleNamespace(
        opening=opening, fresh=False, sent=None, downstream=object(), upstream=object(), ready=asyncio.Event()
    )
    unused: Any = None
    stage = SessionOpen(unused, unused, None, unused)
    await stage.stands(
        session, RingSignal("opened", opening.run, 1, ({"fresh": True, "device": "", "layers": [2, 4]},))
    )
    (word,) = said
    assert word.refused == me and word.busy and "not kept for replay" in word.reason
    assert not session.ready.is_set()

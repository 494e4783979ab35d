"""A node that recomputes for auditors of other nodes: what it takes, what it refuses, and by what name."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from swarm.base.errors import BusyError, PeerError
from swarm.model.quant.native import library
from swarm.model.rows import no_commits
from swarm.net.channel.message import Message
from swarm.ring.frame import Frame
from swarm.ring.recomputing import (
    MOST_BYTES,
    RECOMPUTE,
    RECOMPUTE_REQUEST,
    RecomputeRequest,
    encode_request,
    encode_rows,
    frames_untrusted,
    rows_untrusted,
    with_rows,
)
from swarm.stage import recomputing
from swarm.stage.recomputing import RecomputeServer
from tests.swarm.model.exact_rows import LAYOUT, block_of, random_text, reference
from tests.swarm.model.tiny import certain

pytestmark = pytest.mark.skipif(library() is None, reason="no kernels were built: install with a C++ compiler")

MODEL, KERNELS = "ab" * 32, "cd" * 32
TEXT = random_text(5, 20)
BLOCK: Any = block_of("llama", "bfloat16")
WANT = reference(BLOCK, TEXT)
ABOUT = RecomputeRequest(MODEL, KERNELS, 1, 2, LAYOUT.scratch, LAYOUT.context, (1,), (1,), 0)


class Members:
    def admitted(self, node: bytes) -> bool:
        return node == b"member"


PEER: Any = SimpleNamespace(id=b"member")


def server(
    allowed: bool = True, fingerprint: str = KERNELS, block: Any = BLOCK, hosted: bool = True
) -> RecomputeServer:
    held = SimpleNamespace(model=MODEL, fingerprint=fingerprint, block=block) if hosted else None
    return RecomputeServer(SimpleNamespace(hosted=held), Members(), allowed)  # type: ignore[arg-type]


def frames(upto: int = 20, part: int = 8) -> list[Frame]:
    """The text as it came in to layer 1."""
    found = []
    for at in range(0, upto, part):
        rows = certain(TEXT[at : at + part], at, LAYOUT)
        found.append(with_rows(Frame(bytes(16), 0, at, no_commits(), rows), WANT[1][at : at + part].float()))
    return found


async def ask(of: RecomputeServer, about: RecomputeRequest = ABOUT, given: list[Frame] | None = None) -> torch.Tensor:
    given = frames() if given is None else given
    message = encode_request(about, given, len(given) - 1)
    (handler,) = of.handlers().values()
    answer = await handler(PEER, message)
    assert isinstance(answer, Message)
    return rows_untrusted(answer, BLOCK.hidden_size)


async def test_rows_have_the_bits_of_the_stage_whatever_their_parts() -> None:
    assert torch.equal(await ask(server()), WANT[2][16:20].float())
    assert torch.equal(await ask(server(), given=frames(part=20)), WANT[2].float())


@pytest.mark.parametrize(
    ("of", "about", "why"),
    [
        (server(allowed=False), ABOUT, "--no-recompute"),
        (server(fingerprint="ef" * 32), ABOUT, "the stage signed kernels cdcdcdcd"),
        (server(fingerprint=""), ABOUT, "kernels that were not measured"),
        (server(), replace(ABOUT, model="ef" * 32), "which this node serves"),
        (server(), replace(ABOUT, last=9), "expected layers of 0-2"),
        (server(), replace(ABOUT, first=0), "expected token ids at the head"),
        (server(), replace(ABOUT, context=60_000), "at most 256 positions"),
        (server(), replace(ABOUT, scratch=9), "multiple of 8"),
        (server(block=object()), ABOUT, "it computes on several devices"),
    ],
)
async def test_what_it_does_not_do_is_refused_by_name(of: RecomputeServer, about: RecomputeRequest, why: str) -> None:
    with pytest.raises(PeerError, match=why):
        await ask(of, about)


async def test_rows_that_fit_no_session_are_refused() -> None:
    given = frames()
    for bad in (
        replace(given[0], rows=replace(given[0].rows, slot=given[0].rows.slot + 10_000)),
        with_rows(given[0], torch.full((8, BLOCK.hidden_size), torch.inf)),
        with_rows(given[0], torch.ones(8, 3)),
        with_rows(given[0], None),
    ):
        with pytest.raises(PeerError):
            await ask(server(), given=[bad])


async def test_it_is_busy_while_it_loads_and_once_an_asker_had_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BusyError):
        await ask(server(hosted=False))
    monkeypatch.setattr(recomputing, "BURST", 30)
    few = server()
    await ask(few)
    await ask(few)
    with pytest.raises(BusyError, match="enough was recomputed"):
        await ask(few)


def test_calls_and_answers_are_bounded() -> None:
    many = [frames(part=20)[0]] * 300
    with pytest.raises(PeerError, match="too many"):
        encode_request(ABOUT, many, 0)
    with pytest.raises(PeerError, match="too large"):
        encode_rows(torch.empty(MOST_BYTES // 4 + 1, 1))
    message = encode_request(ABOUT, frames(), 0)
    request = RECOMPUTE_REQUEST.read_untrusted(message.header)
    assert [len(frame.rows) for frame in frames_untrusted(request, bytes(message.body))] == [8, 8, 4]
    with pytest.raises(PeerError, match="expected frames of"):
        frames_untrusted(request, bytes(message.body)[1:])
    with pytest.raises(PeerError):
        frames_untrusted(request, bytes(len(message.body)))
    with pytest.raises(PeerError, match="expected rows of 3"):
        rows_untrusted(encode_rows(torch.ones(2, 4)), 3)
    with pytest.raises(PeerError):
        rows_untrusted(Message(RECOMPUTE, {"rows": 2, "width": 4}, b"short"), 4)

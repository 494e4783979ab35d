"""A program over the Python API as its users write them. `make types` checks it: what is promised has the types that
are promised, and what cannot be meant is seen before it runs. It is never run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_type

from pydantic import BaseModel

import receipts
import swarm


class Wet(BaseModel):
    """An answer's form."""

    wet: bool


def ask(invite: str, state: Path) -> None:
    """Without an event loop."""
    with swarm.Client(invite, state=state, lan=False, draft="none", only=["ada"], owners=2) as client:
        assert_type(client, swarm.Client)
        assert_type(client.model, str)
        answer = client.generate("Hello", max_tokens=8, temperature=0.7, seed=3, stop=["x"], receipt=state / "r.json")
        assert_type(answer, swarm.RunResult)
        assert_type(answer.text, str)
        assert_type(answer.tokens_per_second, float)
        assert_type([stage.layers for stage in answer.ring], list[tuple[int, int]])
        with client.stream([{"role": "user", "content": "Hello"}], speculation="plain") as pieces:
            assert_type(pieces, swarm.AnswerPieces)
            for piece in pieces:
                assert_type(piece, str)
        assert_type(pieces.result, swarm.RunResult)
        assert_type(client.structured("Is water wet?", Wet), Wet)
        assert_type(client.structured("Is water wet?", {"enum": ["yes", "no"]}), Any)
        verdict = client.verify(answer, replay=True, audit=2)
        assert_type(verdict, swarm.Verdict)
        assert_type(verdict.exit_code, int)
        assert_type(verdict.refusal is None, bool)
        client.generate("Hello", max_token=8)  # type: ignore[call-arg]
        client.generate("Hello", max_tokens="8")  # type: ignore[arg-type]
        client.generate("Hello", speculation="fast")  # type: ignore[arg-type]
        client.structured("Is water wet?", 3)  # type: ignore[call-overload]
    swarm.Client(invite, stat=state)  # type: ignore[call-arg]


def look(path: Path) -> None:
    """Without a swarm."""
    verdict = receipts.verify(path.read_bytes())
    assert_type(verdict, receipts.Verdict)
    assert_type(receipts.text_report(verdict), str)


def serve(state: Path) -> None:
    """A node inside a program."""
    with swarm.Node(model="smollm2-135m-instruct", state=state, layers=(0, 15), listen=("::", 7700)) as node:
        assert_type(node.invite, str)
        assert_type(node.layers, tuple[int, int])
        node.wait()
    swarm.Node(layers=(0, 15, 30))  # type: ignore[arg-type]


async def ask_in_a_loop(invite: Path) -> None:
    """With an event loop."""

    def told(event: swarm.Progress | swarm.Notice) -> None:
        assert isinstance(event, swarm.Progress | swarm.Notice)

    try:
        async with swarm.AsyncClient(invite, report=told) as client, swarm.AsyncNode(invite) as node:
            assert_type(await client.generate("Hello"), swarm.RunResult)
            async with client.stream("Hello") as pieces:
                assert_type(pieces, swarm.AnswerStream)
                async for piece in pieces:
                    assert_type(piece, str)
            assert_type(await client.structured("Is water wet?", Wet), Wet)
            assert_type(await client.verify(invite), swarm.Verdict)
            await node.wait()
    except swarm.Unfinished as error:
        assert_type(error.result, swarm.RunResult)
    except (swarm.BusyError, swarm.CoverageError, swarm.ModelError, swarm.PeerError) as error:
        assert_type(str(error), str)

"""Order one thing and run another, so that honest stages seem to have computed wrongly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from receipts.format.opening import Bias, HeldTo, LimitedThought, Shaped
from receipts.record.requester import RequesterRecord
from swarm.base.errors import RunError
from swarm.model.sampler import Sampling
from swarm.model.sampling import Shaping
from swarm.run.api import RunRequest
from swarm.run.receipt import RunAccount
from tests.attacks.arena import OTHER, PROMPT, arena

Edit = Callable[[dict[str, Any]], dict[str, Any]]


def sampler(**changes: Any) -> Edit:
    return lambda said: said | {"sampler": replace(said["sampler"], **changes)}


def shaped(**changes: Any) -> Edit:
    return lambda said: said | {"shaped": replace(Shaped(0, 0, (), 0, (), ()), **changes)}


ORDERS: dict[str, Edit] = {
    "sampler-seed": sampler(seed="00000000000000ff"),
    "sampler-temperature": sampler(temperature_ppm=10_000),
    "sampler-top_p": sampler(top_p_ppm=500_000),
    "sampler-top_k": sampler(top_k=1),
    "sampler-min_p": sampler(min_p_ppm=900_000),
    "sampler-penalty": sampler(repetition_penalty_ppm=1_500_000),
    "shaping": lambda said: said | {"shaped": Shaped(0, 0, (Bias(3, 1_000_000),), 0, (), ())},
    "shaping-presence": shaped(presence_ppm=500_000),
    "shaping-frequency": shaped(frequency_ppm=-500_000),
    "shaping-min_tokens": shaped(min_tokens=40, ends=(9,)),
    "shaping-given": shaped(given=OTHER[:3]),
    "shaping-thought": shaped(thought=LimitedThought(3, (7,), (), True)),
    "constraint": lambda said: said | {"held_to": HeldTo("regex", "[ab]*", "llguidance 1.0", "ab" * 32)},
    "dtype": lambda said: said | {"dtype": "bfloat16"},
    "wire format": lambda said: said | {"wire": "int8"},
    "context-shorter": lambda said: said | {"max_tokens": 1},
    "context-longer": lambda said: said | {"max_tokens": 400},
    "context-prompt": lambda said: said | {"prompt": [*said["prompt"], *range(64)]},
    "prompt-longer": lambda said: said | {"prompt": [*said["prompt"], 5]},
    "prompt-shorter": lambda said: said | {"prompt": said["prompt"][:-1]},
    "plan": lambda said: (
        said | {"plan": [said["plan"][0], replace(said["plan"][1], node="ab" * 32), *said["plan"][2:]]}
    ),
}


async def test_orders_that_differ_in_one_field(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = RunRequest(PROMPT, 48, Sampling(temperature=0.7, seed=3), speculation="plain", patience_s=0.2)
    async with arena(model, tmp_path) as field:
        for name, edit in ORDERS.items():
            with monkeypatch.context() as patch:
                begin = RequesterRecord.__init__

                def edited(self: Any, author: Any, *, _edit: Edit = edit, _begin: Any = begin, **said: Any) -> None:
                    _begin(self, author, **_edit(said))

                patch.setattr(RequesterRecord, "__init__", edited)
                with pytest.raises(
                    RunError, match=f"the signed order differs from the ring in its {name.split('-')[0]}"
                ):
                    await field.run(request)
        # The other way about: the ring is to do what the order does not say, or other of its kind.
        for asked, said in (
            (Shaping(bias=((3, 1.0),), after=len(PROMPT)), None),
            (Shaping(least=40, ends=(9,), after=len(PROMPT)), Shaped(0, 0, (), 40, (8,), ())),
            (Shaping(given=OTHER[:3], after=len(PROMPT)), Shaped(0, 0, (), 0, (), OTHER[1:4])),
        ):
            with monkeypatch.context() as patch:
                begin = RequesterRecord.__init__

                def silent(self: Any, author: Any, *, _said: Any = said, _begin: Any = begin, **told: Any) -> None:
                    _begin(self, author, **told | {"shaped": _said})

                patch.setattr(RequesterRecord, "__init__", silent)
                with pytest.raises(RunError, match="the signed order differs from the ring in its shaping"):
                    await field.run(replace(request, sampling=replace(request.sampling, shaping=asked)))
        for changes in ({"epoch": 3}, {"requester": b"\x07" * 32}):
            with monkeypatch.context() as patch:
                opening = field.requester.desk._opening

                def changed(*asked: Any, opening: Any = opening, changes: Any = changes) -> Any:
                    return replace(opening(*asked), **changes)

                patch.setattr(field.requester.desk, "_opening", changed)
                with pytest.raises(RunError):
                    await field.run(request)
        result = await field.run(request)
        assert result.new_tokens == 48 and (await field.audit(result.receipt)).exit_code == 0


async def test_one_order_twice(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of the second session could be opened for the first one's receipt, where they fit no root."""
    kept: list[RunAccount] = []
    begin = RunAccount.__init__

    def again(self: Any, *about: Any) -> None:
        begin(self, *about)
        if kept:
            self.record, self.header = kept[0].record, kept[0].header
        else:
            kept.append(self)

    request = RunRequest(PROMPT, 8, speculation="plain", patience_s=0.2)
    async with arena(model, tmp_path) as field:
        with monkeypatch.context() as patch:
            patch.setattr(RunAccount, "__init__", again)
            first = await field.run(request)
            with pytest.raises(RunError, match="expected an order that this node has not taken"):
                await field.run(request)
        assert (await field.audit(first.receipt)).exit_code == 0

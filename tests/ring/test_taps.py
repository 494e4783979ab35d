"""Rings whose stages send hidden rows home to a drafter that reads them: the rows are the model's, the text is the
model's whatever the drafter says and whatever a stage sends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from draft.medusa import MedusaDrafter
from draft.suffix import SuffixDrafter
from draft.tapped_folder import TappedDrafter, load_tapped, read_tapped
from draft.tapped_text import TappedText
from swarm.model.files.checkpoint import open_model
from swarm.model.files.store import ModelStore
from swarm.net.channel.message import Message
from swarm.ring.frame import Frame
from swarm.ring.taps import TAPS, Taps, encode_taps
from swarm.run.api import RunRequest
from swarm.run.controller import Controller
from swarm.run.engine import Drafting
from swarm.stage import compute as stage_compute
from tests.draft.tapped import rows_of, save_block, save_eagle3, save_medusa
from tests.ring.conftest import TestRing, reference
from tests.ring.test_ring import generate, prompts

CUTS = [(0, 2), (2, 4), (4, 6)]
LIES = ("shape", "layer", "rows", "infinite", "wild", "huge", "garbage")
Came = list[tuple[int, torch.Tensor]]


class Tapped:
    """The drafters of a requester that has one which reads rows."""

    def __init__(self, lm: TappedDrafter, again: bool = False) -> None:
        self.lm, self.again, self.made = lm, again, list[TappedDrafter]()

    def make(self, request: RunRequest) -> Drafting:
        if request.draft == "none" or request.speculation == "plain":
            return Drafting("none")
        suffix = SuffixDrafter()
        suffix.begin(request.prompt_ids, request.sampling)
        if request.private:
            return Drafting("suffix", inline=suffix)
        drafter = self.lm if self.again else self.lm.another()
        self.made.append(drafter)
        return Drafting(f"suffix+{drafter.name}", inline=suffix, deferred=drafter)

    def give_back(self, drafting: Drafting) -> None:
        """They are made anew."""


@pytest.fixture(autouse=True)
def asked_however_badly_it_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Controller, "worth_asking", lambda self, calibration, roots, now: True)
    monkeypatch.setattr(Controller, "worth_step", lambda self, gain: True)


@pytest.fixture
def came(monkeypatch: pytest.MonkeyPatch) -> Came:
    """The rows of certain positions that drafters took up."""
    found: Came = []
    whole = TappedText.came

    def noting(self: TappedText, first: int, last: int) -> Any:
        rows = whole(self, first, last)
        found.extend(rows)
        return rows

    looked = MedusaDrafter._certain

    def looking(self: MedusaDrafter, position: int) -> torch.Tensor | None:
        row = looked(self, position)
        if row is not None:
            found.append((position, row))
        return row

    monkeypatch.setattr(TappedText, "came", noting)
    monkeypatch.setattr(MedusaDrafter, "_certain", looking)
    return found


def with_drafter(ring: TestRing, tiny_folder: Path, place: Path, kind: str, again: bool = False) -> TappedDrafter:
    checkpoint = open_model(str(tiny_folder), ModelStore(place / "models"))
    if kind in ("authors", "speculators"):
        save_eagle3(place / kind, checkpoint.config, kind)
    elif kind == "medusa":
        save_medusa(place / kind, checkpoint.config)
    else:
        save_block(place / kind, checkpoint.config, kind, [1, 3, 5])
    found = read_tapped(place / kind, checkpoint.manifest.n_layers)
    assert found is not None
    drafter = load_tapped(found, checkpoint, torch.float32, 512)
    ring.desk.target = replace(ring.desk.target, taps=drafter.layers, hidden=32)
    ring.desk._drafting = Tapped(drafter, again)
    return drafter


def check_rows(came: Came, model: Any, text: list[int], taps: tuple[int, ...], least: int) -> None:
    rows, seen = rows_of(model, text, taps), set()
    for position, row in came:
        torch.testing.assert_close(row.float(), rows[position], atol=0.06, rtol=0.02)  # bfloat16, as they travel
        seen.add(position)
    assert len(seen) >= least, (len(seen), len(text))


@pytest.mark.parametrize(
    ("kind", "speculation"),
    [("authors", "tree"), ("speculators", "stream"), ("dflash", "stream"), ("dspark", "tree"), ("medusa", "stream")],
)
async def test_the_text_is_the_models_own_and_so_are_the_rows(
    make_ring: Callable[..., Any], tiny_folder: Path, tiny_model: Any, tmp_path: Path, came: Came, kind: str,
    speculation: Any,
) -> None:  # fmt: skip
    async with make_ring(CUTS) as ring:
        drafter = with_drafter(ring, tiny_folder, tmp_path, kind)
        for prompt in prompts(2, seed=4):
            came.clear()
            result = await generate(ring, RunRequest(prompt, max_tokens=32, speculation=speculation, draft="auto"))
            expected = reference(tiny_model, prompt, 32)
            assert list(result.token_ids) == expected and result.drafter == f"suffix+{drafter.name}"
            # Medusa heads read the newest row alone: those that others settled a pass earlier are never looked at.
            least = 8 if kind == "medusa" else len(prompt) + 16
            check_rows(came, tiny_model, [*prompt, *expected], drafter.layers, least)


async def test_private_and_plain_runs_ask_for_none(
    make_ring: Callable[..., Any], tiny_folder: Path, tiny_model: Any, tmp_path: Path,
    frames_taken: list[tuple[int, Frame]],
) -> None:  # fmt: skip
    async with make_ring(CUTS) as ring:
        with_drafter(ring, tiny_folder, tmp_path, "speculators")
        prompt = prompts(1, seed=3)[0]
        for request in (
            RunRequest(prompt, max_tokens=12, draft="auto", private=1),
            RunRequest(prompt, max_tokens=12, draft="auto", speculation="plain"),
            RunRequest(prompt, max_tokens=12, draft="suffix"),
        ):
            result = await generate(ring, request)
            assert list(result.token_ids) == reference(tiny_model, prompt, 12)
    assert frames_taken and not any(frame.tap_rows for _, frame in frames_taken)


async def test_a_lost_stage_in_the_middle_is_replaced(
    make_ring: Callable[..., Any], tiny_folder: Path, tiny_model: Any, tmp_path: Path, came: Came
) -> None:
    async with make_ring([*CUTS, (2, 4)]) as ring:
        drafter = with_drafter(ring, tiny_folder, tmp_path, "speculators")
        prompt = prompts(1, seed=12)[0]
        running = asyncio.create_task(generate(ring, RunRequest(prompt, max_tokens=100, draft="auto")))
        await asyncio.sleep(0.3)
        await ring.stages[1].kill()
        expected = reference(tiny_model, prompt, 100)
        assert list((await running).token_ids) == expected
        check_rows(came, tiny_model, [*prompt, *expected], drafter.layers, len(prompt) + 50)
        assert max(position for position, _ in came) > len(prompt) + 90  # the newcomer sends its rows too


async def test_a_run_that_begins_with_another(
    make_ring: Callable[..., Any], tiny_folder: Path, tiny_model: Any, tmp_path: Path, came: Came
) -> None:
    """Stages send rows of what they compute; what they took over the drafter has from before, or does without."""
    async with make_ring(CUTS, keep_s=30.0) as ring:
        with_drafter(ring, tiny_folder, tmp_path, "speculators", again=True)
        prompt = tuple(prompts(1, seed=5)[0]) * 5
        first = await generate(ring, RunRequest(prompt, max_tokens=16, draft="auto", prefix="a"))
        longer = (*prompt, *first.token_ids, 4, 5, 6)
        came.clear()
        second = await generate(ring, RunRequest(longer, max_tokens=16, draft="auto", prefix="a"))
        assert second.cached_prompt_tokens > 32
        assert list(second.token_ids) == reference(tiny_model, longer, 16)
        assert came and min(position for position, _ in came) >= len(prompt) - 1


async def test_what_a_lying_stage_sends_costs_drafts_alone(
    make_ring: Callable[..., Any], tiny_folder: Path, tiny_model: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    lie = ""

    def lying(taps: Taps, wire: str) -> Message:
        lies = {
            "shape": replace(taps, hidden=taps.hidden[..., :7]),
            "layer": replace(taps, layers=tuple((tap + 2) % 5 + 1 for tap in taps.layers)),
            "rows": replace(taps, first=taps.first + 1),
            "infinite": replace(taps, hidden=taps.hidden * float("nan")),
            "wild": replace(taps, hidden=torch.full_like(taps.hidden, 3e38)),
            "huge": replace(taps, seq=2**53, hidden=taps.hidden.repeat(1, 9, 1)),
        }
        if lie == "garbage":
            return Message(TAPS, {"r": taps.run, "b": -4}, b"?")
        return encode_taps(lies[lie], "float32")

    monkeypatch.setattr(stage_compute, "encode_taps", lying)
    async with make_ring(CUTS) as ring:
        with_drafter(ring, tiny_folder, tmp_path, "dflash")
        prompt = prompts(1, seed=9)[0]
        for lie in LIES:  # noqa: B007
            result = await generate(ring, RunRequest(prompt, max_tokens=16, draft="auto"))
            assert list(result.token_ids) == reference(tiny_model, prompt, 16) and result.recoveries == 0

"""Tails whose drafts are lies, and heads whose files are: the text is the model's own, and the run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from draft.tapped_folder import load_tapped, read_tapped
from swarm.base.errors import ModelError
from swarm.model.block import load_block
from swarm.model.eagle import load_eagle
from swarm.model.eagle_folder import read_eagle
from swarm.model.files.checkpoint import open_model
from swarm.model.files.store import ModelStore
from swarm.ring.frame import Answer, Drafts
from swarm.run.api import RunRequest
from swarm.run.engine import Drafting
from swarm.run.proposals import fresh_calibrations
from swarm.stage import compute as stage_compute
from swarm.stage.mtp_session import MTPSession
from tests.draft.tapped import save_block, save_eagle3
from tests.ring.conftest import Drafters, TestRing, make_ring  # noqa: F401
from tests.ring.test_mtp import CUTS, reference
from tests.ring.test_ring import generate, prompts
from tests.swarm.model.mtp_models import save_foreseeing
from tests.swarm.model.tiny import random_model, tiny_config
from tests.swarm.stage.test_eagle import save_eagle

made: dict[str, Any] = {}


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foreseeing")
    made["model"] = save_foreseeing(folder, right=True)
    return folder


@pytest.fixture(autouse=True)
def nothing_else_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Drafters, "make", lambda self, request: Drafting("none"))


async def asked(ring: TestRing, prompt: tuple[int, ...], **more: Any) -> Any:
    return await generate(ring, RunRequest(prompt, max_tokens=32, draft="auto", speculation="tree", **more))


def lies(drafts: Drafts) -> dict[str, Drafts]:
    """Within what the form of an answer allows."""
    ones = np.ones_like(drafts.share)
    return {
        "another row": replace(drafts, row=drafts.row + 1),
        "a row that nobody sent": replace(drafts, row=4000),
        "sure of what is wrong": replace(drafts, token=(drafts.token + 1) % 97, share=ones),
        "one token, over and over": replace(drafts, token=np.zeros_like(drafts.token), share=ones),
        "no belief in any": replace(drafts, share=0 * ones),
        "sixteen of the same": replace(
            drafts, token=np.repeat(drafts.token[:, :1], 16, 1), share=np.repeat(ones[:, :1], 16, 1)
        ),
    }


async def test_what_a_tail_says_of_the_future_costs_speed_alone(
    make_ring: Callable[..., Any],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, lie, told = stage_compute.answer_of, "", 0

    def lying(*given: Any) -> Answer:
        nonlocal told
        answer = whole(*given)
        if answer.drafts is None:
            return answer
        told += 1
        return replace(answer, drafts=lies(answer.drafts)[lie])

    monkeypatch.setattr(stage_compute, "answer_of", lying)
    async with make_ring(CUTS) as ring:
        prompt = prompts(1, seed=4)[0]
        empty = Drafts(0, np.zeros((1, 1), np.int32), np.zeros((1, 1), np.float32))
        for lie in lies(empty):
            told = 0
            ring.desk.memory.calibrations = fresh_calibrations()  # each lie meets a requester that trusts
            result = await asked(ring, prompt)
            assert list(result.token_ids) == reference(made["model"], prompt, 32), lie
            assert result.recoveries == 0 and told, lie


async def test_a_beginning_taken_over_from_a_run_that_went_on_otherwise(
    make_ring: Callable[..., Any],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The head took over what that run drew after the last kept position: one wrong row, and no wrong text."""
    taken: list[int] = []
    whole = MTPSession.begin_from

    def watched(self: MTPSession, other: MTPSession, keep: int) -> bool:
        taken.append(keep)
        return whole(self, other, keep)

    monkeypatch.setattr(MTPSession, "begin_from", watched)
    async with make_ring(CUTS, keep_s=30.0) as ring:
        prompt = tuple(prompts(1, seed=5)[0]) * 3
        await asked(ring, prompt, prefix="a")
        for cut in (len(prompt) - 1, 40, 33):
            other = (*prompt[:cut], 7, 8, 9)
            result = await asked(ring, other, prefix="a")
            assert list(result.token_ids) == reference(made["model"], other, 32)
            assert result.cached_prompt_tokens == taken[-1] <= cut
            assert result.tokens_per_pass > 1.5  # and it drafts on


WRONG: dict[str, tuple[object, ...]] = {
    "num_attention_heads": (0, -4, 3, 10**9, "four", None),
    "num_key_value_heads": (0, 3, 10**9, "two"),
    "head_dim": (0, 7, -8, 10**9),
    "hidden_size": (0, 47, 10**9, "wide"),
    "intermediate_size": (0, 10**9, -1, None),
    "num_hidden_layers": (0, 2, 10**9, -1, "one"),
    "hidden_act": ("nonsense", 3, None),
    "rms_norm_eps": ("small", None),
    "vocab_size": (0, 10**12),
    "rope_parameters": ({"rope_type": "nonsense"}, 7, {"rope_type": "llama3"}),
    "layer_types": (["sliding_attention"] * 9, 4, ["strange"]),
    "block_size": (0, 1, 10**9, "five"),
    "mask_token_id": (-1, 10**9, None),
    "model_type": ("gpt2", None, 5),
    "draft_vocab_size": (0,),
    "dflash_config": ({"target_layer_ids": [10**9]}, {"target_layer_ids": ["a"], "mask_token_id": 3}, {}),
}


@pytest.mark.parametrize("kind", ["eagle", "eagle3", "dflash"])
def test_a_head_whose_config_lies_is_refused_by_name_or_works(kind: str, tmp_path: Path) -> None:
    model = random_model(tiny_config("llama"))
    model.save_pretrained(tmp_path / "m")
    checkpoint = open_model(str(tmp_path / "m"), ModelStore(tmp_path / "s"))
    tail = load_block(checkpoint, 0, 6, torch.device("cpu"), torch.float32)
    if kind == "eagle":
        save_eagle(tmp_path / "d")
    elif kind == "eagle3":
        save_eagle3(tmp_path / "d", model.config)
    else:
        save_block(tmp_path / "d", model.config, "authors", [1, 3, 4])
    honest = json.loads((tmp_path / "d" / "config.json").read_text())
    refused = 0
    for name, values in WRONG.items():
        for value in values:
            (tmp_path / "d" / "config.json").write_text(json.dumps({**honest, name: value}))
            try:
                if kind == "eagle":
                    found = read_eagle(tmp_path / "d")
                    assert found is not None
                    load_eagle(found, checkpoint, tail, "expanded")
                elif (folder := read_tapped(tmp_path / "d", 6)) is not None:
                    load_tapped(folder, checkpoint, torch.float32, 64)
            except ModelError:
                refused += 1
            except Exception as error:
                raise AssertionError(f"{name} = {value!r}: {error!r}") from error
    assert refused > 20

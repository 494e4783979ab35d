"""Models against transformers, cut: a selection in the normal run, all of them in the sweep."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.models.configs import VARIANTS, all_types, class_name
from tests.models.sweep import CRASH, EXACT, REFUSED, UNBUILT, WRONG, Found, drafting, sweep
from tests.models.table import dated, rows, table

EXACTLY = ["granite", "olmo", "gpt2", "phi3-longrope", "gpt_oss", "llama4_text", "deepseek_v3", "phimoe", "granite_swa"]
EXACTLY += [
    "glm_moe_dsa",
    "minimax_m3-sparse",
    "lfm2",
    "qwen3_5_text",
    "nemotron_h",
    "falcon_h1",
    "minimax",
    "zamba2",
    "deepseek_v4",
]
EXACTLY += ["gemma4_unified", "hy_v4", "bert-tied", "opt-narrow", "bloom", "falcon-alibi", "gpt_neo", "diffllama"]
"""What a middle stage once got wrong, or another session's rows changed, and attention of each kind: sinks, chunks with
scaled queries, keys wider than values, a window that only the mask has, rotation by layer;
a hybrid of each rule; layers that lie deeper, learned positions, narrow embeddings, classes that compute attention
themselves, with biases by distance and masks of their own, and attention twice a layer; rows of four streams.
The sweep has all others."""

REFUSALS = {
    "doge": "it makes a mask of its own",
    "prophetnet": "it has an encoder",
    "rwkv": "its attention function cannot be replaced",
}


@pytest.mark.parametrize("case", EXACTLY)
def test_a_cut_model_says_what_the_whole_one_says(case: str, tmp_path: Path) -> None:
    found = sweep(case, tmp_path)
    assert (found.verdict, found.reason) == (EXACT, "")


@pytest.mark.parametrize("case", ["gpt2", "qwen3_next"])
def test_and_in_bfloat16(case: str, tmp_path: Path) -> None:
    found = sweep(case, tmp_path, torch.bfloat16)
    assert (found.verdict, found.reason) == (EXACT, "")


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_right_is_refused_by_name(case: str, tmp_path: Path) -> None:
    found = sweep(case, tmp_path)
    assert found.verdict == REFUSED and REFUSALS[case] in found.reason


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", [*all_types(), *VARIANTS])
def test_every_class_is_exact_or_refused(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    found = sweep(case, tmp_path, dtype)
    assert found.name == class_name(case)
    assert found.verdict not in (WRONG, CRASH), found.reason


def test_the_page_is_read_back_as_it_was_written() -> None:
    found = [
        Found(
            "a",
            "A",
            EXACT,
            keeps="keys and values (192); rule",
            cuts="3 to 5",
            since="2026-11-27",
            drafts="small models",
        ),
        Found("b", "B", EXACT, since="2026-11-28"),
        Found("c", "C", REFUSED, "x | y < z"),
        Found("d", "D", UNBUILT, "E: why"),
    ]
    assert rows(table(found)) == found


def test_a_class_is_exact_since_the_day_that_it_was_first() -> None:
    before = [Found("a", "A", EXACT, since="2026-11-27"), Found("b", "B", REFUSED, "odd")]
    again = [Found("a", "A", EXACT), Found("b", "B", EXACT), Found("c", "C", REFUSED, "odd")]
    assert [f.since for f in dated(again, before, "2026-12-01")] == ["2026-11-27", "2026-12-01", ""]


def test_the_page_says_what_a_token_leaves_and_where_not_to_cut(tmp_path: Path) -> None:
    found = {case: sweep(case, tmp_path / case) for case in ("gemma4-tied", "lfm2")}
    assert found["gemma4-tied"].cuts == "3 to 5" and found["gemma4-tied"].keeps.startswith("keys and values (")
    assert found["lfm2"].cuts == "" and found["lfm2"].keeps.endswith("; convolution")
    assert all(one.drafts == "EAGLE, small models" for one in found.values())


def test_the_page_says_which_classes_draft_with_their_own_heads(tmp_path: Path) -> None:
    said = {case: drafting(case, tmp_path / case) for case in ("glm4_moe", "qwen3_5_text", "llama")}
    assert said == {
        "glm4_moe": "own head, EAGLE, small models",
        "qwen3_5_text": "own head, EAGLE, small models",
        "llama": "EAGLE, small models",
    }

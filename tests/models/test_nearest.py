"""Which family a refusal names."""

from __future__ import annotations

import pytest

from swarm.model.nearest import ANY, FAMILIES, nearest
from swarm.model.prune import unfit
from tests.models.sweep import EXACT, REFUSED
from tests.models.table import DOC, rows


def test_every_family_that_is_named_is_exact() -> None:
    exact = {found.name for found in rows(DOC.read_text()) if found.verdict == EXACT}
    assert {family.kind for family in (*FAMILIES, ANY)} <= exact


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("DeepseekV4ForCausalLM", "DeepSeek V3.2"),
        ("RecurrentGemmaForCausalLM", "Gemma 3"),
        ("Zamba2ForCausalLM", "Falcon-H1"),
        ("RwkvForCausalLM", "Mamba-2"),
        ("HYV4ForCausalLM", "Hunyuan V3"),
        ("Qwen4ExpForCausalLM", "Qwen3.5"),
        ("qwen9_next", "Qwen3.5"),
        ("DogeForCausalLM", "Llama"),
    ],
)
def test_a_refusal_names_its_kin(name: str, told: str) -> None:
    assert nearest(name).told == told
    assert f"the nearest that works is {told} (" in str(unfit(name, "it is odd"))


def test_nothing_refused_is_named() -> None:
    refused = {found.name for found in rows(DOC.read_text()) if found.verdict == REFUSED}
    assert refused and not refused & {nearest(name).kind for name in refused}

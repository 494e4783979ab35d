"""Families with one value of their configs changed: as transformers computes them, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.models import sweep
from tests.models.changes import FAMILIES, changes
from tests.models.configs import VARIANTS

ALWAYS: tuple[tuple[str, str, Any, str], ...] = (
    ("deepseek_v3", "n_shared_experts", 0, sweep.EXACT),
    ("deepseek_v2", "norm_topk_prob", True, sweep.REFUSED),
)


@pytest.fixture
def one_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "CUTS", ((0, 6), (0, 2, 6)))
    monkeypatch.setattr(sweep, "drafters", lambda folder, kind: "")


@pytest.mark.parametrize(("kind", "key", "value", "verdict"), ALWAYS)
def test_a_change_that_was_wrong_once(
    kind: str, key: str, value: Any, verdict: str, one_cut: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(VARIANTS, "changed", (kind, {key: value}))
    found = sweep.sweep("changed", tmp_path)
    assert found.verdict == verdict, found


@pytest.mark.soak
@pytest.mark.parametrize("kind", FAMILIES)
def test_no_change_is_computed_otherwise(
    kind: str, one_cut: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrong, exact = [], 0
    for number, (key, value) in enumerate(changes(kind)):
        monkeypatch.setitem(VARIANTS, "changed", (kind, {key: value}))
        folder = tmp_path / str(number)
        folder.mkdir()
        found = sweep.sweep("changed", folder)
        exact += found.verdict == sweep.EXACT
        if found.verdict in (sweep.WRONG, sweep.CRASH):
            wrong.append(f"{key} = {value!r}: {found.verdict}, {found.reason}")
    assert not wrong and exact

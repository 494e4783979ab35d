"""The script that is to run when a GPU is there runs without one, so that it does not rot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.bench.gpu_all import PLAN, main


def test_the_script_runs_on_a_cpu(tmp_path: Path) -> None:
    assert main(["--device", "cpu", "--tiny", "--json", str(tmp_path / "all.json")]) == 0
    found = json.loads((tmp_path / "all.json").read_text())
    assert [m["what"] for m in found["passes"]] == [
        f"pass of {n} rows, {how}" for n in (1, 16, 64) for how in ("eager", "graph")
    ]
    assert all(m["ms"] > 0 and m["roofline_ms"] > 0 for m in found["passes"])
    assert found["sessions"]["kept"] and found["notices"] == [] and found["failed"] == {}
    assert len(found["packed"]) == 18 and all(m["ms"] > 0 for m in found["packed"])
    assert set(found) >= {name for name, *_ in PLAN} - {"distilling"}
    assert found["drafter"][0]["loop_graph_ms"] > 0


def test_without_a_gpu_it_says_its_plan_and_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--json", str(tmp_path / "all.json")]) == 0
    found = json.loads((tmp_path / "all.json").read_text())
    assert [line["name"] for line in found["plan"]] == [name for name, *_ in PLAN]
    assert found["missing"][0].startswith("a CUDA device: torch") and "missing here: a CUDA" in capsys.readouterr().out


def test_a_measure_that_fails_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> object:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("tests.bench.gpu_all.passes", broken)
    assert main(["--device", "cpu", "--tiny", "--json", str(tmp_path / "all.json")]) == 1
    found = json.loads((tmp_path / "all.json").read_text())
    assert "illegal memory access" in found["failed"]["passes"] and found["sessions"]["kept"]

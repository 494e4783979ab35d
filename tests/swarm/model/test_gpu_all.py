"""The script that is to run when a GPU is there runs without one, so that it does not rot."""

from __future__ import annotations

import json
from pathlib import Path

from tests.bench.gpu_all import main


def test_the_script_runs_on_a_cpu(tmp_path: Path) -> None:
    assert main(["--device", "cpu", "--small", "--json", str(tmp_path / "all.json")]) == 0
    found = json.loads((tmp_path / "all.json").read_text())
    assert [m["what"] for m in found["passes"]] == [
        f"pass of {n} rows, {how}" for n in (1, 16, 64) for how in ("eager", "graph")
    ]
    assert all(m["ms"] > 0 and m["roofline_ms"] > 0 for m in found["passes"])
    assert found["sessions"]["kept"] and found["notices"] == []

"""Old receipts go, with their secrets; whatever else lies in the folder stays."""

from __future__ import annotations

import os
from pathlib import Path

from swarm.run.receipt_pruning import EVERY_S, Pruner


async def test_old_receipts_go_and_nothing_else(tmp_path: Path) -> None:
    old, new = "ab" * 16, "cd" * 16
    names = [f"{run}{end}" for run in (old, new) for end in (".json", ".secrets.json", ".trace.json")] + [
        "mine.json",
        "previous",
    ]
    for name in names:
        (tmp_path / name).write_text("{}")
        os.utime(tmp_path / name, (1000, 1000) if new not in name else (5000, 5000))
    await Pruner(tmp_path).prune(1.0, 9000.0)
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    pruner = Pruner(tmp_path, keep_s=3000.0)
    await pruner.prune(1.0, 6000.0)
    assert {path.name for path in tmp_path.iterdir()} == set(names[3:])
    await pruner.prune(2.0, 90_000.0)  # not again within the hour
    assert (tmp_path / f"{new}.json").exists()
    await pruner.prune(1.0 + EVERY_S, 90_000.0)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.json", "previous"}

"""Where runs lie that were kept for learning: bounds, privacy, several processes, damaged files, forgetting."""

from __future__ import annotations

import errno
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import draft.run_shelf
from draft.recorded_run import RecordedRun, to_bytes
from draft.run_shelf import RunShelf
from swarm.base.errors import UsageError
from swarm.base.events import Event, Notice

ONE, OTHER = "1" * 64, "2" * 64


def run(number: int, target: str = ONE, tokens: int = 50) -> RecordedRun:
    none = np.empty((tokens - 1, 0))
    said = np.full(tokens, number, np.int32)
    return RecordedRun(target, said, 1, True, np.zeros(tokens - 1, np.float32), none.astype(np.int32), none)


def numbers(shelf: RunShelf, target: str = ONE) -> list[int]:
    return [int(found.tokens[0]) for found in shelf.load(target, lambda event: None)]


def test_runs_come_back_oldest_first_each_once(tmp_path: Path) -> None:
    shelf = RunShelf(tmp_path / "learning")
    for at, number in enumerate((3, 1, 2, 1)):
        assert shelf.keep(run(number), 1000.0 + at)
    assert shelf.keep(run(9, OTHER), 1000.0)
    assert numbers(shelf) == [3, 1, 2] and numbers(shelf, OTHER) == [9] and shelf.targets() == [ONE, OTHER]


def test_nobody_else_may_read_them(tmp_path: Path) -> None:
    shelf = RunShelf(tmp_path / "learning")
    shelf.keep(run(1), 1000.0)
    (file,) = shelf.files(ONE)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (file.parent, shelf.of(ONE), shelf.folder)} == {0o700}


def test_the_oldest_of_all_targets_go(tmp_path: Path) -> None:
    size = len(to_bytes(run(1)))
    shelf = RunShelf(tmp_path, most_bytes=5 * size)
    for number in range(1, 8):
        assert shelf.keep(run(number, ONE if number % 2 else OTHER), 1000.0 + number)
    assert (numbers(shelf), numbers(shelf, OTHER)) == ([3, 5, 7], [4, 6])
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.run")) <= shelf.most_bytes


def test_one_that_would_push_out_all_others_is_not_kept(tmp_path: Path) -> None:
    shelf = RunShelf(tmp_path, most_bytes=len(to_bytes(run(1, tokens=500))))
    assert shelf.keep(run(1), 1000.0) and not shelf.keep(run(2, tokens=500), 1001.0)
    assert numbers(shelf) == [1]


def test_a_full_disk_fails_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = RunShelf(tmp_path)
    shelf.keep(run(1), 1000.0)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(draft.run_shelf, "write_whole", full)
    assert not shelf.keep(run(2), 1001.0)
    assert numbers(shelf) == [1]
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert not RunShelf(blocked / "learning").keep(run(1), 1000.0)


def test_damaged_files_are_named_and_left_out(tmp_path: Path) -> None:
    shelf, told = RunShelf(tmp_path), list[Event]()
    for number in (1, 2, 3):
        shelf.keep(run(number), 1000.0 + number)
    torn, foreign, _ = shelf.files(ONE)
    torn.write_bytes(torn.read_bytes()[:-3])
    foreign.write_bytes(to_bytes(run(2, OTHER)))
    (shelf.of(ONE) / "runs" / "notes.txt").write_text("no run at all")
    assert [int(found.tokens[0]) for found in shelf.load(ONE, told.append)] == [3]
    said = [event.text for event in told if isinstance(event, Notice)]
    assert len(said) == 2 and str(torn) in said[0] and "another's" in said[1] and str(foreign) in said[1]


def test_what_a_killed_process_left_is_removed_after_a_while(tmp_path: Path) -> None:
    shelf = RunShelf(tmp_path)
    shelf.keep(run(1), 1000.0)
    torn = shelf.of(ONE) / "runs" / ".half.0a"
    torn.write_bytes(b"half")
    at = torn.stat().st_mtime
    shelf.prune(at + 60)
    assert torn.exists()
    shelf.prune(at + draft.run_shelf.TORN_S + 1)
    assert not torn.exists() and numbers(shelf) == [1]


def test_several_processes_keep_at_once_within_the_bound(tmp_path: Path) -> None:
    size = len(to_bytes(run(1)))
    code = (
        "import sys; from pathlib import Path; from tests.draft.test_run_shelf import RunShelf, run\n"
        f"shelf = RunShelf(Path(sys.argv[1]), {20 * size})\n"
        "assert all(shelf.keep(run(n), 1000.0 + n) for n in range(60))"
    )
    root = Path(__file__).parents[2]
    each = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=root) for _ in range(3)]
    assert [process.wait(120) for process in each] == [0, 0, 0]
    shelf = RunShelf(tmp_path, 20 * size)
    shelf.prune(2000.0)
    assert len(shelf.files(ONE)) == 20 and min(numbers(shelf)) >= 40


def test_forgetting_removes_all_of_a_target_and_nothing_else(tmp_path: Path) -> None:
    shelf = RunShelf(tmp_path)
    for number in (1, 2):
        shelf.keep(run(number), 1000.0 + number)
    shelf.keep(run(3, OTHER), 1000.0)
    (shelf.of(ONE) / "drafter-1").mkdir()
    (shelf.of(ONE) / "current").write_text("drafter-1")
    with shelf.held(ONE), pytest.raises(UsageError, match="nobody to learn"):
        shelf.forget(ONE)
    assert shelf.forget(ONE) == 2 and shelf.targets() == [OTHER] and numbers(shelf, OTHER) == [3]
    assert shelf.forget(ONE) == 0

"""Files under the state folder are old or new, never torn: with a full disk, or killed, at any step of any write."""

from __future__ import annotations

import ast
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from receipts.check.recompute import ErrorLimits
from swarm.base import files as disk
from swarm.base.errors import SwarmError, UsageError
from swarm.base.files import TORN_S, remove_torn, whole_folder, write_whole
from swarm.discovery.state_dir import LAST_INVITE, RememberedSwarm, locked, remember_invite
from swarm.mesh.membership import Membership
from swarm.mesh.saved import PEERS_FILE, Saved, load, save
from swarm.model.files.files import keep
from swarm.net.identity import KEY_FILE, Identity
from swarm.recheck.limits import save_limits
from tests.test_imports import ROOT, sources, tree

STEPS = ("open", "write", "fsync", "close", "replace", "link")


class Faulty:
    """`os` for `swarm.base.files`, whose call number `at` among STEPS is struck by `blow`."""

    def __init__(self, at: int, blow: Callable[[], None]) -> None:
        self.at, self.blow, self.calls = at, blow, 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in STEPS:
            return real

        def step(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls - 1 != self.at:
                return real(*args, **kwargs)
            if name == "write":
                real(args[0], args[1][: len(args[1]) // 2])  # a part of it gets there
            if name == "close":
                real(*args)
            self.blow()
            raise AssertionError("the blow did nothing")

        return step


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def killed() -> None:
    os._exit(9)


SWARM = Membership.found(Identity.from_seed(bytes(32)))


def saved(version: int) -> Saved:
    return Saved(SWARM, bytes(32), "tiny", version=version)


WRITERS: dict[str, tuple[str, Callable[[Path, int], object]]] = {
    "bytes": ("x.json", lambda folder, n: write_whole(folder / "x.json", b"%d" % n * 5000)),
    "peers": (PEERS_FILE, lambda folder, n: save(folder, saved(n))),
    "model": ("m.json", lambda folder, n: keep(folder / "m.json", b"%d" % n * 500)),
    "limits": (
        "limits/" + "ab" * 32 + ".json",
        lambda folder, n: save_limits(folder, ErrorLimits("ab" * 32, f"model-{n}", {})),
    ),
}
"""What writes which file; the number tells versions apart."""


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("how", [full, killed])
def test_every_step_leaves_the_old_file_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: Callable[[], None]
) -> None:
    file, write = WRITERS[name]
    write(tmp_path, 2)
    new = (tmp_path / file).read_bytes()
    for at in range(20):
        write(tmp_path, 1)
        old = (tmp_path / file).read_bytes()
        assert old != new
        faulty = Faulty(at, how)
        struck = _struck(monkeypatch, faulty, lambda: write(tmp_path, 2))
        found = (tmp_path / file).read_bytes()
        assert found in (old, new)
        if not struck:
            assert found == new and at >= 5  # open, write, fsync, close, replace were all struck
            return
        left = {path for path in (tmp_path / file).parent.iterdir() if path.name.startswith(".")}
        assert not left or how is killed
        for path in left:
            path.unlink()
    raise AssertionError("never came through")


def _struck(monkeypatch: pytest.MonkeyPatch, faulty: Faulty, write: Callable[[], object]) -> bool:
    """Whether the fault came about; a kill happens to a child of this process."""
    if faulty.blow is killed:
        child = os.fork()
        if not child:
            disk.os = faulty  # type: ignore[assignment]
            try:
                write()
            finally:
                os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    with monkeypatch.context() as patched:
        patched.setattr(disk, "os", faulty)
        try:
            write()
        except (SwarmError, OSError) as error:
            assert "No space left" in str(error)
            return True
    return False


@pytest.mark.parametrize("how", [full, killed])
def test_a_key_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Callable[[], None]) -> None:
    for at in range(20):
        state = tmp_path / str(at)
        struck = _struck(monkeypatch, Faulty(at, how), lambda state=state: Identity.load_or_create(state))
        before = (state / KEY_FILE).read_bytes() if (state / KEY_FILE).exists() else None
        kept = Identity.load_or_create(state)
        assert before is None or Identity.load_or_create(state).id == kept.id
        assert load(state, kept.id) is None
        if not struck:
            return
    raise AssertionError("never came through")


def test_what_can_be_done_without_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk must not end a process that serves or asks because it cannot note its swarm."""
    remember_invite(tmp_path, "old")
    with monkeypatch.context() as patched:
        patched.setattr(disk, "os", Faulty(1, full))
        remember_invite(tmp_path, "new")
        patched.setattr(disk, "os", Faulty(1, full))
        RememberedSwarm(tmp_path).keep(saved(1))
    assert (tmp_path / LAST_INVITE).read_text() == "old"
    assert not (tmp_path / PEERS_FILE).exists()


def test_what_killed_processes_left_is_removed_in_time(tmp_path: Path) -> None:
    now = 1_800_000_000.0
    old, fresh = now - 2 * TORN_S, now - TORN_S / 2
    left = ".peers.json." + "0a" * 6
    places = {
        left: old, f"receipts/{left}": old, ".young." + "ab" * 6: fresh, ".control": old, "x.json": old,
        ".a." + "AB" * 6: old, f"a/b/{left}": old,
    }  # fmt: skip
    for name, at in places.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (at, at))
    (tmp_path / (".folder." + "ab" * 6)).mkdir()
    remove_torn(tmp_path, now)
    there = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert there == set(places) - {left, f"receipts/{left}"} and (tmp_path / (".folder." + "ab" * 6)).is_dir()
    with locked(tmp_path / "state") as state:  # which is when it happens
        (state / left).write_bytes(b"x")
        os.utime(state / left, (0, 0))
    with locked(state):
        assert not (state / left).exists()
    remove_torn(tmp_path / "nowhere", now)


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    out, part = tmp_path / "made", tmp_path / ".made.part"
    with pytest.raises(KeyboardInterrupt), whole_folder(out) as folder:
        (folder / "half").write_bytes(b"x")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    if not os.fork():  # killed
        with whole_folder(out) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / "left").write_bytes(b"x")
            os._exit(9)
    os.wait()
    assert not out.exists() and (part / "sub").is_dir()
    out.mkdir()  # an empty one is none
    with whole_folder(out) as folder:
        assert list(folder.iterdir()) == []
        (folder / "whole").write_bytes(b"x")
        with pytest.raises(UsageError, match="another process makes"), whole_folder(out):
            pass
    assert [path.name for path in out.iterdir()] == ["whole"] and not part.exists()
    (tmp_path / "file").write_bytes(b"x")
    for there in (out, tmp_path / "file"):
        with pytest.raises(UsageError, match="is there already"), whole_folder(there):
            pass
    assert (out / "whole").is_file()


MAY_WRITE = {
    "swarm/base/files.py": "this is where it is done",
    "swarm/discovery/state_dir.py": "the lock, whose content nobody relies on",
    "receipts/record/log.py": "grows only; a torn line is cut off",
    "swarm/ring/transparency_log.py": "opens its lock file; what it keeps goes through write_whole",
    "receipts/record/rows.py": "grows only; a torn record ends the file",
    "swarm/model/files/blobs.py": "grows only; a torn chunk is cut off, the whole is checked against its digest",
    "swarm/model/requantize.py": "a folder that is moved to its place when it is whole",
    "swarm/model/files/safetensors_file.py": "for those who say here where they write",
    "swarm/model/files/wheel.py": "a temporary folder; the file is checked, then renamed",
    "swarm/testbed/child_process.py": "logs of children",
    "swarm/testbed/bench.py": "results of benchmarks",
    "swarm/terminal/chat_commands.py": "a file that the user asked for, never over another",
    "swarm/terminal/chat_screen.py": "the lines typed, kept by prompt_toolkit",
    "swarm/cli/main.py": "nowhere: what is said to a reader that left",
    "swarm/cli/docs.py": "a page of this repository",
    "swarm/cli/verify.py": "a drawing that the user asked for",
    "draft/card.py": "a drafter in a folder of its own",
    "swarm/ring/order_check.py": "appended to; a torn end is cut off",
    "draft/collected.py": "a part, then renamed",
    "draft/corpus.py": "a part, then renamed",
    "draft/distill.py": "a part, then renamed",
    "draft/trainer_state.py": "a part, then renamed",
    "draft/samples.py": "text about files",
    "swarm/base/paths.py": "an empty file that tells whether a folder can be written, removed at once",
    "swarm/cli/fault.py": "the traceback of a fault, for a report: a torn one says enough",
    "receipts/__main__.py": "/dev/null in the place of an output that is full",
    "swarm/cli/streams.py": "/dev/null in the place of a closed stream",
}
"""Files that write otherwise than by `write_whole`, and why they may."""

WRITING = {
    "write_text",
    "write_bytes",
    "touch",
    "mkstemp",
    "NamedTemporaryFile",
    "TemporaryFile",
    "FileIO",
    "save_file",
    "save_tensors",
}


def writes(path: Path) -> Iterator[int]:
    """Lines of a source file that open something for writing."""
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in WRITING:
            yield node.lineno
        if name == "open":
            words = [a.value for a in [*node.args, *(k.value for k in node.keywords)] if isinstance(a, ast.Constant)]
            modes = [set(word) for word in words if isinstance(word, str) and set(word) <= set("rwaxbt+")]
            flags = any(isinstance(n, ast.Attribute) and n.attr in ("O_CREAT", "O_WRONLY") for n in ast.walk(node))
            if flags or any(mode & set("wax+") for mode in modes):
                yield node.lineno


def test_nobody_else_writes_files() -> None:
    found = {str(path.relative_to(ROOT)) for path in sources() if any(writes(path))}
    assert found - set(MAY_WRITE) == set()

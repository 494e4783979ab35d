"""The file by which `swarm generate` finds a gateway of its user: whose it is, whether it still holds, what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.base.errors import PeerError
from swarm.client.local_gateway import (
    FOLDER,
    LocalGateway,
    ServedSwarm,
    WantedSwarm,
    announced,
    find_served,
    gateway_untrusted,
    running,
)

A = ServedSwarm("aa" * 10, "tiny", "0f" * 32, sampling={"temperature": 0.5, "top_k": 20})
B = ServedSwarm("bb" * 10, "other", "1f" * 32, searched=True)
HERE = LocalGateway("http://localhost:8080", (A, B), "s3cret", True)
LEFT = """
import os, sys
from pathlib import Path
from swarm.client.local_gateway import announced, gateway_untrusted
with announced(Path(sys.argv[1]), gateway_untrusted(sys.stdin.buffer.read())):
    os._exit(1)
"""


def test_a_gateway_is_found_while_it_runs(tmp_path: Path) -> None:
    assert running(tmp_path) == ((), ())
    with announced(tmp_path, HERE):
        [path] = (tmp_path / FOLDER).iterdir()
        assert path.stat().st_mode & 0o777 == 0o600
        assert running(tmp_path) == ((HERE,), ())
    assert running(tmp_path) == ((), ())
    assert list((tmp_path / FOLDER).iterdir()) == []


def test_what_a_killed_gateway_left_is_removed(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", LEFT, str(tmp_path)], input=HERE.as_json(), timeout=60)
    [left] = (tmp_path / FOLDER).iterdir()
    mine = left.rename(left.with_name(f"{os.getpid()}.json"))  # the number is some living process's by now
    found, [wrong] = running(tmp_path)
    assert found == () and "one that is gone" in wrong
    assert not mine.exists()
    with announced(tmp_path, HERE):
        assert running(tmp_path) == ((HERE,), ())


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="modes and owners are of POSIX")
def test_files_that_others_may_write_or_own_are_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with announced(tmp_path, HERE):
        [path] = (tmp_path / FOLDER).iterdir()
        for mode in (0o620, 0o604):
            path.chmod(mode)
            found, [wrong] = running(tmp_path)
            assert found == () and f"found {mode:04o}" in wrong
        path.chmod(0o600)
        user = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
        found, [wrong] = running(tmp_path)
        assert found == () and f"found one of {user}" in wrong
        monkeypatch.undo()
        path.rename(tmp_path / "elsewhere.json")
        path.symlink_to(tmp_path / "elsewhere.json")
        found, [_] = running(tmp_path)
        assert found == ()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 60_000,
        HERE.as_json().replace(b'"http', b"7, "),
        HERE.as_json().replace(b"0.5", b'"hot"'),
        HERE.as_json().replace(b"localhost", b"local\\nhost"),
        HERE.as_json() + b" " * (1 << 16),
    ],
)
def test_nonsense_is_named(data: bytes) -> None:
    with pytest.raises(PeerError):
        gateway_untrusted(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_gateway_or_a_peer_error(data: bytes) -> None:
    try:
        gateway_untrusted(data)
    except PeerError:
        pass
    assert gateway_untrusted(HERE.as_json()) == HERE


def test_the_swarm_that_would_be_asked_is_served() -> None:
    assert find_served([HERE], WantedSwarm(A.swarm, A.digest[:32])) == (HERE, A)
    assert find_served([HERE], WantedSwarm(last=A.swarm)) == (HERE, A)
    assert find_served([HERE], WantedSwarm()) == (HERE, B)  # found by the search that would be made
    for wanted in (WantedSwarm(search=False), WantedSwarm("cc" * 10, A.digest[:32]), WantedSwarm(A.swarm, "77" * 16)):
        assert find_served([HERE], wanted) == "no gateway that runs here serves this swarm"
    assert find_served([], WantedSwarm()) == "no gateway runs here"


def test_one_model_of_two_swarms_is_not_asked_for() -> None:
    both = LocalGateway("http://localhost:1", (A, replace(A, swarm="cc" * 10)))
    why = find_served([both], WantedSwarm(A.swarm, A.digest[:32]))
    assert isinstance(why, str) and "several swarms" in why
    assert find_served([both, HERE], WantedSwarm(A.swarm, A.digest[:32])) == (HERE, A)

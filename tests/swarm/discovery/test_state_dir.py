"""The state folder belongs to one process; requesters get one each."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarm.base.errors import UsageError
from swarm.discovery.state_dir import locked, requester_folder


def test_a_folder_is_held_by_one(tmp_path: Path) -> None:
    with locked(tmp_path / "s") as folder:
        with pytest.raises(UsageError, match="is in use by process"), locked(folder):
            pass
    with locked(tmp_path / "s"):
        pass


def test_requesters_at_once_get_folders_of_their_own(tmp_path: Path) -> None:
    with requester_folder(tmp_path) as one, requester_folder(tmp_path) as two:
        assert one != two
    with requester_folder(tmp_path) as again:
        assert again == one


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="choose another --state"), locked(tmp_path / "file" / "s"):
        pass

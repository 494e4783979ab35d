"""`swarm generate` says what it waits for before it waits."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

from swarm.cli import main
from swarm.cli.ask import AWAITED


@pytest.mark.parametrize(("words", "said"), [((), AWAITED + "\n"), (("--json",), "")])
def test_what_is_awaited_is_said_before_anything_is_imported(
    words: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "swarm.client.client", None)  # its import fails, as whatever comes after might
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where the story of a fault is kept
    assert main(["generate", "hi", "--no-lan", "--state", str(tmp_path), *words]) == 1
    assert capsys.readouterr().err.partition("swarm: fault of the program")[0] == said

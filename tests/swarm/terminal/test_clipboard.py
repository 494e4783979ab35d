"""Into the clipboard: by the first program that takes it, else by the terminal."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest

from swarm.cli.invite import too_large
from swarm.mesh.invite import qr_text
from swarm.terminal.clipboard import copy


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def program(folder: Path, name: str, does: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{does}\n")
    path.chmod(0o755)
    return name


def test_a_program_without_its_desktop_is_passed_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    without = program(tmp_path, "wayland", "exit 1")
    taking = program(tmp_path, "desktop", f'test "$1" = -i && cat > {tmp_path}/taken')
    terminal = Terminal()
    assert copy("swarm1abc", terminal, [["absent"], [without], [taking, "-i"]]) == taking
    assert (tmp_path / "taken").read_text() == "swarm1abc" and terminal.getvalue() == ""


def test_without_programs_the_terminal_is_asked_and_a_pipe_is_not(tmp_path: Path) -> None:
    terminal = Terminal()
    assert "OSC 52" in (copy("swarm1abc", terminal, [["absent"]]) or "")
    begin, end = "\x1b]52;c;", "\x07"
    told = terminal.getvalue()
    assert told.startswith(begin) and told.endswith(end)
    assert base64.b64decode(told[len(begin) : -len(end)]) == b"swarm1abc"
    assert copy("swarm1abc", io.StringIO(), [["absent"]]) is None


def test_a_qr_code_that_the_terminal_cuts_is_named() -> None:
    drawn = qr_text("swarm1" + "a" * 370)
    rows = drawn.strip("\n").splitlines()
    assert too_large(drawn, len(rows[0]), len(rows) + 1) is None
    for columns, lines in ((len(rows[0]) - 1, 99), (200, len(rows))):
        assert f"takes {len(rows[0])} columns and {len(rows)} lines" in (too_large(drawn, columns, lines) or "")

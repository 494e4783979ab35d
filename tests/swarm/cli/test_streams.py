"""Streams that are closed, full, cut off or of another encoding, in real processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FULL = Path("/dev/full")
SWARM = f"{sys.executable} -m swarm.cli"


def shell(script: str, folder: Path, **environment: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a line of bash, in which $SWARM is the command."""
    done = subprocess.run(
        ["bash", "-c", script.replace("$SWARM", SWARM)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[3],
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), **environment},
        errors="replace",
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full on this system")
def test_output_that_cannot_be_written_is_no_success(tmp_path: Path) -> None:
    for script in ("$SWARM --version >/dev/full", "$SWARM completion bash >/dev/full"):
        code, _, said = shell(script, tmp_path)
        assert (code, said.count("\n")) == (1, 1) and "cannot write the output: No space left" in said
    code, _, said = shell("$SWARM verify nope 2>/dev/full", tmp_path)
    assert (code, said) == (2, "")


def test_closed_streams_are_neither_lost_output_nor_a_traceback(tmp_path: Path) -> None:
    code, _, said = shell("$SWARM --help >&-", tmp_path)
    assert (code, said) == (1, "swarm: cannot write the output: it is closed; give it somewhere to go\n")
    assert shell("$SWARM verify nope <&- >&- 2>&-", tmp_path) == (2, "", "")
    code, _, said = shell("$SWARM generate --no-lan <&-", tmp_path)
    assert code == 2 and said == "swarm: expected a prompt, found an empty one; give some text\n"


def test_a_reader_that_leaves_is_told_nothing(tmp_path: Path) -> None:
    code, out, said = shell("$SWARM completion bash | :; exit ${PIPESTATUS[0]}", tmp_path)
    assert (code, out, said) == (1, "", "")


def test_what_an_encoding_lacks_is_escaped_and_other_bytes_are_refused(tmp_path: Path) -> None:
    tty = dict(LC_ALL="C", PYTHONIOENCODING="ascii")
    code, _, said = shell("$SWARM verify $'na\\xc3\\xafve.json'", tmp_path, **tty)
    assert code == 2 and "na" in said and "No such file" in said
    code, _, said = shell("printf '\\xff' | $SWARM generate --no-lan", tmp_path)
    assert code == 2 and said.startswith("swarm: expected a prompt in UTF-8 on stdin")

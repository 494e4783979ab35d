"""Whether everything that the program needs can be had as a wheel for a Python, in the versions that are pinned.

python -m tests.pythons [3.12 3.13 3.14]

Asks the package index through pip, installs nothing; seconds to minutes for each. Not a part of the tests, which must
not depend on an index; run it when versions change.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
GLIBC = ("2_17", "2_28", "2_31", "2_34")


def pinned() -> list[str]:
    """What the program itself depends on, as name==version."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        wanted = tomllib.load(file)["project"]["dependencies"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower(): line for line in lines if "==" in line}
    return [pins[re.sub(r"[-_.]+", "-", re.split(r"[<>=!~ \[;]", text)[0]).lower()] for text in wanted]


def lacking(version: str) -> list[str]:
    """Pins without a wheel for this Python on this kind of machine."""
    machine = platform.machine()
    tags = [word for glibc in GLIBC for word in ("--platform", f"manylinux_{glibc}_{machine}")]
    missing = []
    for pin in pinned():
        words = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps"]
        words += ["--only-binary=:all:", "--python-version", version, *tags, "--target", "/nowhere", pin]
        if subprocess.run(words, capture_output=True).returncode != 0:
            missing.append(pin)
    return missing


if __name__ == "__main__":
    for version in sys.argv[1:] or ["3.12", "3.13", "3.14"]:
        without = lacking(version)
        print(f"Python {version}: no wheel of {', '.join(without) or 'nothing: all can be installed'}")

"""Every Python that the project says it runs on and that this machine has: the code compiles there without a warning,
and the command line answers. 3.14 is tried where it is, and not declared before it was.

What needs the dependencies runs under one Python; `python -m tests.pythons` looks whether they can be had for others.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = """
import sys, warnings
from pathlib import Path
warnings.simplefilter("error")
for path in sys.argv[1:]:
    for file in Path(path).rglob("*.py"):
        compile(file.read_bytes(), str(file), "exec", dont_inherit=True)
from swarm.cli.main import build_parser
print(sys.version_info[:2], len(build_parser("").format_help()))
"""


def declared() -> list[str]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        words = tomllib.load(file)["project"]["classifiers"]
    return [found[1] for word in words if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", word))]


def interpreter(version: str) -> str | None:
    """A Python of this version, on the path or where pyenv keeps its own."""
    if version == f"{sys.version_info[0]}.{sys.version_info[1]}":
        return sys.executable
    kept = sorted((Path.home() / ".pyenv/versions").glob(f"{version}.*/bin/python"))
    found = shutil.which(f"python{version}")
    works = found is not None and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0
    return found if works else str(kept[-1]) if kept else None  # pyenv's stand-ins answer for versions that are not on


@pytest.mark.parametrize("version", [*declared(), "3.14"])
def test_it_compiles_and_answers(version: str) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    done = subprocess.run(
        [python, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{PROGRAM}",
         *(str(ROOT / name) for name in ("swarm", "draft", "receipts"))],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith(f"(3, {version.partition('.')[2]})")

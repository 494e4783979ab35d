"""Options and files that sentences name are there; whole command lines are held by test_pages.py."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from swarm.cli.main import build_parser
from tests.swarm.cli.surface import commands as all_commands

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
CODE = re.compile(r"`([^`\n]+)`")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")
FILE = re.compile(r"(?<![\w./*-])((?:[A-Za-z_][\w-]*/)*[A-Za-z_][\w-]*\.(?:py|cpp|h|js|css|sh|toml|service))(?![\w*])")
FOREIGN = {
    *"--index-url --extra-index-url --constraint --generate-hashes".split(),  # of pip and pip-compile
    "--build-arg",  # of docker
    *"--reasoning --batch-size".split(),  # of llama.cpp, and of clients that are compared
}
"""Options of other people's programs."""
YOURS = {"fleet.toml", "config.toml"}
"""Files of a reader, or of another program."""


def prose(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.S)


@cache
def options() -> frozenset[str]:
    """Of every command, and of what is run as `python -m` out of this repository."""
    found = {
        name for _, parser in all_commands(build_parser()) for each in parser._actions for name in each.option_strings
    }
    for path in (
        *(ROOT / "tests").rglob("*.py"),
        *(ROOT / "swarm/testbed").rglob("*.py"),
        *(ROOT / "receipts").glob("*.py"),
    ):
        found |= set(re.findall(r"add_argument\(\s*\"(--[a-z-]+)\"", path.read_text()))
    return frozenset(found)


@cache
def files() -> frozenset[str]:
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    return frozenset(subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_options_that_sentences_name_are_taken_by_some_command(page: Path) -> None:
    named = {name for code in CODE.findall(prose(page)) for name in OPTION.findall(code)}
    assert sorted(named - options() - FOREIGN) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_sentences_name_are_there(page: Path) -> None:
    named = {name for code in CODE.findall(prose(page)) for name in FILE.findall(code)} - YOURS
    known = files()
    assert sorted(name for name in named if not any(f"/{path}".endswith(f"/{name}") for path in known)) == []


def test_a_name_that_is_nowhere_is_found() -> None:
    assert OPTION.findall("swarm join --no-such --layers A:B") == ["--no-such", "--layers"]
    assert "--no-such" not in options() and "--layers" in options() and "--rounds" in options()
    assert FILE.findall("see swarm/net/none.py and tests/*.py, `receipt.json`") == ["swarm/net/none.py"]

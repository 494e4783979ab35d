"""docs/architecture.md against the code: files that it names exist, rooms that exist are on the map."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for path in (*(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "README.md"))
HOMES = (ROOT, ROOT / "swarm", ROOT / "receipts", ROOT / "draft")
MODULES = {path.name for folder in ("swarm", "draft", "receipts", "tests") for path in (ROOT / folder).rglob("*.py")}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_modules_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(r"`((?:[a-z_]+/)+[a-z_0-9]+\.py)`", page.read_text())
    assert [name for name in named if not any((home / name).exists() for home in HOMES)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_modules_and_tests_that_a_page_names_without_their_folder_exist(page: Path) -> None:
    named = re.findall(r"`([a-z_0-9]+\.py)`", page.read_text())
    assert sorted({name for name in named if name not in MODULES}) == []


def test_every_room_is_on_the_map() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    rooms = [
        path
        for package in ("swarm", "receipts")
        for path in (ROOT / package).iterdir()
        if (path / "__init__.py").exists()
    ]
    assert [str(room.relative_to(ROOT)) for room in rooms if f"| `{room.relative_to(ROOT)}` |" not in text] == []


RETURNS = {"A prompt": 4, "A frame": 3, "A member's record": 1, "A receipt": 5}
"""How often a journey comes back into a room that it had left, along the files that the page lists."""


def journeys() -> dict[str, list[str]]:
    """The files of each journey, in order."""
    text = (ROOT / "docs/architecture.md").read_text()
    told = text[text.index("## Four journeys") : text.index("## The journey of a frame")]
    found = {}
    for part in told.split("\n\n"):
        if title := re.match(r"\*\*(.+?)\*\*", part):
            found[title[1]] = re.findall(r"`((?:[a-z_]+/)+[a-z_0-9]+\.py)`", part)
    return found


def room(file: str) -> str:
    parts = file.split("/")
    return "/".join(parts[:2]) if parts[0] == "receipts" else parts[0]


@pytest.mark.parametrize("journey", RETURNS)
def test_journeys_seldom_come_back_into_a_room(journey: str) -> None:
    files = journeys()[journey]
    assert [name for name in files if not any((home / name).exists() for home in HOMES)] == []
    walked = [room(name) for name in files]
    entered = [here for before, here in zip([""] + walked, walked, strict=False) if here != before]
    assert len(entered) - len(set(entered)) <= RETURNS[journey], entered

"""docs/testing.md against the code: a module that no test imports stands there, with what covers it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/testing.md").read_text()


def modules() -> set[str]:
    paths = [path for package in ("swarm", "receipts", "draft") for path in (ROOT / package).rglob("*.py")]
    return {str(path.relative_to(ROOT)) for path in paths if not path.name.startswith("__")}


def imported_by_tests() -> set[str]:
    """Module paths that a test imports, patches or runs by name."""
    found: set[str] = set()
    for path in (ROOT / "tests").rglob("*.py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        found |= set(re.findall(r"[\"'](?:-m )?((?:swarm|receipts|draft)(?:\.[a-z_]+)+)", text))
    return {name.replace(".", "/") + ".py" for name in found} | {
        name.rpartition(".")[0].replace(".", "/") + ".py" for name in found
    }


def test_every_module_is_imported_by_a_test_or_stands_on_the_page() -> None:
    known = modules()
    listed = set(re.findall(r"`((?:swarm|receipts|draft)/[a-z_/0-9]+\.py)`", PAGE))
    assert sorted(known - imported_by_tests() - listed) == []
    assert sorted(listed - known) == []


def test_what_covers_them_exists() -> None:
    named = re.findall(r"`(tests/[a-z_/0-9]+(?:\.py)?)`", PAGE)
    assert [name for name in named if not (ROOT / name).exists()] == []

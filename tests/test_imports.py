"""The shape of the code base, held by reading it: which part may import which, and a few habits of the house.

Imports point one way: `cli -> node, serve -> ring, mesh -> draft -> model`, `ring -> receipts`, everything -> net.
A new arrow fails here; if it is really wanted, it is added to `MAY_IMPORT` and to docs/architecture.md.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("swarm", "draft", "receipts")

LEAVES = {"swarm.base.errors", "swarm.base.events", "swarm.base.files"}
NET = {"swarm.net", "swarm.net.identity"} | LEAVES
MODEL = {"swarm.model"} | LEAVES
RING = {"swarm.ring", "receipts", "draft"} | MODEL | NET
MESH = {"swarm.mesh"} | MODEL | NET
MAY_IMPORT: dict[str, set[str]] = {
    "receipts": {"receipts"},
    "draft": {"draft"} | MODEL,
    "swarm.base.errors": set(),
    "swarm.base.events": LEAVES,
    "swarm.base.files": set(),
    "swarm.model": MODEL,
    "swarm.net": {"swarm.net", "swarm.base.errors"},
    "swarm.net.identity": {"swarm.net", "swarm.base.errors", "swarm.base.files"},
    "swarm.ring": RING,
    "swarm.mesh": MESH,
    "swarm.serve": {"swarm.serve", "swarm.ring", "swarm.mesh"} | RING | MESH,
}
"""What each part may import of ours. Parts not named here (the command line, the composition root, the helpers of the
demo) stand at the top: they may import all of these, and none of these may import them."""

NO_ENVIRONMENT_BUT = {
    "swarm/model/kernels.py",  # bounds two caches of torch, which has no other way to be told
    "swarm/model/files/wheel.py",  # hands its own environment on to pip, with another folder for temporary files
}
"""Files that may touch the environment; HF_HUB_OFFLINE by name is allowed everywhere."""

DYNAMIC_CODE = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> Iterator[str]:
    """Absolute names of everything that a file imports, anywhere in it; `from a import b` counts as `a.b` too."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def part_of(name: str) -> str | None:
    """The part of the house that a module name belongs to; None for what is not ours."""
    words = name.split(".")
    if words[0] not in PACKAGES:
        return None
    return ".".join(words[: 2 if words[0] == "swarm" else 1])


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or path.is_dir()


def forbidden_arrows(path: Path) -> list[str]:
    allowed = MAY_IMPORT.get(part_of(module_name(path)) or "")
    if allowed is None:
        return []
    names = {name for name in imported(path) if is_module(name)}
    parts = {part for name in names if (part := part_of(name)) not in (None, "swarm")}
    return [f"{path.relative_to(ROOT)} imports {part}" for part in sorted(filter(None, parts - allowed))]


def test_imports_point_one_way() -> None:
    assert [arrow for path in sources() for arrow in forbidden_arrows(path)] == []


def test_a_new_arrow_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    for name in ("receipts", "swarm/net", "swarm/ring", "swarm/mesh"):
        (tmp_path / name).mkdir(parents=True)
    bad = tmp_path / "swarm/ring/bad.py"
    bad.write_text("def f():\n    from ..mesh import gossip\n    from swarm.net import peer\n")
    assert forbidden_arrows(bad) == ["swarm/ring/bad.py imports swarm.mesh"]
    pure = tmp_path / "receipts/impure.py"
    pure.write_text("import swarm.net as net\n")
    assert forbidden_arrows(pure) == ["receipts/impure.py imports swarm.net"]


def test_every_arrow_that_is_allowed_names_a_part_that_may_exist() -> None:
    for part, allowed in MAY_IMPORT.items():
        for name in {part, *allowed}:
            assert part_of(name) == name, f"{name} is not a part"


def test_nothing_that_runs_code_from_data_is_imported() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources()
        for name in imported(path)
        if name.split(".")[0] in DYNAMIC_CODE
    ]
    assert found == []


def environment_reads(path: Path) -> Iterator[int]:
    """Lines that touch the environment, other than HF_HUB_OFFLINE by name."""
    lines = path.read_text().splitlines()
    for node in ast.walk(tree(path)):
        names = {"environ", "environb", "getenv", "putenv"}
        touched = (isinstance(node, ast.Attribute) and node.attr in names) or (
            isinstance(node, ast.Name) and node.id in names
        )
        if touched and "HF_HUB_OFFLINE" not in lines[node.lineno - 1]:
            yield node.lineno


def test_configuration_does_not_come_from_the_environment() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sources()
        if str(path.relative_to(ROOT)) not in NO_ENVIRONMENT_BUT
        for line in environment_reads(path)
    ]
    assert found == []


DECODERS = {("msgpack", "unpackb"), ("msgpack", "Unpacker"), ("torch", "load"), ("torch", "frombuffer")}
"""Calls that turn bytes into objects. In the parts that hear peers, only functions named `..._untrusted` make them."""

HEARS_PEERS = ("swarm/net/", "swarm/ring/", "swarm/mesh/")


def decoding_outside_untrusted(path: Path) -> Iterator[str]:
    def walk(node: ast.AST, inside: str) -> Iterator[str]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inside = node.name
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
        ):
            call = (node.func.value.id, node.func.attr)
            if call in DECODERS and not inside.endswith("_untrusted"):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {'.'.join(call)} in {inside or 'module'}"
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside)

    yield from walk(tree(path), "")


def test_bytes_of_peers_are_decoded_in_untrusted_functions() -> None:
    heard = [path for path in sources() if str(path.relative_to(ROOT)).startswith(HEARS_PEERS)]
    assert [place for path in heard for place in decoding_outside_untrusted(path)] == []


ROOT_ERRORS = {"PeerError", "ReceiptError", "ApiError"}
"""One per kind of stranger: peers, receipts, clients of the HTTP gateway."""


def own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """What leaves a function by itself: not the inner functions and tried blocks, whose errors it may translate."""
    inner = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    tried = function.body if isinstance(function, ast.Try) and function.handlers else []
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, inner) and child not in tried:
            yield child
            yield from own_nodes(child)


@cache
def stranger_errors() -> frozenset[str]:
    """The error types for strangers' bytes and everything derived from them, by name."""
    classes = [node for path in sources() for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)]
    known = set(ROOT_ERRORS)
    while new := {c.name for c in classes if any(isinstance(b, ast.Name) and b.id in known for b in c.bases)} - known:
        known |= new
    return frozenset(known)


def raised_elsewhere(path: Path) -> Iterator[str]:
    """Errors that an `_untrusted` function raises by name and that are not the one error for strangers' bytes."""
    known = stranger_errors()
    for function in ast.walk(tree(path)):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) or not function.name.endswith("_untrusted"):
            continue
        for node in own_nodes(function):
            error = node.exc if isinstance(node, ast.Raise) else None
            error = error.func if isinstance(error, ast.Call) else error
            if isinstance(error, ast.Name) and error.id[0].isupper() and error.id not in known:
                yield f"{path.relative_to(ROOT)}:{node.lineno} {function.name} raises {error.id}"


def test_untrusted_functions_raise_one_error_type() -> None:
    assert [place for path in sources() for place in raised_elsewhere(path)] == []


def test_looking_at_a_swarm_loads_no_model_library() -> None:
    """`swarm status` is asked again and again: two seconds of imports would be most of it."""
    code = "import sys, swarm.terminal.observer; print(*sorted({'torch', 'transformers'} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == []


def test_importing_the_command_line_does_no_heavy_work() -> None:
    """`swarm --help` must answer at once: torch and transformers are imported by the commands that compute."""
    top_level = {
        name.split(".")[0]
        for path in (ROOT / "swarm/cli").rglob("*.py")
        for node in tree(path).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    assert top_level.isdisjoint({"torch", "transformers"})

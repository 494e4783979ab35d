"""The shape of the code base, held by reading it: which room may import which, and a few habits of the house.

`MAY_IMPORT` is the map of docs/architecture.md. A new arrow fails here; if it is really wanted, it is added to both.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("swarm", "draft", "receipts")

MAY_IMPORT: dict[str, set[str]] = {
    "receipts.format": set(),
    "receipts.record": {"receipts.format"},
    "receipts.check": {"receipts.format", "receipts.record"},
    "swarm.base": set(),
    "swarm.net": {"swarm.base"},
    "swarm.model": {"swarm.base"},
    "swarm.planner": {"swarm.base"},
    "draft": {"swarm.base", "swarm.model"},
    "swarm.mesh": {"swarm.base", "swarm.model", "swarm.net"},
    "swarm.ring": {"draft", "receipts", "swarm.base", "swarm.model", "swarm.net"},
    "swarm.stage": {"swarm.base", "swarm.model", "swarm.net", "swarm.ring"},
    "swarm.run": {"draft", "receipts", "swarm.base", "swarm.model", "swarm.net", "swarm.planner", "swarm.ring"},
    "swarm.discovery": {"swarm.base", "swarm.mesh", "swarm.model", "swarm.net", "swarm.planner", "swarm.ring"},
    "swarm.serve": {"receipts", "swarm.base", "swarm.model", "swarm.run", "swarm.stage"},
    "swarm.recheck": {
        "receipts",
        "swarm.base",
        "swarm.discovery",
        "swarm.mesh",
        "swarm.model",
        "swarm.net",
        "swarm.ring",
    },
}
"""What each room may import of ours beside itself; `receipts` alone stands for its three rooms.

Rooms not named here (`node`, `client`, `terminal`, `testbed`, `cli`) wire the others: they may import all of these, and
none of these may import them.
"""

INNER: dict[str, set[str]] = {
    "swarm.net.channel": set(),
    "swarm.net": {"swarm.net.channel"},
    "swarm.net.traversal": {"swarm.net.channel", "swarm.net"},
    "swarm.model.quant": set(),
    "swarm.model.text": set(),
    "swarm.model.files": {"swarm.model.quant", "swarm.model.text"},
    "swarm.model": {"swarm.model.quant", "swarm.model.files", "swarm.model.text"},
}
"""Rooms inside a room: which of their own house they may import. From outside they count as the house."""

MOST_ROOMS, MOST_ARROWS = 22, 100
"""More would not fit on the map that a newcomer reads first."""

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


def room_of(name: str) -> str | None:
    """The room that a module name belongs to; None for what is not ours or stands above all rooms."""
    words = name.split(".")
    if words[0] == "draft":
        return "draft"
    return ".".join(words[:2]) if words[0] in PACKAGES and len(words) > 1 and words[1] != "__main__" else None


def inner_of(name: str) -> str | None:
    """The room of `INNER` that a module name belongs to."""
    words = name.split(".")
    return next((room for count in (3, 2) if (room := ".".join(words[:count])) in INNER), None)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or path.is_dir()


def modules_imported(path: Path) -> set[str]:
    """Full names of our modules that a file imports."""
    names = {name for name in imported(path) if is_module(name)}
    return {name for name in names if not any(other.startswith(name + ".") for other in names)}


def forbidden_arrows(path: Path) -> list[str]:
    module = module_name(path)
    place = path.relative_to(ROOT)
    names = modules_imported(path)
    bad: set[str] = set()
    room, inner = room_of(module), inner_of(module)
    if room in MAY_IMPORT:
        allowed = MAY_IMPORT[room] | {room}
        rooms = {other for name in names if (other := room_of(name))}
        bad |= {other for other in rooms if other not in allowed and other.split(".")[0] not in allowed}
    if inner is not None:
        mine = {other for name in names if room_of(name) == room and (other := inner_of(name))}
        bad |= mine - INNER[inner] - {inner}
    return [f"{place} imports {name}" for name in sorted(bad)]


def arrows() -> set[tuple[str, str]]:
    """Every arrow between two rooms that the code draws now."""
    found = set()
    for path in sources():
        room = room_of(module_name(path))
        found |= {
            (room, other) for name in modules_imported(path) if (other := room_of(name)) and room and other != room
        }
    return found


def test_imports_point_one_way() -> None:
    assert [arrow for path in sources() for arrow in forbidden_arrows(path)] == []
    TopologicalSorter({room: set(map(str, others)) for room, others in drawn().items()}).prepare()  # raises on a circle


def drawn() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for room, other in arrows():
        found.setdefault(room, set()).add(other)
    return found


def test_the_map_stays_small() -> None:
    rooms = {room for path in sources() if (room := room_of(module_name(path)))}
    assert len(rooms) <= MOST_ROOMS
    assert len(arrows()) <= MOST_ARROWS


def test_a_new_arrow_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    for name in ("receipts/format", "receipts/check", "swarm/net/channel", "swarm/ring", "swarm/mesh"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("receipts/check/verify.py", "swarm/net/peer.py", "swarm/mesh/gossip.py"):
        (tmp_path / name).write_text("")
    bad = tmp_path / "swarm/ring/bad.py"
    bad.write_text("def f():\n    from ..mesh import gossip\n    from swarm.net import peer\n")
    assert forbidden_arrows(bad) == ["swarm/ring/bad.py imports swarm.mesh"]
    impure = tmp_path / "receipts/format/impure.py"
    impure.write_text("import swarm.net.peer as peer\nfrom receipts.check import verify\n")
    assert forbidden_arrows(impure) == [
        "receipts/format/impure.py imports receipts.check",
        "receipts/format/impure.py imports swarm.net",
    ]
    deep = tmp_path / "swarm/net/channel/deep.py"
    deep.write_text("from swarm.net.peer import Peer\n")
    assert forbidden_arrows(deep) == ["swarm/net/channel/deep.py imports swarm.net"]


def test_every_room_that_is_named_exists() -> None:
    for room in {
        *MAY_IMPORT,
        *INNER,
        *(other for others in (*MAY_IMPORT.values(), *INNER.values()) for other in others),
    }:
        assert is_module(room), f"{room} is not a room"


def faces() -> list[Path]:
    return sorted(path for package in ("swarm", "receipts") for path in (ROOT / package).glob("*/**/__init__.py"))


@pytest.mark.parametrize("face", faces(), ids=lambda path: str(path.parent.relative_to(ROOT)))
def test_a_room_says_what_it_is_and_names_what_it_has(face: Path) -> None:
    """The face of a room is its docstring; a name in backquotes is a module of it, or a name in such a module."""
    text = ast.get_docstring(tree(face))
    assert text, "a room without a face"
    for name in re.findall(r"`([a-z_]\w*(?:\.\w+)?)[`(]", text):
        module, _, symbol = name.partition(".")
        inside = face.parent / f"{module}.py"
        rooms = {path.name for path in (*face.parent.iterdir(), *face.parent.parent.iterdir()) if path.is_dir()}
        assert inside.exists() or module in {*rooms, *PACKAGES} or f"def {module}(" in whole(face.parent), name
        if symbol:
            assert re.search(rf"^(class|def|async def) {symbol}\b", inside.read_text(), re.MULTILINE), name


@cache
def whole(room: Path) -> str:
    return "\n".join(path.read_text() for path in room.glob("*.py"))


def test_class_names_are_used_once() -> None:
    """One name, one thing: two public classes of one name make every reader ask which is meant."""
    seen: dict[str, str] = {}
    twice = []
    for path in sources():
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                if node.name in seen:
                    twice.append(f"{node.name}: {seen[node.name]}, {path.relative_to(ROOT)}")
                seen[node.name] = str(path.relative_to(ROOT))
    assert twice == []


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

HEARS_PEERS = (
    "swarm/base/",
    "swarm/net/",
    "swarm/ring/",
    "swarm/stage/",
    "swarm/run/",
    "swarm/mesh/",
    "swarm/discovery/",
    "swarm/node/",
)


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

"""How objects are put together: by other objects behind small Protocols, seldom by callables."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.test_imports import ROOT, module_name, sources, tree

MOST_CALLABLES = 27
"""Callables that constructors take, in all. Where one object takes several methods of another, or where a role comes
up in several places, a Protocol says more: who plays it, and what is promised. What stays are single strategies and
calls back. The bound may be lowered; raise it only with a reason that belongs here."""


def written(annotation: ast.expr) -> str:
    """An annotation as text, without the quotes of a forward reference."""
    return ast.unparse(annotation).replace("'", "")


@cache
def defined(module: str) -> frozenset[str]:
    """Names at the top of a module of ours that stand for a `Callable[...]`."""
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    found = set()
    for node in tree(path).body if path.exists() else ():
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.expr) and written(value).startswith("Callable["):
            found.add(target.id)
    return frozenset(found)


@cache
def aliases(path: Path) -> frozenset[str]:
    """Names by which a file means a `Callable[...]` that has a name."""
    found = set(defined(module_name(path)))
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {alias.asname or alias.name for alias in node.names if alias.name in defined(node.module)}
    return frozenset(found)


def is_callable(annotation: ast.expr | None, names: frozenset[str]) -> bool:
    """A table of handlers is data, and none."""
    text = "" if annotation is None else written(annotation)
    if text.startswith("Mapping["):
        return False
    return "Callable[" in text or not names.isdisjoint(re.findall(r"\w+", text))


def taken(made: ast.ClassDef, names: frozenset[str]) -> Iterator[str]:
    """Callables that a class is made with: parameters of `__init__`, fields of a dataclass."""
    dataclass = any("dataclass" in ast.unparse(decorator) for decorator in made.decorator_list)
    for member in made.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            given = member.args
            for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, [given.vararg])):
                if is_callable(argument.annotation, names):
                    yield argument.arg
        elif dataclass and isinstance(member, ast.AnnAssign) and is_callable(member.annotation, names):
            yield ast.unparse(member.target)


def callables() -> list[str]:
    return [
        f"{path.relative_to(ROOT)} {node.name}: {name}"
        for path in sources()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef)
        for name in taken(node, aliases(path))
    ]


def test_objects_are_handed_objects() -> None:
    found = callables()
    assert len(found) <= MOST_CALLABLES, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("class A:\n    def __init__(self, f: Callable[[int], str], *, g: Callable[[], None] | None): ...", "fg"),
        ("class A:\n    def __init__(self, handlers: Mapping[str, Handler], n: int = 0): ...", ""),
        ("@dataclass(frozen=True)\nclass A:\n    f: Callable[[], int]\n    n: int = 0", "f"),
        ("class A:\n    f: Callable[[], int]\n    def other(self, g: Callable[[], int]): ...", ""),
        ("class A:\n    def __init__(self, keep: Keep, more: 'Keep | None'): ...", ["keep", "more"]),
        ("class A:\n    def __init__(self, reporter: Reporter): ...", ""),
    ],
)
def test_a_callable_is_seen_however_it_is_written(text: str, names: str | list[str]) -> None:
    (made,) = ast.parse(text).body
    assert isinstance(made, ast.ClassDef)
    assert list(taken(made, aliases(ROOT / "receipts/record/edge.py"))) == list(names)


MOST_MAPS = 91
"""Annotations `dict[str, Any]` and `Mapping[str, Any]` outside `swarm/model` and `draft/tapped_folder.py` (the
configuration of a checkpoint is as its authors wrote it) and `swarm/serve` (bodies in the forms of five APIs). Lower
it; what is ours has a record."""


def maps_of_anything() -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sources()
        if not str(path.relative_to(ROOT)).startswith(("swarm/model/", "swarm/serve/", "draft/tapped_folder.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for _ in re.findall(r"\b(?:dict|Mapping|MutableMapping)\[str, Any\]", line)
    ]


def test_what_crosses_rooms_has_a_type() -> None:
    found = maps_of_anything()
    assert len(found) <= MOST_MAPS, "\n".join(found)

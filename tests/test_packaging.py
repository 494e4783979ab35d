"""What is declared, pinned and shipped agree with one another."""

from __future__ import annotations

import ast
import json
import re
import socket
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        read: dict[str, Any] = tomllib.load(file)["project"]
    return read


def pins() -> dict[str, Version]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    found = {}
    for line in lines:
        name, equals, version = line.partition("==")
        assert equals and re.fullmatch(r"[\w.!]+", version), f"not an exact public version: {line}"
        found[canonicalize_name(name)] = Version(version)
    return found


def requirements() -> list[Requirement]:
    extras = project()["optional-dependencies"]
    return [
        Requirement(text) for text in [*project()["dependencies"], *extras["test"], *extras["plots"], *extras["fuzz"]]
    ]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_every_dependency_is_pinned_within_its_bounds(requirement: Requirement) -> None:
    assert pins()[canonicalize_name(requirement.name)] in requirement.specifier


def test_extras_that_the_makefile_and_the_container_install_exist() -> None:
    extras = set(project()["optional-dependencies"])
    wanted = re.findall(r"EXTRAS := (\S+)", (ROOT / "Makefile").read_text())
    assert {name for words in wanted for name in words.split(",")} <= extras
    assert {"demo", "test", "gpu"} <= extras


def test_every_package_is_declared_and_copied_into_the_container() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    copied = re.findall(r"^COPY (\w+) \w+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    let_through = re.findall(r"^!(\w+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert packages == set(copied) == set(let_through) - {"LICENSE"}


def test_the_container_is_healthy_as_a_node_and_as_a_gateway() -> None:
    """The check as the Dockerfile has it, with its two ports exchanged for free ones."""
    found = re.search(r"HEALTHCHECK .*?CMD (\[.*?\])$", (ROOT / "Dockerfile").read_text(), re.S | re.M)
    assert found is not None
    words = json.loads(found[1])

    def healthy(node: int, gateway: int) -> bool:
        code = words[2].replace("7700", str(node)).replace("8080", str(gateway))
        return subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=60).returncode == 0

    with socket.socket() as listens, socket.socket() as silent:
        for each in (listens, silent):
            each.bind(("127.0.0.1", 0))
        listens.listen()
        open_port, shut = listens.getsockname()[1], silent.getsockname()[1]
        assert healthy(open_port, shut) and healthy(shut, open_port)
        assert not healthy(shut, shut)
    assert {"7700", "8080"} <= set(re.findall(r"\d+", words[2]))


def test_nested_packages_have_an_init_file() -> None:
    bare = {
        path.parent.relative_to(ROOT)
        for package in ("swarm", "draft", "receipts")
        for path in (ROOT / package).rglob("*.py")
        if not (path.parent / "__init__.py").exists()
    }
    assert bare == set()


def imports(folder: str) -> set[str]:
    """Top-level names of what the Python files under a folder import from elsewhere."""
    ours = {"swarm", "draft", "receipts", "tests", *sys.stdlib_module_names}
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found - ours


@pytest.mark.parametrize("folder", ["swarm", "draft", "receipts", "tests"])
def test_everything_imported_is_declared(folder: str) -> None:
    extras = project()["optional-dependencies"]
    texts = [
        *project()["dependencies"],
        *(text for name, listed in extras.items() if name != "test" for text in listed),
    ]
    texts += extras["test"] if folder == "tests" else []
    declared = {canonicalize_name(Requirement(text).name) for text in texts}
    owners = metadata.packages_distributions()
    owned = {name: {canonicalize_name(owner) for owner in owners.get(name, [])} for name in imports(folder)}
    assert {name: found for name, found in owned.items() if found and not found & declared} == {}

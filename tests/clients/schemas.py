"""JSON Schema's own tests (draft 2020-12, required, and of formats) over schemas as a request brings them:
`python -m tests.clients.schemas [--folder FOLDER]`.

The tests are in the source distribution of PyPI's jsonschema, which is downloaded into a temporary folder (or found in
--folder); nothing of it is kept here. Each schema goes the way of a request's `response_format`: it is compiled, or
refused with a 400 that names a keyword of it. Of what is compiled each test's instance must be allowed exactly if it is
valid: in an order of its members and a spelling of its numbers (2.0 as 2) for a valid one, in none for another. Ends
with 1 where one is not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import permutations, product
from pathlib import Path
from typing import Any

from swarm.model.compiling import Compiler
from swarm.model.constraint import Constraint
from swarm.model.held import Matcher
from swarm.serve.config import GatewayConfig
from swarm.serve.errors import ApiError
from swarm.serve.parse import parse_chat_untrusted
from swarm.serve.structured import check_structure
from tests.swarm.model.lettered import allows, lettered

PACKAGE = "jsonschema==4.26.0"
TESTS = "json/tests/draft2020-12/"
STRICTER = {
    "format": "a format is held to, where the standard lets it be a note",
    "optional/format/date-time": "a leap second only in UTC",
    "optional/format/time": "a leap second only in UTC",
    "optional/format/email": "no quoted names, no IPv6 addresses",
    "optional/format/ipv6": "no IPv4 address as its end",
}
"""Where a valid instance may be one that answers never are; none that is not valid may be allowed anywhere."""


class Held:
    """What compiles a request's constraint, in the place of a model."""

    def __init__(self) -> None:
        self.compiler = Compiler(lettered)
        self.matcher: Matcher | None = None

    async def compile(self, constraint: Constraint, of: str | None = "") -> None:
        """Raises UsageError."""
        self.matcher = self.compiler.held(self.compiler.ready(constraint, 0))


def fetched(folder: Path) -> Path:
    """The folder of the tests, below `folder`."""
    if not (found := list(folder.glob("*/" + TESTS))):
        wanted = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
        subprocess.run([*wanted, "--no-binary", PACKAGE.partition("=")[0], PACKAGE], check=True)
        with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
            inner = [each for each in archive if each.name.partition("/")[2].startswith(TESTS)]
            archive.extractall(folder, inner, filter="data")
        found = list(folder.glob("*/" + TESTS))
    return found[0]


def spellings(value: Any) -> Iterator[str]:
    """A value as an answer may write it: every order of members, numbers with and without a fraction."""
    if isinstance(value, dict):
        for order in permutations(value):
            for parts in product(*(list(spellings(value[name])) for name in order)):
                members = (f"{json.dumps(n, ensure_ascii=False)}: {p}" for n, p in zip(order, parts, strict=True))
                yield "{" + ", ".join(members) + "}"
    elif isinstance(value, list):
        for parts in product(*(list(spellings(item)) for item in value)):
            yield "[" + ", ".join(parts) + "]"
    else:
        yield json.dumps(value, ensure_ascii=False)
        if isinstance(value, float) and value.is_integer():
            yield str(int(value))


def words(schema: Any) -> set[str]:
    """Every key in it, and what a schema of `false` is called by."""
    if isinstance(schema, dict):
        return set(schema).union(*(words(below) for below in schema.values()))
    return set().union(*(words(below) for below in schema)) if isinstance(schema, list) else {"false"} - {schema}


def tried(held: Held, name: str, group: dict[str, Any]) -> tuple[str, list[str]]:
    """right, refused, stricter or wrong; and what is wrong."""
    schema = group["schema"]
    asked = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}
    try:
        parsed = parse_chat_untrusted(
            {"messages": [{"role": "user", "content": "x"}], "response_format": asked}, GatewayConfig()
        )
        asyncio.run(check_structure(parsed.wanted.structure, held))  # type: ignore[arg-type] -- what compiles is enough
    except ApiError as error:
        keys = words(schema) | {"$dynamicAnchor"}  # of the standard's own schema, which a `$ref` may name
        named = error.status == 400 and any(word in error.message for word in keys)
        return ("refused", []) if named else ("wrong", [f"refused without a keyword: {error.message}"])
    matcher, stricter, wrong = held.matcher, False, []
    assert matcher is not None
    for test in group["tests"]:
        allowed = any(allows(matcher, text) for text in spellings(test["data"]))
        if not allowed and test["valid"] and name in STRICTER:
            stricter = True
        elif allowed != test["valid"]:
            wrong.append(f"{'allowed' if allowed else 'not allowed'}: {test['description']}: {test['data']!r:.100}")
    return ("wrong" if wrong else "stricter" if stricter else "right"), wrong


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, help="where the tests are, or are to be kept")
    asked = parser.parse_args()
    counts: dict[str, Counter[str]] = {}
    held = Held()
    with tempfile.TemporaryDirectory() as temporary:
        tests = fetched(asked.folder or Path(temporary))
        for path in [*sorted(tests.glob("*.json")), *sorted(tests.glob("optional/format/*.json"))]:
            name = path.relative_to(tests).with_suffix("").as_posix()
            for group in json.loads(path.read_text("utf-8")):
                came, wrong = tried(held, name, group)
                counts.setdefault(name, Counter())[came] += 1
                for line in wrong:
                    print(f"{name}: {group['description']}: {line}")
    held.compiler.close()
    for name, found in counts.items():
        print(f"{name:40}" + "".join(f"{found[kind]:4} {kind}" for kind in ("right", "stricter", "refused", "wrong")))
    required = sum((found for name, found in counts.items() if "/" not in name), Counter[str]())
    print(f"required: {dict(required)}; with formats: {dict(sum(counts.values(), Counter[str]()))}")
    return 1 if any(found["wrong"] for found in counts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

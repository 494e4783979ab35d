"""Everything that a command line can be: each command's options with what they read, as plain data.

python -m tests.swarm.cli.surface     write surface.json, after a change of options that is meant
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SAVED = Path(__file__).with_name("surface.json")
PROBES = ("", "0", "1", "-1", "2.5", "64", "65", "99999999", "nan", "a", "a=1", "a:1", "0:3", "witness,exact")
"""Values that an option may take or refuse: bounds and types show in which."""


def surface(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """By command: its positionals and options in the order of `--help-all`, without words."""
    return {name: [_entry(command, action) for action in _own(command)] for name, command in commands(parser)}


def commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every parser by what is typed to reach it."""
    yield parser.prog, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in dict.fromkeys(action.choices.values()):
                yield from commands(child)


def _own(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return sorted(parser._actions, key=lambda action: (bool(action.option_strings), action.option_strings, action.dest))


def _entry(parser: argparse.ArgumentParser, action: argparse.Action) -> dict[str, Any]:
    choices = action.choices
    default = parser.get_default(action.dest) if action.dest != argparse.SUPPRESS else None
    return {
        "names": list(action.option_strings),
        "dest": action.dest,
        "default": repr(default),
        "const": repr(action.const),
        "nargs": action.nargs,
        "required": action.required,
        "metavar": action.metavar,
        "choices": None if choices is None else list(map(str, choices)),
        "excludes": sorted(
            name
            for group in parser._mutually_exclusive_groups
            if action in group._group_actions
            for other in group._group_actions
            if other is not action
            for name in other.option_strings
        ),
        "takes": [probe for probe in PROBES if _takes(parser, action, probe)],
    }


def _takes(parser: argparse.ArgumentParser, action: argparse.Action, value: str) -> bool:
    if action.nargs == 0 or isinstance(action, argparse._SubParsersAction):
        return False
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            parser._check_value(action, parser._get_value(action, value))
        except argparse.ArgumentError:
            return False
    return True


def saved() -> dict[str, Any]:
    """What was written last."""
    data: dict[str, Any] = json.loads(SAVED.read_text("utf-8"))
    return data


def main() -> None:
    from swarm.cli.main import build_parser

    lines = [
        f"{json.dumps(name)}: [\n" + ",\n".join(f" {json.dumps(entry)}" for entry in entries) + "\n]"
        for name, entries in surface(build_parser()).items()
    ]
    SAVED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()

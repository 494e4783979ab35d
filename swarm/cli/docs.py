"""docs/cli.md, made from the parsers so that it cannot tell another story than `--help`.

python -m swarm.cli.docs             write docs/cli.md
python -m swarm.cli.docs --check     exit 1 when it is not what would be written
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

HEAD = """\
# Commands

Made by `python -m swarm.cli.docs` from the commands themselves; `swarm COMMAND --help-all` shows the same.
Status goes to stderr, results to stdout. Exit codes: 0 done, 1 failed, 2 misuse; `swarm verify` has more.
"""


def render(parser: argparse.ArgumentParser) -> str:
    """The whole page. Does not depend on the terminal's width or the Python version, as argparse's own help does."""
    return "\n".join([HEAD, *_section(parser, 2)]).rstrip() + "\n"


def _section(parser: argparse.ArgumentParser, depth: int) -> Iterator[str]:
    yield f"{'#' * min(depth, 4)} `{parser.prog}`"
    yield ""
    if parser.description:
        yield parser.description.strip()
        yield ""
    for group in parser._action_groups:
        options = [a for a in group._group_actions if not isinstance(a, argparse._SubParsersAction)]
        rows = [row for action in options if (row := _row(parser, action))]
        if rows:
            if group.title not in ("positional arguments", "options", None):
                yield f"{group.title}:"
                yield ""
            yield from ("| option | meaning |", "| --- | --- |", *rows, "")
    if parser.epilog:
        yield from ("```", parser.epilog.strip(), "```", "")
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in dict.fromkeys(action.choices.values()):
                yield from _section(child, depth + 1)


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """One option as a table row; empty for what is hidden or the same everywhere."""
    if (
        action.help == argparse.SUPPRESS
        or isinstance(action, argparse._HelpAction)
        or "--help-all" in action.option_strings
    ):
        return ""
    value = _value(action)
    names = [f"{name} {value}".strip() for name in action.option_strings] or [value or action.dest]
    text = (parser._get_formatter()._expand_help(action) if action.help else "").replace("|", r"\|")
    return f"| {', '.join(f'`{name}`' for name in names)} | {text} |"


def _value(action: argparse.Action) -> str:
    """How the value of an option is written: `N`, `a,b,c`, `MS ...`, or nothing for a flag."""
    if action.nargs == 0:
        return ""
    if action.metavar is not None:
        word = action.metavar if isinstance(action.metavar, str) else " ".join(action.metavar)
    elif action.choices is not None:
        word = "{" + ",".join(map(str, action.choices)) + "}"
    else:
        word = action.dest.upper() if action.option_strings else action.dest
    return {"+": f"{word} ...", "*": f"[{word} ...]", "?": f"[{word}]"}.get(str(action.nargs), word)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the page; returns the exit code."""
    from swarm.cli.main import build_parser

    parser = argparse.ArgumentParser(prog="python -m swarm.cli.docs", description="Write docs/cli.md.")
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    parser.add_argument("--path", type=Path, default=Path("docs/cli.md"))
    args = parser.parse_args(arguments)
    page = render(build_parser())
    if not args.check:
        args.path.write_text(page, encoding="utf-8")
        return 0
    if args.path.exists() and args.path.read_text(encoding="utf-8") == page:
        return 0
    print(f"{args.path} is not what the commands say; run: python -m swarm.cli.docs", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

"""`swarm completion`: completion for the shell, made from the commands themselves."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from swarm.base.option import option
from swarm.cli.parser import Parser

SHELLS = ("bash", "zsh", "tcsh")


@dataclass(frozen=True)
class CompletionOptions:
    """For whom."""

    shell: str = option("bash", "bash, zsh or tcsh", "SHELL", name="shell", choices=SHELLS)


def add(parser: Parser) -> None:
    """The options of the command."""
    parser.description = 'Print a completion script. For bash: eval "$(swarm completion bash)", for good in ~/.bashrc.'
    parser.declare(CompletionOptions)
    parser.set_defaults(run=run)


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every option of a parser and of the commands below it."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for child in dict.fromkeys(action.choices.values()):
                yield from actions(child)


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    import shtab

    from swarm.cli.main import build_parser

    parser = build_parser()
    for action in actions(parser):
        if action.metavar in ("FILE", "PATH", "RECEIPT", "INVITE"):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar == "DIR":
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    print(shtab.complete(parser, arguments.shell))
    return 0

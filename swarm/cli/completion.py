"""`swarm completion`: completion for the shell, made from the commands themselves."""

from __future__ import annotations

import argparse

SHELLS = ("bash", "zsh", "tcsh")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser of the command."""
    parser = commands.add_parser(
        "completion",
        help="completion for your shell",
        description='Print a completion script. For bash: eval "$(swarm completion bash)", for good in ~/.bashrc.',
    )
    parser.set_defaults(run=run)
    parser.add_argument("shell", choices=SHELLS, help="which shell")


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    import shtab

    from swarm.cli.main import build_parser

    print(shtab.complete(build_parser(), arguments.shell))
    return 0

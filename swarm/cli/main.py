"""The command line's root: one parser, one way out."""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import sys
from collections.abc import Sequence

from swarm import __version__
from swarm.base.errors import SwarmError
from swarm.base.files import DISK_ERRNOS
from swarm.cli import (
    bench,
    chat,
    completion,
    demo,
    doctor,
    draft,
    generate,
    join,
    mesh,
    model,
    plan,
    serve,
    show,
    status,
    top,
    verify,
)
from swarm.cli.loop import INTERRUPTED, leave_now
from swarm.cli.parser import Parser

EXAMPLES = """\
first steps:
  swarm demo                                   three nodes and an answer, all on this machine
  swarm join --gpu 0                           serve layers on GPU 0; prints an invite for others
  swarm join --swarm INVITE                    a second machine takes the layers that are missing
  swarm generate --swarm INVITE "Hello"        ask the swarm; leaves a signed receipt
  swarm verify receipt.json                    what that receipt proves
"""


def build_parser() -> Parser:
    """The whole command line. docs/cli.md is made from it."""
    parser = Parser(
        prog="swarm",
        description="Run language models that no single machine holds, over the open internet.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"wanswarm {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (
        join,
        generate,
        chat,
        serve,
        status,
        top,
        demo,
        verify,
        show,
        model,
        mesh,
        plan,
        doctor,
        draft,
        bench,
        completion,
    ):
        module.add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0 done, 1 failed, 2 misuse; `swarm verify` has more."""
    # Collecting what goes with the process anyway takes a second where torch is loaded.
    atexit.register(gc.freeze)
    arguments = build_parser().parse_args(argv)
    try:
        code = int(arguments.run(arguments))
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left (as `| head` does): nothing more to say, and nothing to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SwarmError as error:
        return _told(error)
    except OSError as error:
        if error.errno not in DISK_ERRNOS:
            raise
        return _told(error)
    except BaseExceptionGroup as group:
        first = _first_of_ours(group)
        if first is None:
            raise
        return _told(first)
    if code == INTERRUPTED and argv is None:  # a process of our own, not a program that calls us
        leave_now(code)
    return code


def _told(error: SwarmError | OSError) -> int:
    """Say what went wrong in one line. Returns the exit code."""
    if isinstance(error, SwarmError):
        print(f"swarm: {error}", file=sys.stderr)
        return error.exit_code
    where = error.filename or "a file"
    print(f"swarm: cannot write {where}: {error.strerror}; free space, or choose another folder", file=sys.stderr)
    return 1


def _first_of_ours(group: BaseExceptionGroup[BaseException]) -> SwarmError | OSError | None:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            inner = _first_of_ours(error)
            if inner is not None:
                return inner
        elif isinstance(error, SwarmError) or (isinstance(error, OSError) and error.errno in DISK_ERRNOS):
            return error
    return None

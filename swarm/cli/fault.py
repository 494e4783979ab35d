"""The one place where an exception becomes a line for a person and an exit code."""

from __future__ import annotations

import errno
import os
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from swarm.base.errors import SwarmError
from swarm.base.files import DISK_ERRNOS
from swarm.cli.loop import INTERRUPTED


@dataclass(frozen=True)
class Ending:
    """How a command ends: its exit code, and what is said, if anything. `fault`: it is ours, and its story is kept."""

    code: int
    line: str | None
    fault: bool = False


def ending_of(error: BaseException) -> Ending:
    """What an exception means to whoever typed the command; of a group, its first error that means something."""
    found = [known for one in _flat(error) if (known := _known(one)) is not None]
    if found:
        return max(found, key=lambda ending: ending.line is not None)
    first = next(_flat(error))
    return Ending(1, f"fault of the program: {type(first).__name__}: {_first_line(first)}", fault=True)


def _flat(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup) and error.exceptions:
        for inner in error.exceptions:
            yield from _flat(inner)
    else:
        yield error


def _known(error: BaseException) -> Ending | None:
    match error:
        case KeyboardInterrupt():
            return Ending(INTERRUPTED, "interrupted")
        case SwarmError():
            return Ending(error.exit_code, str(error))
        case BrokenPipeError():  # the reader of our output left, as `| head` does: nothing to say, and nobody to hear
            return Ending(1, None)
        case MemoryError():
            return Ending(1, "no memory is left for this; end other programs, or take fewer layers (--capacity)")
        case OSError(errno=errno.EMFILE | errno.ENFILE):
            return Ending(1, f"{error.strerror}; allow more, for instance with: ulimit -n 65536")
        case OSError(errno=errno.EBADF, filename=None):
            return Ending(1, "cannot write the output: it is closed; give it somewhere to go")
        case OSError() if error.errno in DISK_ERRNOS:
            return Ending(1, _disk_line(error))
    return None


def _disk_line(error: OSError) -> str:
    if error.filename is None:
        return f"cannot write the output: {error.strerror}; free space, or send it elsewhere"
    return f"cannot write {os.fsdecode(error.filename)}: {error.strerror}; free space, or choose another folder"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or ["nothing more is known"])[0][:300]


def keep_story(error: BaseException) -> Path | None:
    """The traceback in a file of its own, for a report; None where no file can be made."""
    story = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile("w", prefix="swarm-fault-", suffix=".txt", delete=False) as file:
            file.write(story)
            return Path(file.name)
    except OSError:
        return None

"""The one error root. A user meets these as one line; nothing else may reach a terminal."""

from __future__ import annotations

from collections.abc import Sequence


class SwarmError(Exception):
    """Something a user or a peer can meet: says what was expected, what was found and what to do.

    `exit_code` is what the command line ends with: 2 for misuse, 1 for failure.
    """

    exit_code = 1


def shortly(reasons: Sequence[str], most: int = 2, chars: int = 160) -> str:
    """Several reasons as one line can bear them: equal ones once, the first few, each cut; "" for none."""
    different = list(dict.fromkeys(reasons))
    shown = [reason if len(reason) <= chars else reason[: chars - 1] + "…" for reason in different[:most]]
    more = len(different) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def let_go(error: BaseException) -> None:
    """Let an error, and those that led to it, hold the frames that they came through no longer.

    A frame that holds what failed (a future, a task, a session of a library) is held by the error in it: such a ring is
    free only when Python's collector comes by, which for old objects may be after hours.
    """
    found: BaseException | None = error
    while found is not None:
        found.__traceback__ = None
        found = found.__cause__ or found.__context__


class UsageError(SwarmError):
    """The command or its arguments cannot be carried out as given."""

    exit_code = 2


class PeerError(SwarmError):
    """Bytes or behaviour of a peer broke the protocol; the only error that `_untrusted` parsers raise."""


class ModelError(SwarmError):
    """A model cannot be found, read or cut into blocks as asked."""


class CoverageError(SwarmError):
    """The swarm does not hold every layer of the model. `need`: what would fill the holes, in words, or ""."""

    def __init__(self, text: str, need: str = "") -> None:
        super().__init__(text)
        self.need = need


class BusyError(SwarmError):
    """A node has no room now; another or a later try may succeed."""


class RunError(SwarmError):
    """A run ended before its last token."""


class DeviceError(SwarmError):
    """The device that a node computes on answers no more; only a new process may get it to."""

"""The owner of this machine, asked a question that only a person can answer: do two screens show the same code?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from swarm.base.errors import BusyError, UsageError
from swarm.base.events import Notice, Report, silent


@dataclass(frozen=True)
class Question:
    """`text` says what is asked; `code` is what the other machine must show for the answer to be yes."""

    text: str
    code: str


class MachineOwner(Protocol):
    """Whoever answers for this machine."""

    async def agrees(self, question: Question) -> bool:
        """The owner's answer; waits for it, so give it a deadline. Raises BusyError while another question waits."""


class OwnerDesk:
    """One question at a time, answered from wherever the owner is: a terminal, or `swarm admit` over the control port.

    report   is told of each question
    command  what the owner can type elsewhere to answer it; the code follows
    """

    def __init__(self, report: Report = silent, command: str = "swarm admit") -> None:
        self._report, self._command = report, command
        self._open: tuple[Question, asyncio.Future[bool]] | None = None
        self.on_change: Callable[[], None] = lambda: None
        """Called when a question begins or ends to wait."""
        self.at_terminal: Callable[[], bool] = lambda: False
        """Whether the owner can answer where the questions are shown."""

    @property
    def question(self) -> Question | None:
        """The one that waits."""
        return None if self._open is None else self._open[0]

    async def agrees(self, question: Question) -> bool:
        """See `MachineOwner`."""
        if self._open is not None:
            raise BusyError("another question waits for the owner of that machine; try again in two minutes")
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._open = (question, answer)
        self.on_change()
        here = "If so, type the code, else no; or elsewhere on this machine: "
        here = here if self.at_terminal() else "If so, run on this machine: "
        self._report(Notice(f"{question.text} {here}{self._command} {question.code}", "warning"))
        try:
            return await answer
        finally:
            self._open = None
            self.on_change()
            if not answer.done() or answer.cancelled():
                self._report(Notice(f"the code {question.code} is of no use any more: its time is over, or they left"))

    def answer(self, code: str | None, yes: bool) -> Question:
        """The owner's word. A yes names its code: the question may have changed since the owner looked at it.

        Raises UsageError when nothing waits, or the code is not its code, which then still waits.
        """
        if self._open is None:
            raise UsageError("nobody asks to be let in just now; a question waits two minutes for its answer")
        question, answer = self._open
        if yes and code is None:
            raise UsageError(f"expected the code itself for a yes; if both machines show {question.code}, type that")
        if code is not None and code != question.code:
            raise UsageError(
                f"expected the code that this machine shows, {question.code}, found {code[:20]!r}; if the other "
                "machine shows another one than this, somebody is between them: say no"
            )
        if not answer.done():
            answer.set_result(yes)
        return question

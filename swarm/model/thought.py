"""How long a model may think: a limit of its thought's tokens, after which the closing mark comes by order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from swarm.base.bounds import AtMost, Between, by_name
from swarm.base.errors import UsageError

MAX_MARK = 8
MAX_TOKEN = 2**31 - 1
MarkToken = Annotated[int, Between(0, MAX_TOKEN)]


@by_name(others="refused")
@dataclass(frozen=True)
class ThoughtLimit:
    """What an answer may spend on thoughts. What it dictates is a function of the answer's tokens alone, so tail,
    requester, replay and audit come to the same.

    most    tokens inside thoughts, of all the answer's thoughts together, their marks not counted
    closes  the tokens that close a thought
    opens   the tokens that open one; none: the answer opens none itself
    opened  the prompt ends within a thought
    """

    most: Annotated[int, Between(0, MAX_TOKEN)]
    closes: Annotated[tuple[MarkToken, ...], AtMost(MAX_MARK, least=1)]
    opens: Annotated[tuple[MarkToken, ...], AtMost(MAX_MARK)] = ()
    opened: bool = False

    def __post_init__(self) -> None:
        if type(self.most) is not int or not 0 <= self.most <= MAX_TOKEN:
            raise UsageError(f"expected a limit of a thought's tokens from 0 to {MAX_TOKEN}, found {self.most!r:.40}")
        for name, mark, least in (("closes", self.closes, 1), ("opens", self.opens, 0)):
            if not least <= len(mark) <= MAX_MARK or not all(type(t) is int and 0 <= t <= MAX_TOKEN for t in mark):
                raise UsageError(f"expected {least} to {MAX_MARK} tokens of what {name} a thought, found {mark!r:.60}")
        if not self.opens and not self.opened:
            raise UsageError("a thought's limit needs the mark that opens thoughts, or a prompt that ends within one")

    def due(self, answer: Sequence[int]) -> int:
        """The token of the closing mark that has to come after these tokens of the answer; -1: any may come."""
        if len(answer) < self.most:
            return -1
        answer = list(answer)
        at, spent, inside = 0, 0, self.opened
        while True:
            if not inside:
                if (at := _find(answer, self.opens, at)) < 0:
                    return -1
                at += len(self.opens)
            if (end := _find(answer, self.closes, at)) < 0:
                break
            spent += end - at
            at, inside = end + len(self.closes), False
        over = len(answer) - at - max(0, self.most - spent)
        return self.closes[over] if 0 <= over < len(self.closes) else -1


def _find(tokens: list[int], mark: Sequence[int], at: int) -> int:
    """Where the mark begins, at place `at` or later; -1: nowhere, as an empty mark is."""
    while mark:
        try:
            at = tokens.index(mark[0], at)
        except ValueError:
            break
        if tokens[at : at + len(mark)] == list(mark):
            return at
        at += 1
    return -1

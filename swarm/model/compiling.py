"""Constraints from anybody, compiled within limits of time and memory, and kept for the next request."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

from swarm.base.errors import ModelError, UsageError
from swarm.base.linechild import LineChild
from swarm.model.constraint import Constraint, engine
from swarm.model.grammars import grammar_of, refusal_of
from swarm.model.held import Matcher, Vocabulary

WALL_S = 0.8
"""For one constraint. Honest ones take milliseconds; a large one of 3,000 properties 0.6 s."""
KEPT = 32
"""Compiled constraints: a client asks for the same few again and again."""
BEGUN = 16
"""Tokens of an answer that are tried when a constraint is new."""
_CHILD = "swarm.model.compiling_child", "compiles grammars"


@dataclass(frozen=True)
class _Kept:
    """What was compiled, and the seconds that it took."""

    matcher: Matcher
    took_s: float


class Compiler:
    """Matchers for constraints, over one vocabulary. Thread-safe.

    Nobody learns from the time it takes that somebody else asked for a constraint: what was compiled is kept by name
    (`of`), and where names are not known (`even`: nodes) it takes as long as it did when it is asked for again.

    A constraint is compiled in a process of its own first, which is ended when it takes more than WALL_S; what that
    process could compile is then compiled here. The process starts when the first constraint comes, and stays.
    """

    def __init__(self, make: Callable[[], Vocabulary], wall_s: float = WALL_S, even: bool = False) -> None:
        """`make` is called once, when the vocabulary is first wanted."""
        self._make, self._even = make, even
        self._vocabulary: Vocabulary | None = None
        self._kept: OrderedDict[tuple[str, str, str], _Kept] = OrderedDict()
        self._trial = CompileTrial(wall_s)
        self._pool = ThreadPoolExecutor(1, "compile")
        self._turns: dict[str, list[asyncio.Future[None]]] = {}
        """By name the compilations under way (first) and those that wait for it."""
        self._lock = threading.RLock()
        """Held for moments only: what was compiled is there for others while the next is compiled."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens that spell answers. Raises ModelError where the tokenizer is none that can."""
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = self._make()
            return self._vocabulary

    def held(self, constraint: Constraint, of: str | None = "") -> Matcher:
        """A matcher at the beginning. Raises UsageError for what cannot be compiled here, saying why.

        `of`: who asks; None: nobody who is to find it again.
        """
        self.check(constraint)
        key = None if of is None else (of, constraint.kind, constraint.text)
        if (found := self._known(key)) is None:
            with self._trial.alone:
                if (found := self._known(key)) is None:
                    began = time.monotonic()
                    self._trial.read(constraint)
                    made = self.vocabulary.held(constraint)
                    self._begin(constraint, made)
                    if key is not None:
                        self._keep(key, _Kept(made, time.monotonic() - began))
                    return made.fresh(constraint.after)
        if self._even:
            time.sleep(found.took_s)
        return found.matcher.fresh(constraint.after)

    async def held_soon(self, constraint: Constraint, of: str | None = "") -> Matcher:
        """The same, waiting in no thread that others need, and for one compilation at most of each other name."""
        found = None if of is None else self._known((of, constraint.kind, constraint.text))
        if found is not None:
            self.check(constraint)
            if self._even:
                await asyncio.sleep(found.took_s)
            return found.matcher.fresh(constraint.after)
        async with self._turn(of or ""):
            return await asyncio.get_running_loop().run_in_executor(self._pool, self.held, constraint, of)

    @asynccontextmanager
    async def _turn(self, of: str) -> AsyncIterator[None]:
        line, mine = self._turns.setdefault(of, []), asyncio.get_running_loop().create_future()
        line.append(mine)
        try:
            if line[0] is not mine:
                await mine
            yield
        finally:
            line.remove(mine)
            if not line:
                self._turns.pop(of, None)
            elif not line[0].done():
                line[0].set_result(None)

    def _known(self, key: tuple[str, str, str] | None) -> _Kept | None:
        with self._lock:
            if key is None or key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key]

    def _keep(self, key: tuple[str, str, str], made: _Kept) -> None:
        """Of too many the oldest goes of whoever has most: nobody drives out what another asked for."""
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > KEPT:
                most = Counter(of for of, _, _ in self._kept).most_common(1)[0][0]
                del self._kept[next(each for each in self._kept if each[0] == most)]

    def _begin(self, constraint: Constraint, matcher: Matcher) -> None:
        """The first tokens of an answer: much of what is too much to follow shows there, before anything is spent."""
        tokens: list[int] = []
        try:
            while len(tokens) < BEGUN and (not tokens or tokens[-1] not in self.vocabulary.ends):
                tokens.append(matcher.after(tokens).first)
        except ModelError as error:
            raise UsageError(refusal_of(constraint.kind, str(error))) from None

    def check(self, constraint: Constraint) -> None:
        """Whether constraints mean the same here as to whoever made this one. Raises UsageError."""
        if constraint.engine != engine():
            raise UsageError(f"expected a constraint for {engine()}, which runs here, found {constraint.engine!r:.60}")
        if constraint.vocabulary != self.vocabulary.digest:
            raise UsageError(
                f"expected a constraint over the vocabulary {self.vocabulary.digest[:16]} of this model's tokenizer, "
                f"found one over {constraint.vocabulary[:16]!r}"
            )

    def ready(self, constraint: Constraint, after: int) -> Constraint:
        """The constraint as it stands in an order: with engine, vocabulary, and the prompt's length before it."""
        return Constraint(constraint.kind, constraint.text, engine(), self.vocabulary.digest, after)

    def warm(self) -> None:
        """Start the process, so that the first constraint need not wait for it."""
        self._trial.warm()

    def close(self) -> None:
        """End the process."""
        self._trial.close()
        self._pool.shutdown(wait=False)


class CompileTrial:
    """Reads constraints in a process of its own, which is ended when one takes more than `wall_s`; one at a time."""

    def __init__(self, wall_s: float = WALL_S) -> None:
        self._wall_s = wall_s
        self._child: LineChild | None = None
        self.alone = threading.RLock()

    def read(self, constraint: Constraint) -> None:
        """Raises UsageError for what cannot be read, or not within the limits."""
        line = json.dumps({"grammar": grammar_of(constraint)}).encode() + b"\n"
        with self.alone:
            child = self._started()
            try:
                answer = child.ask(line, self._wall_s, 1 << 16)
            except BaseException:
                child.end()
                raise
            if answer is None:
                child.end()
                taken = f"it takes more than {self._wall_s:g} s, or more memory than it may; make it simpler"
                raise UsageError(refusal_of(constraint.kind, taken))
        if "refused" in answer:
            raise UsageError(refusal_of(constraint.kind, str(answer["refused"])))

    def warm(self) -> None:
        """Start the process."""
        with self.alone:
            self._started()

    def close(self) -> None:
        """End the process, also while it reads: what it reads is refused then."""
        if (child := self._child) is not None:
            child.end()

    def _started(self) -> LineChild:
        if self._child is None or not self._child.alive:
            self._child = LineChild(*_CHILD)
        return self._child


def require_readable(constraint: Constraint) -> None:
    """Raises UsageError for what cannot be compiled over any vocabulary. Takes a second."""
    trial = CompileTrial()
    try:
        trial.read(constraint)
    finally:
        trial.close()

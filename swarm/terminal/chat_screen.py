"""How `swarm chat` looks and reads: Markdown and a live line on a terminal, plain text in a pipe."""

from __future__ import annotations

import asyncio
import re
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment, Segments
from rich.text import Text

from swarm.run.api import CommittedTokens, Recovering, RingOpened, StageInfo, WaitingForCoverage
from swarm.terminal.chat_commands import COMMANDS, Talk, summary

_FENCE = re.compile(r"^\s{0,3}(```|~~~)", re.M)
_RATE_WINDOW_S = 3.0


def settled(text: str) -> int:
    """How many first characters are whole blocks that later text cannot change: up to the last blank line that is not
    inside a code fence or a list."""
    best = 0
    for found in re.finditer(r"\n[ \t]*\n", text):
        before = text[: found.end()]
        after = text[found.end() :]
        if len(_FENCE.findall(before)) % 2 == 0 and after and not re.match(r"[ \t]|[-*+] |\d{1,6}[.)] ", after):
            best = found.end()
    return best


def ring_line(ring: tuple[StageInfo, ...]) -> str:
    """The ring in one short line."""
    stages = " → ".join(f"{s.node[:8]} {s.layers[0]}-{s.layers[1] - 1}" for s in ring)
    return f"you → {stages} → you"


class TerminalScreen:
    """Whole paragraphs are printed for good; the one being written is redrawn above a line with speed and ring."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._text = ""
        self._printed = 0
        self._status = ""
        self._ring = ""
        self._recent: deque[tuple[float, int]] = deque()
        self._count = 0

    def say(self, text: str) -> None:
        self._console.print(Text(text, style="dim"), soft_wrap=True)

    def fail(self, text: str) -> None:
        self._console.print(Text(text, style="red"), soft_wrap=True)

    def opening(self) -> None:
        self._text, self._printed, self._count = "", 0, 0
        self._recent.clear()
        self._status, self._ring = "opening the ring", ""
        self._console.print()
        self._live = Live(self._draw(), console=self._console, refresh_per_second=12, transient=True)
        self._live.start()

    def waiting(self, event: WaitingForCoverage) -> None:
        self._status = f"waiting for coverage: {event.reason}"
        self._show()

    def opened(self, event: RingOpened) -> None:
        self._status, self._ring = "reading the prompt", ring_line(event.ring)
        self._show()

    def more(self, event: CommittedTokens, now: float) -> None:
        self._text += event.text
        self._count += len(event.tokens)
        self._recent.append((now, len(event.tokens)))
        while now - self._recent[0][0] > _RATE_WINDOW_S:
            self._recent.popleft()
        span = now - self._recent[0][0]
        rate = sum(count for _, count in list(self._recent)[1:]) / span if span > 0 else 0.0
        self._status = f"{self._count} tokens" + (f", {rate:.1f} tokens/s" if rate else "")
        whole = self._printed + settled(self._text[self._printed :])
        if whole > self._printed:
            self._print(self._text[self._printed : whole])
            self._console.print()
            self._printed = whole
        self._show()

    def recovering(self, event: Recovering) -> None:
        self._status = f"{event.lost[:8]} {'is leaving' if event.leaving else 'is lost'}, looking for another way"
        self._show()

    def closed(self, talk: Talk, stopped: bool) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        rest = self._text[self._printed :]
        if rest.strip():
            self._print(rest)
        line = "stopped" if stopped else summary(talk.last) if talk.last else ""
        self._console.print(Text(line, style="dim"))
        self._console.print()

    def _print(self, text: str) -> None:
        """Markdown without the blank lines that some blocks bring along: blocks are printed one by one here."""
        lines = self._console.render_lines(Markdown(text), pad=False)
        written = [index for index, line in enumerate(lines) if any(piece.text.strip() for piece in line)]
        if written:
            kept = lines[written[0] : written[-1] + 1]
            self._console.print(Segments([piece for line in kept for piece in [*line, Segment.line()]]), end="")

    def _show(self) -> None:
        if self._live is not None:
            self._live.update(self._draw())

    def _draw(self) -> RenderableType:
        line = Text(f"{self._status}   {self._ring}".rstrip(), style="dim", no_wrap=True, overflow="ellipsis")
        rest = self._text[self._printed :]
        return Group(Markdown(rest), Text(), line) if rest.strip() else line


class PlainScreen:
    """For pipes: the answers alone on `out`, everything else on `err`."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out = out
        self._err = err

    def say(self, text: str) -> None:
        print(text, file=self._err, flush=True)

    fail = say

    def opening(self) -> None:
        pass

    def waiting(self, event: WaitingForCoverage) -> None:
        self.say(f"waiting for coverage: {event.reason}")

    def opened(self, event: RingOpened) -> None:
        pass

    def more(self, event: CommittedTokens, now: float) -> None:
        self._out.write(event.text)
        self._out.flush()

    def recovering(self, event: Recovering) -> None:
        self.say(f"{event.lost[:8]} {'is leaving' if event.leaving else 'is lost'}, looking for another way")

    def closed(self, talk: Talk, stopped: bool) -> None:
        self._out.write("\n")
        self._out.flush()


def line_reader(source: TextIO) -> Callable[[], Awaitable[str]]:
    """One message per line, for pipes. Raises EOFError at the end."""

    async def read() -> str:
        line = await asyncio.to_thread(source.readline)
        if not line:
            raise EOFError
        return line.rstrip("\n")

    return read


def prompt_reader(history: Path | None) -> Callable[[], Awaitable[str]]:
    """A line editor: history, completion of commands, Alt-Enter for a new line."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.filters import Condition
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    if history is not None:
        history.parent.mkdir(parents=True, exist_ok=True)
        history.touch(mode=0o600)
    session: PromptSession[str] = PromptSession(
        history=FileHistory(str(history)) if history is not None else InMemoryHistory(),
        completer=WordCompleter([f"/{name}" for name in COMMANDS], sentence=True),
        complete_while_typing=Condition(lambda: session.default_buffer.text.startswith("/")),
        key_bindings=keys,
        multiline=True,
        prompt_continuation="  ",
    )

    async def read() -> str:
        return await session.prompt_async("> ")

    return read


def screen_and_reader(
    history: Path | None,
) -> tuple[TerminalScreen | PlainScreen, Callable[[], Awaitable[str]]]:
    """What fits this process: a terminal at both ends, or pipes."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        return TerminalScreen(Console()), prompt_reader(history)
    return PlainScreen(sys.stdout, sys.stderr), line_reader(sys.stdin)

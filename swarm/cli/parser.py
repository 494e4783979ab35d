"""The parser of every command: help in two depths, and a guess where a word is misspelt."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

BASIC = frozenset(
    {
        *("--help", "--help-all", "--version"),
        *(
            "--swarm",
            "--model",
            "--gpu",
            "--cpu",
            "--threads",
            "--layers",
            "--listen",
            "--advertise",
            "--open",
            "--found",
        ),
        *("--max-tokens", "--system", "--raw", "--stop", "--temperature", "--top-p", "--seed", "--json", "--receipt"),
        *("--speculation", "--draft", "--private", "--host", "--port", "--api-key"),
        *("--replay", "--audit", "--require", "--require-level", "--rtt", "--nodes", "--dashboard", "--out"),
    }
)
"""What `--help` shows of a command with many options; `--help-all` shows all of them."""

MANY = 14
"""A command with more options than this has help in two depths: about what a terminal of 24 lines can bear twice."""


class Parser(argparse.ArgumentParser):
    """An `argparse` parser whose help is short first, and that says what was probably meant."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_argument("--help-all", action=_HelpAll, help="show every option and exit")

    @property
    def has_more(self) -> bool:
        """Whether `--help` leaves something out."""
        return sum(bool(action.option_strings) for action in self._actions) > MANY

    def format_help(self) -> str:
        with _hidden(self._left_out()):
            text = super().format_help()
        return text + "\nMore options: --help-all\n" if self.has_more else text

    def format_usage(self) -> str:
        with _hidden(self._left_out()):
            return super().format_usage()

    def format_help_all(self) -> str:
        """Help with every option."""
        return super().format_help()

    def _left_out(self) -> list[argparse.Action]:
        if not self.has_more:
            return [action for action in self._actions if isinstance(action, _HelpAll)]
        return [action for action in self._actions if action.option_strings and not BASIC & set(action.option_strings)]

    def error(self, message: str) -> NoReturn:
        """Usage, the error, and a near miss if there is one; exit code 2."""
        guess = self._guess(message)
        super().error(f"{message}{guess}")

    def _guess(self, message: str) -> str:
        if found := re.match(r"argument \S+: invalid choice: '([^']*)'", message):
            words = [found[1]]
        elif found := re.match(r"unrecognized arguments: (.*)", message):
            words = [word.partition("=")[0] for word in found[1].split() if word.startswith("--")]
        else:
            return ""
        known = list(self._words(options=message.startswith("unrecognized")))
        near = [close[0] for word in words if (close := difflib.get_close_matches(word, known, 1, 0.75))]
        return f"; did you mean {' '.join(near)}?" if near else ""

    def _words(self, options: bool) -> Iterator[str]:
        """Everything that could have been meant: options of this command and those below it, or choices."""
        for action in self._actions:
            if options:
                yield from action.option_strings
            elif action.choices is not None:
                yield from map(str, action.choices)
            if isinstance(action, argparse._SubParsersAction):
                for child in dict.fromkeys(action.choices.values()):
                    yield from child._words(options) if options else ()


class _HelpAll(argparse.Action):
    """`--help-all`."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> None:
        assert isinstance(parser, Parser)
        parser._print_message(parser.format_help_all(), sys.stdout)
        parser.exit()


@contextmanager
def _hidden(actions: Sequence[argparse.Action]) -> Iterator[None]:
    """While this lasts, help tells of none of them."""
    told = [action.help for action in actions]
    for action in actions:
        action.help = argparse.SUPPRESS
    try:
        yield
    finally:
        for action, text in zip(actions, told, strict=True):
            action.help = text

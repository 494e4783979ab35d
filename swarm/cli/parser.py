"""The parser of every command: options as dataclasses declare them (`swarm/base/option.py`), help in two depths and for
narrow terminals, and a guess where a word is misspelt."""

from __future__ import annotations

import argparse
import difflib
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from swarm.base.errors import UsageError
from swarm.base.option import Option, declared

MANY = 14
"""A command with more options than this has help in two depths: about what a terminal of 24 lines can bear twice."""


NARROW = 64
"""Columns below which an option's help stands under it instead of beside it."""


class Parser(argparse.ArgumentParser):
    """An `argparse` parser that reads declared options, whose help is short first, and that says what was meant."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._everyday = {"help"}
        self._groups: dict[str, argparse._ArgumentGroup] = {}
        self._exclusive: dict[str, argparse._MutuallyExclusiveGroup] = {}
        self.add_argument("--help-all", action=_HelpAll, help="show every option and exit")

    def sections(self, *titles: str) -> None:
        """Headings of help, in this order; others come behind them."""
        for title in titles:
            if title not in self._groups:
                self._groups[title] = self.add_argument_group(title)

    def declare(self, kind: type, *names: str, without: Sequence[str] = (), absent: Sequence[str] = ()) -> None:
        """The options of a dataclass: all but `without`, or those of these fields. `absent`: fields whose options are
        not among the parsed arguments where they were not given, so that one can tell."""
        for field, option, default in declared(kind):
            if field in names or (not names and field not in without):
                words = _keywords(option, default) | ({"default": argparse.SUPPRESS} if field in absent else {})
                spelt = [option.name, option.short] if option.short else [option.name]
                self._place(option).add_argument(*spelt, **words)
                if option.everyday:
                    self._everyday.add(option.dest)

    def usual(self, name: str) -> object:
        """The value of an option that is not given, as it is when it was parsed: a default that is written as text is
        read as what is typed is."""
        default = self.get_default(name)
        action = next((action for action in self._actions if action.dest == name), None)
        return self._get_value(action, default) if action is not None and isinstance(default, str) else default

    def _place(self, option: Option) -> argparse._ActionsContainer:
        """Where an option stands: under its heading, and with those that it excludes."""
        place: argparse._ActionsContainer = self
        if option.group:
            self.sections(option.group)
            place = self._groups[option.group]
        if option.excludes:
            if option.excludes not in self._exclusive:
                self._exclusive[option.excludes] = place.add_mutually_exclusive_group()
            place = self._exclusive[option.excludes]
        return place

    @property
    def has_more(self) -> bool:
        """Whether `--help` leaves something out."""
        return sum(bool(action.option_strings) for action in self._actions) > MANY

    def format_help(self) -> str:
        """Of many options the everyday ones, in one list that fits a screen; else all, under their headings."""
        if not self.has_more:
            with _hidden([action for action in self._actions if isinstance(action, _HelpAll)]):
                return self.format_help_all()
        words = [action for action in self._actions if not action.option_strings]
        shown = [action for action in self._actions if action.option_strings and action.dest in self._everyday]
        return self._help([("positional arguments", words), ("options", shown)]) + "\nMore options: --help-all\n"

    def format_help_all(self) -> str:
        """Help with every option."""
        return self._help([(group.title, group._group_actions) for group in self._action_groups])

    def _help(self, sections: Iterable[tuple[str | None, Sequence[argparse.Action]]]) -> str:
        formatter, width = self._get_formatter(), _columns()
        formatter.add_text(self.format_usage().rstrip())
        formatter.add_text("\n".join(textwrap.wrap(self.description or "", width)))
        for title, actions in sections:
            formatter.start_section(title)
            formatter.add_arguments(actions)
            formatter.end_section()
        if self._subparsers is not None:
            formatter._action_max_length += 2  # commands stand further in, which argparse does not count
        end = self.epilog or ""
        if max(map(len, end.splitlines()), default=0) > width:  # what a command does goes under it
            end = re.sub(r"^(  \S.*?) {2,}(.*)$", r"\1\n    \2", end, flags=re.MULTILINE)
        formatter.add_text(end)
        return formatter.format_help()

    def format_usage(self) -> str:
        """One line: the options stand in the help below it, or are asked for by name."""
        parts = ["[OPTIONS]"]
        for action in self._actions:
            if action.option_strings and not action.required:
                continue
            word = str(action.metavar or action.dest)
            if action.option_strings:
                word = f"{action.option_strings[0]} {action.metavar or action.dest.upper()}"
            parts.append({"?": f"[{word}]", argparse.PARSER: f"{word} ..."}.get(str(action.nargs), word))
        return textwrap.fill(f"usage: {self.prog} {' '.join(parts)}", _columns(), subsequent_indent="    ") + "\n"

    def _get_formatter(self) -> argparse.HelpFormatter:
        width, beside = _columns(), 16 if self._subparsers is not None else 6
        return _Formatter(self.prog, 2, 24 if width >= NARROW else beside, width)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but what a command does not know is an error of that command, with its usage."""
        words = sys.argv[1:] if args is None else args
        if self._subparsers is not None and not words:  # nothing asked for: what could be
            self._print_message(self.format_help(), sys.stderr)
            self.exit(2)
        if self._subparsers is not None and words and words[0].startswith("-") and not self._is_option(words[0]):
            self.error(f"unrecognized arguments: {words[0]}")  # which argparse says only where nothing else is missing
        found, unknown = super().parse_known_args(args, namespace)
        if unknown and self._subparsers is None:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def _is_option(self, word: str) -> bool:
        return any(name.startswith(word.partition("=")[0]) for name in self._option_string_actions)

    def _print_message(self, message: str, file: Any = None) -> None:
        """As argparse does, but what cannot be written is an error: help that was not seen is no success."""
        if message:
            (file or sys.stderr).write(message)

    def error(self, message: str) -> NoReturn:
        """Usage and where help is, the error, and a near miss if there is one; exit code 2."""
        self.print_usage(sys.stderr)
        self.exit(2, f"    all of it: {self.prog} --help\n{self.prog}: error: {message}{self._guess(message)}\n")

    def _guess(self, message: str) -> str:
        if found := re.match(r"argument \S+: invalid choice: '([^']*)'", message):
            words = [found[1]]
        elif found := re.match(r"unrecognized arguments: (.*)", message):
            words = [word.partition("=")[0] for word in found[1].split() if word.startswith("--")]
        else:
            return ""
        known = list(self._words(options=message.startswith("unrecognized")))
        near = [meant for word in words if (meant := _nearest(word, known)) is not None]
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


def _nearest(word: str, known: Sequence[str]) -> str | None:
    """What was meant: something spelled nearly so, or the only thing that begins so."""
    if close := difflib.get_close_matches(word, known, 1, 0.75):
        return close[0]
    begun = {name for name in known if len(word.strip("-")) > 1 and name.startswith(word)}
    return begun.pop() if len(begun) == 1 else None


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """As argparse has it, but choices that are wider than the terminal stand in the help, whose lines are broken."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        text = super()._format_action_invocation(action)
        if not self._wide(action, text):
            return text
        return ", ".join(f"{name} {action.dest.upper()}" for name in action.option_strings) or action.dest.upper()

    def _expand_help(self, action: argparse.Action) -> str:
        text = super()._expand_help(action)
        if not self._wide(action, super()._format_action_invocation(action)):
            return text
        return f"{text}; one of {', '.join(map(str, action.choices or ()))}"

    def _wide(self, action: argparse.Action, text: str) -> bool:
        listed = action.choices is not None and action.metavar is None
        return listed and self._current_indent + len(text) > self._width


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


def _columns() -> int:
    """Width of help, by the terminal."""
    return max(20, shutil.get_terminal_size((80, 24)).columns - 2)


def _keywords(option: Option, default: object) -> dict[str, Any]:
    """A declaration as `add_argument` takes it."""
    if option.flag:
        return {"action": "store_true", "help": option.help}
    words: dict[str, Any] = {"help": option.help, "metavar": option.metavar, "default": default}
    if option.shown is not None or default == ():
        words["default"] = option.shown
    words["type"] = _worded(option.read or _text)
    if option.choices is not None:
        words["choices"] = option.choices
    if option.repeat:
        words |= {"action": "append", "default": []}
    if option.many:
        words |= {"nargs": "+", "default": list(default) if isinstance(default, tuple) else default}
    if option.alone is not None or option.optional:
        words |= {"nargs": "?", "const": option.alone}
    if option.required:
        words |= {"default": None, "required": True}
    if not option.name.startswith("-") and not option.optional:
        words["default"] = None
    return words


def _text(text: str) -> str:
    """The text itself. Raises UsageError for bytes that are no text: they could be sent to nobody."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"expected text in UTF-8, found other bytes: {ascii(text)}") from None
    return text


def _worded(read: Callable[[str], object]) -> Callable[[str], object]:
    """The same for argparse, which names the option in front of what was wrong with its value."""

    def parse(text: str) -> object:
        try:
            return read(text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse

"""llama.cpp's grammars (GBNF) as Lark: llguidance translates, what it would read otherwise is put in other words."""

from __future__ import annotations

import re

from llguidance.gbnf_to_lark import gbnf_to_lark

from swarm.base.errors import UsageError

MAX_RULES = 600
"""The translator compares each rule with each."""

_PART = re.compile(
    r"""(?P<text>"(?:\\.|[^"\\])*")|(?P<chars>\[(?:\\.|[^\]\\])*\])|(?P<note>\#[^\r\n]*)|(?P<any>\.)"""
    r"""|(?P<least>\{[ \t]*,)|(?P<rule>::=)""",
    re.DOTALL | re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|.)", re.DOTALL)
_ANY = "[\\x00-\U0010ffff]"


def lark_of(text: str) -> str:
    """The grammar in Lark. Raises UsageError naming what is wrong with it."""
    if sum(part.lastgroup == "rule" for part in _PART.finditer(text)) > MAX_RULES:
        raise UsageError(f"the grammar cannot be read: expected at most {MAX_RULES} rules, found more")
    try:
        return str(gbnf_to_lark(_PART.sub(_said, text)))
    except RecursionError:
        raise UsageError("the grammar cannot be read: it is nested too deep") from None
    except UsageError:
        raise
    except Exception as error:  # what the translator finds wrong as a whole it raises as nothing more: no root
        raise UsageError(f"the grammar cannot be read: {str(error)[:300] or 'no reason given'}") from None


def _said(part: re.Match[str]) -> str:
    match part.lastgroup:
        case "text":
            return _ESCAPE.sub(_character, part[0])
        case "chars":
            return _characters(_ESCAPE.sub(_character, part[0]))
        case "any":  # line ends too
            return _ANY
        case "least":
            return "{0,"
        case _:
            return part[0]


def _character(escape: re.Match[str]) -> str:
    if not (digits := escape[1] or escape[2]):
        return escape[0]
    code = int(digits, 16)
    if code > 0x10FFFF or 0xD800 <= code < 0xE000:
        raise UsageError(f"the grammar cannot be read: {escape[0]} is no character")
    return f"\\x{code:02x}" if code < 0x80 else chr(code)


def _characters(chars: str) -> str:
    """A class, without what means operations on sets to the engine."""
    if "--" in chars:
        raise UsageError(f"the grammar cannot be read: write \\x2d for the second '-' of '--' in {chars[:40]}")
    return chars.replace("&", "\\x26").replace("~", "\\x7e")

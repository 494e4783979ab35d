"""Look-ahead at the beginning of a pattern, which the engine has not, as patterns beside it.

`^(?=A)(?!B)C` is: a string that `^(?:A)` and `^C` match and `^B` does not. What must not come is said where it is one
kind of character: at the beginning, anywhere, or as the only one. Anything else stays, and is refused.
"""

from __future__ import annotations

import re

_ATOM = r"(?:\\[sSdDwW.\-+*/\\]|\[(?!\^)(?:\\.|[^\]\\])+\]|[A-Za-z0-9_@#%&/:;,<>= -])"
_FIRST = re.compile(f"(?P<one>{_ATOM})")
_ANYWHERE = re.compile(rf"(?:\.|\[\\s\\S\])\*(?P<one>{_ATOM})")
_ALONE = re.compile(rf"\^?(?P<one>{_ATOM})[*+]\$")


def without_lookahead(pattern: str) -> list[str] | None:
    """Patterns that a string must all match so that it matches this one; None where that cannot be said."""
    if not pattern.startswith(("^(?=", "^(?!")):
        return None
    rest, found = pattern[1:], list[str]()
    while rest.startswith(("(?=", "(?!")):
        end = _closing(rest)
        if end is None:
            return None
        inner = rest[3:end]
        said = f"^(?:{inner})" if rest[2] == "=" else _never(inner)
        if said is None:
            return None
        found.append(said)
        rest = rest[end + 1 :]
    if _alternatives(rest) or rest[:1] in ("*", "+", "?", "{"):
        return None
    return (
        None
        if any("(?=" in each or "(?!" in each or "(?<" in each for each in (*found, rest))
        else [*found, "^" + rest]
    )


def _never(inner: str) -> str | None:
    """A pattern of strings where `inner` does not match at the beginning."""
    if match := _ALONE.fullmatch(inner):  # the empty string is of it too with *
        return _other(match["one"]) if "*" in inner[-2:] else f"^$|{_other(match['one'])}"
    if match := _ANYWHERE.fullmatch(inner):
        return f"^{_other(match['one'])}*$"
    if match := _FIRST.fullmatch(inner):
        return f"^(?:{_other(match['one'])}|$)"
    return None


def _other(atom: str) -> str:
    """Any character but these."""
    return f"[^{atom[1:-1]}]" if atom.startswith("[") else f"[^{atom}]"


def _closing(text: str) -> int | None:
    """Where the group that `text` begins with ends."""
    depth, inside, place = 0, False, 0
    while place < len(text):
        letter = text[place]
        if letter == "\\":
            place += 1
        elif inside:
            inside = letter != "]"
        elif letter == "[":
            inside = True
            place += text.startswith(("]", "^]"), place + 1)
        elif letter in "()":
            depth += 1 if letter == "(" else -1
            if not depth:
                return place
        place += 1
    return None


def _alternatives(text: str) -> bool:
    """Whether it has a `|` outside of groups."""
    plain = re.sub(r"\\.|\[(?:\\.|[^\]\\])*\]", "", text, flags=re.DOTALL)
    while (shorter := re.sub(r"\([^()]*\)", "", plain)) != plain:
        plain = shorter
    return "|" in plain

"""Log-probabilities of an answer's tokens, told together with the text that the tokens add. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from swarm.model.text.spelling import Spelling

Told = tuple[float | None, tuple[tuple[int, float], ...]]
"""Own log-probability, and those of the likeliest tokens; None for a text's first token, which follows nothing."""


@dataclass(frozen=True)
class Entry:
    """One token. `data`: what it adds to the text, UTF-8; `offset`: characters before the one that it begins or goes
    on with."""

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]
    data: bytes
    offset: int


class LogprobLedger:
    """Holds entries until their text is out, so that the bytes of all that were told, joined, are the text: tokens of a
    stop string are never told. Special tokens add nothing to the text."""

    def __init__(self, spelling: Spelling, prompt: Sequence[int], offset: int = 0, show_special: bool = False) -> None:
        """`offset`: characters of an echoed prompt before the answer."""
        self._spelling = spelling
        self._show_special = show_special
        self._drop_space = spelling.drops_space and all(token in spelling.special for token in prompt)
        self._held: deque[Entry] = deque()
        self._begun = offset
        self._told = 0
        self._given = 0

    def add(self, tokens: Sequence[int], logprobs: Sequence[Told]) -> None:
        """Take in committed tokens."""
        for token, (own, top) in zip(tokens, logprobs, strict=False):
            data = self._adds(token)
            within = bool(data) and data[0] & 0xC0 == 0x80
            self._held.append(Entry(token, own, top, data, self._begun - within))
            self._begun += sum(byte & 0xC0 != 0x80 for byte in data)

    def told(self, text: str) -> None:
        """This much text is out; entries that it covers are released with the next."""
        self._given += len(text.encode())

    def release(self, text: str) -> list[Entry]:
        """Entries whose text is out, now that `text` was added to it."""
        self.told(text)
        out = []
        while self._held and self._told + len(self._held[0].data) <= self._given:
            self._told += len(self._held[0].data)
            out.append(self._held.popleft())
        return out

    def finish(self, cut: bool) -> list[Entry]:
        """The rest. `cut`: the text ends before its tokens do, at a stop string."""
        rest = list(self._held)
        self._held.clear()
        if not cut or not self._spelling.exact:
            return rest
        room = self._given - self._told
        return [replace(entry, data=entry.data[:room]) for entry in rest[:1] if room > 0]

    def _adds(self, token: int) -> bytes:
        if token in self._spelling.special and not self._show_special:
            return b""
        data = self._spelling.bytes_of(token)
        if self._drop_space and token not in self._spelling.special:
            self._drop_space = False
            return data.removeprefix(b" ")
        return data


def chat_entry(entry: Entry, spelling: Spelling, most: int) -> dict[str, Any]:
    """In the shape of chat completions."""
    named = {"token": spelling.label(entry.token), "logprob": entry.logprob, "bytes": list(entry.data)}
    return {
        **named,
        "top_logprobs": [
            {
                "token": spelling.label(token),
                "logprob": value,
                "bytes": list(entry.data if token == entry.token else spelling.bytes_of(token)),
            }
            for token, value in entry.top[:most]
        ],
    }


def text_entries(entries: Sequence[Entry], spelling: Spelling, most: int) -> dict[str, list[Any]]:
    """In the shape of text completions."""
    return {
        "tokens": [spelling.label(entry.token) for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [None if entry.logprob is None else _by_label(entry.top[:most], spelling) for entry in entries],
        "text_offset": [entry.offset for entry in entries],
    }


def _by_label(top: Sequence[tuple[int, float]], spelling: Spelling) -> dict[str, float]:
    """An object has each name once: of tokens that look alike all but the likeliest go by their id."""
    named: dict[str, float] = {}
    for token, value in top:
        label = spelling.label(token)
        named[f"token_id:{token}" if label in named else label] = value
    return named

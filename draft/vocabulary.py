"""Texts as one tokenizer's ids and back, in bytes: what two vocabularies have in common.

A token may be part of a character, and a text may end in one, so everything here is bytes. `ByteVocabulary.encode`
gives the ids that the tokenizer itself would choose wherever these spell the text, and some that do otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from swarm.model.text.spelling import Spelling
from swarm.model.text.tokenizer import Tokenizer

_WORD = re.compile(r"\s*\S+|\s+")
_ANCHOR = "\n"
_CACHED = 1 << 15


class ByteVocabulary:
    """A tokenizer's ids, spelled. Specials (see `swarm.model.text.spelling.special_tokens`) have names and no bytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._spelling = Spelling(tokenizer)
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        self.special: Mapping[int, str] = self._spelling.special
        self._ids: dict[bytes, int] | None = None
        self._longest = 0
        # Lookahead asks for the same few hundred beginnings again and again.
        self._cached = lru_cache(_CACHED)(self._encode)
        self._cut = lru_cache(_CACHED)(self._pieces)
        # A normalizer that rewrites spaces makes pieces of the raw text mean nothing.
        splitter = getattr(self._backend, "pre_tokenizer", None)
        rewrites = type(getattr(self._backend, "normalizer", None)).__name__ not in ("NoneType", "NFC")
        self._splitter = None if rewrites else splitter

    def bytes_of(self, token: int) -> bytes:
        """What an ordinary token spells; empty for specials and for ids that the vocabulary does not have."""
        return b"" if token in self.special else self._spelling.bytes_of(token)

    def spell(self, tokens: tuple[int, ...] | list[int]) -> bytes:
        """What tokens spell together."""
        return b"".join(map(self.bytes_of, tokens))

    def encode(self, data: bytes) -> tuple[int, ...] | None:
        """Ordinary ids that spell exactly `data`; None when the vocabulary cannot spell it."""
        return self._cached(data)

    def pieces(self, data: bytes) -> tuple[int, ...]:
        """Where pieces end that no token crosses, ascending, the last one at len(data). Half a character at the end is
        a piece of the one before it."""
        return self._cut(data)

    def _pieces(self, data: bytes) -> tuple[int, ...]:
        text = _whole(data)
        if not text:
            return (len(data),) if data else ()
        if self._splitter is not None:
            parts = [text[first:last] for _, (first, last) in self._splitter.pre_tokenize_str(text)]
            if "".join(parts) != text:
                parts = _WORD.findall(text)
        else:
            parts = _WORD.findall(text)
        ends, at = [], 0
        for part in parts:
            at += len(part.encode())
            ends.append(at)
        return (*ends[:-1], len(data))

    def _encode(self, data: bytes) -> tuple[int, ...] | None:
        text = _whole(data)
        ids = self._canonical(text) if text else ()
        whole = len(text.encode())
        if self.spell(ids) != data[:whole] or any(token in self.special for token in ids):
            return self._greedy(data)
        rest = self._greedy(data[whole:])
        return None if rest is None else (*ids, *rest)

    def _canonical(self, text: str) -> tuple[int, ...]:
        if not self._spelling.drops_space:
            return self._ids_of(text)
        # The tokenizer would put a space before the text: it gets its place behind a line break.
        anchor, both = self._ids_of(_ANCHOR), self._ids_of(_ANCHOR + text)
        return both[len(anchor) :] if both[: len(anchor)] == anchor else ()

    def _ids_of(self, text: str) -> tuple[int, ...]:
        if self._backend is not None:
            return tuple(self._backend.encode(text, add_special_tokens=False).ids)
        return tuple(int(token) for token in self._tokenizer.encode(text, add_special_tokens=False))

    def _greedy(self, data: bytes) -> tuple[int, ...] | None:
        """The longest token first: for texts that the tokenizer itself would rewrite, and parts of characters."""
        if not data:
            return ()
        if self._ids is None:
            self._ids = {}
            for token in range(len(self._tokenizer)):
                if spelled := self.bytes_of(token):
                    self._ids.setdefault(spelled, token)
            self._longest = max(map(len, self._ids), default=0)
        ids, at = list[int](), 0
        while at < len(data):
            for length in range(min(self._longest, len(data) - at), 0, -1):
                if (found := self._ids.get(data[at : at + length])) is not None:
                    ids.append(found)
                    at += length
                    break
            else:
                return None
        return tuple(ids)


def _whole(data: bytes) -> str:
    """The text without half a character at its end; empty when other bytes in it are no text either."""
    for cut in range(min(4, len(data) + 1)):
        try:
            return data[: len(data) - cut].decode()
        except UnicodeDecodeError:
            continue
    return ""


BEGIN_TURN = ("<|im_start|>", "<start_of_turn>", "<|start_header_id|>", "<|turn>", "<|start|>")
END_TURN = (
    "<|im_end|>",
    "<end_of_turn>",
    "<|eot_id|>",
    "<turn|>",
    "<|end|>",
    "<|endoftext|>",
    "</s>",
    "<|end_of_text|>",
    "<eos>",
)
"""Names that vocabularies give to the marks of turns in a conversation."""


def same_specials(theirs: Mapping[int, str], ours: Mapping[int, str]) -> dict[int, int]:
    """For special ids of one vocabulary those of another that mean the same: by name, else by what they are for."""
    by_name = {name: token for token, name in ours.items()}
    found = {}
    for token, name in theirs.items():
        names = next((role for role in (BEGIN_TURN, END_TURN) if name in role), ())
        match = next((by_name[other] for other in (name, *names) if other in by_name), None)
        if match is not None:
            found[token] = match
    return found

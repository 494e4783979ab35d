"""Token ids to text, as far as most of the program needs to know of a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from swarm.model.text.tokenizer import Tokenizer


class TokenDecoder(Protocol):
    """Makes text of token ids."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids, without special tokens and with spaces as they are."""


class PlainText:
    """By the tokenizer of a model."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids, without special tokens and with spaces as they are."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

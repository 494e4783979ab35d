"""A vocabulary of single bytes, over which a text has one spelling: whether a constraint allows a text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from swarm.model.held import Matcher, Vocabulary


@cache
def letters() -> PreTrainedTokenizerFast:
    """The tokenizer."""
    return merged(())


@cache
def lettered() -> Vocabulary:
    """Its vocabulary: 256 bytes and the end."""
    return Vocabulary(letters(), 257, [int(letters().eos_token_id)])


def allows(held: Matcher, text: str) -> bool:
    """Whether each byte of the text may come after those before it, and the end after all."""
    tokens = letters().encode(text)
    return all(held.after(tokens[:at]).allows(token) for at, token in enumerate(tokens)) and held.after(tokens).allows(
        int(letters().eos_token_id)
    )


def merged(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Bytes, and these words made of them by merges, so that text has more than one spelling; ends with <|end|>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab, merges = {letter: number for number, letter in enumerate(alphabet)}, list[tuple[str, str]]()
    for word in words:
        parts = list(word.replace(" ", "Ġ"))
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts[:2] = [parts[0] + parts[1]]
            vocab.setdefault(parts[0], len(vocab))
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>")

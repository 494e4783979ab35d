"""A vocabulary of single bytes, over which a text has one spelling: whether a constraint allows a text."""

from __future__ import annotations

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from swarm.model.held import Matcher, Vocabulary


@cache
def letters() -> PreTrainedTokenizerFast:
    """The tokenizer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>")


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

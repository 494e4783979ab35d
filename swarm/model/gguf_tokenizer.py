"""Tokenizers out of GGUF metadata.

A GGUF file carries vocabulary, merges and chat template, and only the *name* of the rule that splits text into words
(`tokenizer.ggml.pre`). The rules that are known here were compared with the tokenizers of the models that use them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from swarm.errors import ModelError
from swarm.model.gguf_file import GGUFHeader

_CONTROL, _USER = 3, 4
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def _splitter(rule: str) -> pre_tokenizers.PreTokenizer | None:
    if rule in ("gpt-2", "default"):
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if rule == "smollm":  # every digit is a word of its own
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if rule in ("llama-bpe", "qwen2"):
        split = pre_tokenizers.Split(Regex(_QWEN2 if rule == "qwen2" else _LLAMA3), behavior="isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return None


def gguf_tokenizer(header: GGUFHeader, path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a GGUF file, chat template included. Raises ModelError for a kind that is not known."""
    data = header.metadata
    kind, rule = data.get("tokenizer.ggml.model"), data.get("tokenizer.ggml.pre", "default")
    splitter = _splitter(str(rule))
    if kind != "gpt2" or splitter is None:
        raise ModelError(f"{path} has a tokenizer of kind {kind}/{rule}, which is not read from GGUF; use safetensors")
    try:
        return _build(data, splitter)
    except (KeyError, IndexError, TypeError, ValueError) as exc:
        raise ModelError(f"{path} has a damaged tokenizer ({exc}); fetch it again") from exc


def _build(data: dict[str, Any], splitter: pre_tokenizers.PreTokenizer) -> PreTrainedTokenizerBase:
    tokens: list[str] = data["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in data["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = splitter
    backend.decoder = decoders.ByteLevel()
    types: list[int] = data.get("tokenizer.ggml.token_type", [])
    special = [tokens[i] for i, kind in enumerate(types) if kind == _CONTROL]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.add_tokens([AddedToken(tokens[i], normalized=False) for i, kind in enumerate(types) if kind == _USER])
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    roles = {
        role: tokens[data[f"tokenizer.ggml.{key}_token_id"]]
        for role, key in names.items()
        if f"tokenizer.ggml.{key}_token_id" in data
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **roles)
    tokenizer.chat_template = data.get("tokenizer.chat_template")
    return tokenizer

"""Tokenizers out of GGUF metadata.

A GGUF file carries vocabulary, merges and chat template, and only the *name* of the rule that splits text into words
(`tokenizer.ggml.pre`). The rules that are known here were compared with the tokenizers of the models that use them;
sentencepiece vocabularies are built by transformers. What llama.cpp assumes where a key is missing is assumed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer

from swarm.base.errors import ModelError
from swarm.base.events import Notice, Report, silent
from swarm.model.files.gguf_file import GGUFHeader
from swarm.model.files.gguf_splits import WHOLE_WORDS, splitter

_CONTROL, _USER = 3, 4
_AS_LLAMA = ("llama", "mistral3", "ernie4_5", "ernie4_5-moe", "granite", "nemotron", "mamba2")
_SENTENCEPIECE = (*_AS_LLAMA, "gemma", "gemma2", "gemma3", "phi3")
"""Architectures whose sentencepiece vocabularies ("llama") are built right: transformers has one way for Gemma, one for
Phi-3, and that of Llama for all others."""

_TURN_ENDS = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|return|>", "<|endoftext|>")
"""Control tokens that end an answer wherever a vocabulary has them: files often name only one of them."""

_KNOWN = frozenset(
    f"tokenizer.ggml.{key}"
    for key in (
        "model pre tokens token_type token_type_count scores merges bos_token_id eos_token_id eot_token_id "
        "eom_token_id unknown_token_id seperator_token_id padding_token_id mask_token_id cls_token_id add_bos_token "
        "add_eos_token add_sep_token add_space_prefix fim_pre_token_id fim_suf_token_id fim_mid_token_id "
        "fim_pad_token_id fim_rep_token_id fim_sep_token_id prefix_token_id suffix_token_id middle_token_id"
    ).split()
)
"""Keys that are used, or name tokens that nobody asks for here (infill, classification)."""


def gguf_tokenizer(header: GGUFHeader, path: Path, report: Report = silent) -> PreTrainedTokenizerBase:
    """The tokenizer of a GGUF file, chat template included. Raises ModelError for a kind that is not known, and for a
    key that would be ignored; reports a rule that had to be guessed."""
    data = header.metadata
    _check_keys(data, path)
    kind, architecture = data.get("tokenizer.ggml.model"), str(data.get("general.architecture"))
    try:
        if kind == "llama" and architecture in _SENTENCEPIECE:
            backend, bos = _sentencepiece(data, architecture), True
        elif kind == "gpt2" and (split := splitter(rule := _rule(data, path, report))) is not None:
            backend, bos = _byte_level(data, split, rule in WHOLE_WORDS), rule in WHOLE_WORDS
        else:
            raise ModelError(
                f"{path} has a tokenizer of kind {kind}/{data.get('tokenizer.ggml.pre', 'default')}, which is not read "
                "from GGUF; use safetensors"
            )
        return _wrap(data, backend, bos)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as exc:
        raise ModelError(f"{path} has a damaged tokenizer ({exc}); fetch it again") from exc


def _check_keys(data: Mapping[str, Any], path: Path) -> None:
    for key in sorted(data):
        neutral = key == "tokenizer.ggml.remove_extra_whitespaces" and not data[key]
        if key.startswith("tokenizer.ggml.") and key not in _KNOWN and not neutral:
            raise ModelError(f"{path} states {key}, which is not read from GGUF; use safetensors")


def _rule(data: Mapping[str, Any], path: Path, report: Report) -> str:
    """The name of the rule that splits words; guessed from the architecture where the file is too old to say it."""
    named = data.get("tokenizer.ggml.pre")
    if isinstance(named, str):
        return named
    size, family = len(data.get("tokenizer.ggml.tokens", ())), str(data.get("general.architecture"))
    if family.startswith("qwen"):
        guess = "qwen2"
    elif family == "llama" and 128_000 <= size < 129_000:
        guess = "llama-bpe"
    else:
        guess = "default"
    if family != "gpt2":  # whose rule is the default
        report(
            Notice(
                f"{path.name} does not say how its tokenizer splits words (tokenizer.ggml.pre); taking {guess!r}: "
                "texts may get other tokens than the model was trained with; a newer file says it",
                "warning",
            )
        )
    return guess


def _byte_level(data: Mapping[str, Any], splitter: pre_tokenizers.PreTokenizer, whole_words: bool) -> Tokenizer:
    tokens: list[str] = data["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in data["tokenizer.ggml.merges"]]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=whole_words))
    backend.pre_tokenizer = splitter
    backend.decoder = decoders.ByteLevel()
    types: list[int] = data.get("tokenizer.ggml.token_type", [])
    special = [tokens[i] for i, kind in enumerate(types) if kind == _CONTROL]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.add_tokens([AddedToken(tokens[i], normalized=False) for i, kind in enumerate(types) if kind == _USER])
    return backend


def _sentencepiece(data: Mapping[str, Any], architecture: str) -> Tokenizer:
    described = {
        "tokenizer_type": "llama",
        "tokens": data["tokenizer.ggml.tokens"],
        "scores": data["tokenizer.ggml.scores"],
        "token_type": data.get("tokenizer.ggml.token_type", []),
    }
    if "tokenizer.ggml.merges" in data:
        described["merges"] = data["tokenizer.ggml.merges"]
    backend: Tokenizer = convert_gguf_tokenizer(architecture, described)[0]
    if architecture in _AS_LLAMA and data.get("tokenizer.ggml.add_space_prefix") is False:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
        backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend


def _wrap(data: Mapping[str, Any], backend: Tokenizer, bos_by_default: bool) -> PreTrainedTokenizerBase:
    """With roles, chat template, and the tokens that go around every text."""
    tokens: list[str] = data["tokenizer.ggml.tokens"]
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    roles = {
        role: tokens[data[f"tokenizer.ggml.{key}_token_id"]]
        for role, key in names.items()
        if f"tokenizer.ggml.{key}_token_id" in data
    }
    around = {}
    for role, default in (("bos", bos_by_default), ("eos", False)):
        if data.get(f"tokenizer.ggml.add_{role}_token", default) and f"{role}_token" in roles:
            around[role] = roles[f"{role}_token"]
    before, after = ([around[role]] if role in around else [] for role in ("bos", "eos"))
    backend.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *(f"{t}:1" for t in before), "$B:1", *(f"{t}:1" for t in after)],
        special_tokens=[(token, tokens.index(token)) for token in dict.fromkeys(around.values())],
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **roles)
    tokenizer.chat_template = data.get("tokenizer.chat_template")
    return tokenizer


def gguf_end_tokens(header: GGUFHeader) -> frozenset[int]:
    """Token ids that end a text: end of sequence, of turn and of message where the file names them, and control tokens
    that end a turn by their name. `<|endoftext|>` counts unless the file has it for unknown text."""
    data = header.metadata
    named = {data.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")}
    tokens, types = data.get("tokenizer.ggml.tokens", []), data.get("tokenizer.ggml.token_type", [])
    unknown = data.get("tokenizer.ggml.unknown_token_id")
    by_name = {
        i
        for i, (token, kind) in enumerate(zip(tokens, types, strict=False))
        if kind == _CONTROL and token in _TURN_ENDS and i != unknown
    }
    return frozenset(i for i in named | by_name if isinstance(i, int))

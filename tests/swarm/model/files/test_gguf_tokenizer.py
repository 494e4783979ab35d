"""Tokenizers and end tokens of GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase

from swarm.base.errors import ModelError
from swarm.base.events import Event, Notice
from swarm.model.files.checkpoint import end_tokens, load_tokenizer, open_model
from swarm.model.files.gguf_file import GGUFHeader
from swarm.model.files.gguf_splits import rules, splitter
from swarm.model.files.gguf_tokenizer import gguf_end_tokens, gguf_tokenizer
from swarm.model.files.store import ModelStore
from tests.swarm.model.gguf_files import write_gguf
from tests.swarm.model.tiny import random_model, tiny_config

WORDS = "the cat sat on the mat, the cats sat 1234 times; strawberry strawberries it's naïve 你好\n\n  def f(x):\n"
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = SPLIT.replace("{1,3}", "")


def trained(split: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=["<s>", "</s>", "<|eot_id|>"],
    )  # fmt: skip
    tokenizer.train_from_iterator([WORDS] * 9, trainer)
    return tokenizer


def keys_of(tokenizer: Tokenizer, **more: Any) -> dict[str, Any]:
    import json

    body = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(body["vocab"], key=body["vocab"].__getitem__)
    keys = {
        "model": "gpt2",
        "tokens": tokens,
        "token_type": [3] * 3 + [1] * (len(tokens) - 3),
        "merges": [" ".join(m) for m in body["merges"]],
        "bos_token_id": 0,
        "eos_token_id": 1,
        **more,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items() if value is not None}


def built(keys: dict[str, Any], arch: str = "llama", seen: list[Event] | None = None) -> PreTrainedTokenizerBase:
    header = GGUFHeader({"general.architecture": arch, **keys}, {})
    return gguf_tokenizer(header, Path("a.gguf"), (seen if seen is not None else []).append)


def ids(tokenizer: Any, text: str = WORDS, **how: Any) -> list[int]:
    return list(tokenizer(text, **how)["input_ids"])


def test_texts_begin_and_end_as_the_file_says() -> None:
    original = trained(QWEN)
    plain = original.encode(WORDS).ids
    keys = keys_of(original, pre="qwen2")
    assert ids(built(keys)) == plain
    assert ids(built(keys | {"tokenizer.ggml.add_bos_token": True})) == [0, *plain]
    both = built(keys | {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True})
    assert ids(both) == [0, *plain, 1]
    assert ids(both, add_special_tokens=False) == plain
    assert both.decode(ids(both), skip_special_tokens=True) == WORDS
    pair = both("the cat", "sat")["input_ids"]
    assert pair == [0, *original.encode("the cat").ids, 1, 0, *original.encode("sat").ids, 1]
    # Llama 3's rule begins with BOS unless the file says otherwise, as llama.cpp has it.
    llama = keys_of(trained(SPLIT), pre="llama-bpe")
    assert ids(built(llama))[0] == 0
    assert ids(built(llama | {"tokenizer.ggml.add_bos_token": False}))[0] != 0


def test_llama_3_takes_known_words_whole_and_other_rules_do_not() -> None:
    original = trained(SPLIT)
    keys = keys_of(original, pre="llama-bpe", add_bos_token=False)
    # A word in the vocabulary that its own merges do not reach.
    keys["tokenizer.ggml.tokens"] = [*keys["tokenizer.ggml.tokens"], "mats"]
    keys["tokenizer.ggml.token_type"] = [*keys["tokenizer.ggml.token_type"], 1]
    whole = len(keys["tokenizer.ggml.tokens"]) - 1
    assert ids(built(keys), "mats") == [whole]
    assert whole not in ids(built(keys | {"tokenizer.ggml.pre": "qwen2"}), "mats")


def test_a_file_that_does_not_name_its_rule_gets_the_right_one_or_a_warning() -> None:
    seen: list[Event] = []
    original = trained(QWEN)
    assert ids(built(keys_of(original), "qwen2", seen)) == original.encode(WORDS).ids
    (notice,) = seen
    assert isinstance(notice, Notice) and "taking 'qwen2'" in notice.text and notice.level == "warning"
    seen.clear()
    built(keys_of(original), "llama", seen)
    assert len(seen) == 1 and "taking 'default'" in str(seen[0])
    seen.clear()
    built(keys_of(original, pre="qwen2"), "qwen2", seen)
    assert seen == []


SENTENCE = "I've 12345 naïveABc你好ab 한국 x_y?? end\r\n\n  'RE 3.14Привет"
WORDS_BY_RULE = {  # as llama.cpp's (`python -m tests.models.gguf_words`), but for marks, which its rules pass over
    "qwen2": "I|'ve| |1|2|3|4|5| naïveABc你好ab| 한국| x|_y|??| end|\r\n\n| | '|RE| |3|.|1|4|Привет",
    "glm4": "I|'ve| |123|45| naïveABc你好ab| 한국| x|_y|??| end|\r\n\n| | '|RE| |3|.|14|Привет",
    "refact": "I|'ve| |1|2|3|4|5| naïveABc你好ab| 한국| x|_|y|??| end|\r\n\n | '|RE| |3|.|1|4|Привет",
    "deepseek-llm": "I|'|ve| |12345| na|ï|veABc|你好|ab| |한국| x|_|y|??| end|\r|\n|\n| | '|RE| |3|.|14|Привет",
    "deepseek-v3": "I|'ve| |123|45| naïveABc|你好|ab| 한국| x|_y|??| end|\r\n\n| | '|RE| |3|.|14|Привет",
    "exaone4": "I|'ve| 12345| naïveABc你好ab| 한국| x|_|y|??| end|\r\n\n | '|RE| 3|.|14|Привет",
    "gpt-4o": "I've| |123|45| naïve|ABc你好ab| 한국| x|_y|??| end|\r\n\n| | '|RE| |3|.|14|Привет",
    "kimi-k2": "I've| |123|45| naïve|ABc|你好|ab| 한국| x|_y|??| end|\r\n\n| | '|RE| |3|.|14|Привет",
    "tekken": "I|'ve| |1|2|3|4|5| naïve|ABc你好ab| 한국| x|_y|??| end|\r\n\n| | '|RE| |3|.|1|4|Привет",
}


@pytest.mark.parametrize("rule", WORDS_BY_RULE)
def test_words_are_split_by_the_rule_of_their_name(rule: str) -> None:
    split = splitter(rule)
    assert split is not None
    words = [SENTENCE[first:last] for _, (first, last) in split.pre_tokenize_str(SENTENCE)]
    assert words == WORDS_BY_RULE[rule].split("|")


def test_every_rule_splits_without_losing_a_letter() -> None:
    for rule in rules():
        split = splitter(rule)
        assert split is not None
        found = split.pre_tokenize_str(WORDS)
        assert [place for _, place in found] and "".join(WORDS[a:b] for _, (a, b) in found) == WORDS
    assert splitter("new-rule") is None


def test_what_is_not_known_is_refused() -> None:
    keys = keys_of(trained(QWEN), pre="qwen2")
    with pytest.raises(ModelError, match="kind gpt2/new-rule"):
        built(keys | {"tokenizer.ggml.pre": "new-rule"})
    with pytest.raises(ModelError, match="kind rwkv/qwen2"):
        built(keys | {"tokenizer.ggml.model": "rwkv"})
    with pytest.raises(ModelError, match=r"states tokenizer\.ggml\.precompiled_charsmap"):
        built(keys | {"tokenizer.ggml.precompiled_charsmap": [1]})
    with pytest.raises(ModelError, match="damaged tokenizer"):
        built(keys | {"tokenizer.ggml.bos_token_id": 99999})


def test_every_token_that_ends_an_answer_ends_it(tmp_path: Path) -> None:
    keys = keys_of(trained(QWEN), pre="qwen2")
    header = GGUFHeader({"general.architecture": "llama", **keys}, {})
    assert gguf_end_tokens(header) == {1, 2}  # </s> by number, <|eot_id|> by name
    by_number = header.metadata | {"tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": 6}
    assert gguf_end_tokens(GGUFHeader(by_number, {})) == {1, 2, 5, 6}
    config = tiny_config("llama")
    config.vocab_size = len(keys["tokenizer.ggml.tokens"])
    store = ModelStore(tmp_path / "store")
    first = write_gguf(tmp_path / "a.gguf", random_model(config), "llama", keys, split=20)
    other = str(sorted(tmp_path.glob("a-*.gguf"))[1])
    assert first.name.startswith("a-00001-of-")
    assert end_tokens(open_model(other, store), store, other) == {1, 2}
    assert ids(load_tokenizer(other, store)) == trained(QWEN).encode(WORDS).ids

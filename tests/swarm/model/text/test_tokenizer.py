"""Tokenizers from kept data give what transformers' own give: ids, texts, names, roles, templates, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from swarm.base.events import Event
from swarm.model.files.checkpoint import end_tokens, load_tokenizer, open_model, transformers_tokenizer
from swarm.model.files.named import DEFAULT_MODEL
from swarm.model.files.store import ModelStore
from swarm.model.held import Vocabulary
from swarm.model.text.spelling import Spelling, special_tokens
from swarm.model.text.tokenizer import FastTokenizer, TokenizerData, agree, data_of
from tests.swarm.serve.tiny import TEMPLATE, tiny_tokenizer

WORDS = ["the cat sat on the mat", "naïve 你好 1234", "def f(x): return x", "<s> and </s>", "I'm we're"]


def trained(model: Any, trainer: Any, **parts: Any) -> Tokenizer:
    made = Tokenizer(model)
    for name, part in parts.items():
        setattr(made, name, part)
    made.train_from_iterator(WORDS * 3, trainer)
    return made


def byte_level() -> PreTrainedTokenizerFast:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made = trained(
        models.BPE(), trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False),
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False), decoder=decoders.ByteLevel(),
    )  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>")


def word_pieces() -> PreTrainedTokenizerFast:
    special = ["[UNK]", "[CLS]", "[SEP]"]
    made = trained(
        models.WordPiece(unk_token="[UNK]"),
        trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False),
        normalizer=normalizers.BertNormalizer(), pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
        decoder=decoders.WordPiece(),
    )  # fmt: skip
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    made.enable_truncation(8)
    made.enable_padding(length=16)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", cls_token="[CLS]")


def sentencepiece() -> LlamaTokenizer:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrst"]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, "th", "▁t", "▁th"])}
    return LlamaTokenizer(vocab=vocabulary, merges=[("t", "h"), ("▁", "t"), ("▁t", "h")])


def unigram() -> PreTrainedTokenizerFast:
    made = trained(
        models.Unigram(), trainers.UnigramTrainer(vocab_size=80, unk_token="<unk>", special_tokens=["<unk>"],
                                                  show_progress=False),
        pre_tokenizer=pre_tokenizers.Metaspace(), decoder=decoders.Metaspace(),
    )  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", split_special_tokens=True)


def several_templates() -> PreTrainedTokenizerFast:
    made = tiny_tokenizer()
    made.chat_template = {"default": TEMPLATE, "tool_use": "tools: {{ tools }}"}
    return made


KINDS: dict[str, Callable[[], Any]] = {
    "tiny": tiny_tokenizer,
    "bytes": byte_level,
    "pieces": word_pieces,
    "sentencepiece": sentencepiece,
    "unigram": unigram,
    "templates": several_templates,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    return ModelStore(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def pairs(store: ModelStore) -> dict[str, tuple[FastTokenizer, Any]]:
    """Ours and transformers', of every kind at hand; ours after a trip through JSON."""
    found = {}
    made = {name: make() for name, make in KINDS.items()}
    made["default"] = transformers_tokenizer(store.tokenizer_source(DEFAULT_MODEL), DEFAULT_MODEL)
    for name, theirs in made.items():
        data = data_of(theirs)
        assert data is not None, name
        found[name] = FastTokenizer(TokenizerData.from_json(json.loads(json.dumps(asdict(data))))), theirs
    return found


NAMES = [*KINDS, "default"]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(text=st.text(max_size=80) | st.sampled_from(WORDS), around=st.booleans(), skip=st.booleans())
def test_texts_and_ids_are_the_same(
    pairs: dict[str, tuple[FastTokenizer, Any]], name: str, text: str, around: bool, skip: bool
) -> None:
    ours, theirs = pairs[name]
    told = []
    for one in (ours, theirs):
        try:
            ids = list(one(text, add_special_tokens=around)["input_ids"])
            assert one.encode(text, add_special_tokens=around) == ids
            told.append((ids, one.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)))
        except Exception as error:  # half of a surrogate pair
            told.append((type(error), str(error)))
    assert told[0] == told[1]


@pytest.mark.parametrize("name", NAMES)
def test_what_else_is_asked_of_them_is_the_same(pairs: dict[str, tuple[FastTokenizer, Any]], name: str) -> None:
    ours, theirs = pairs[name]
    assert agree(ours, theirs)
    assert ours.special_tokens_map == theirs.special_tokens_map and special_tokens(ours) == special_tokens(theirs)
    for role in ("bos_token", "eos_token", "eos_token_id"):
        assert getattr(ours, role) == getattr(theirs, role)
    some = [0, 5, len(ours) - 1, len(ours) + 7]
    assert ours.convert_ids_to_tokens(some) == theirs.convert_ids_to_tokens(some)
    spelled = [[Spelling(one).bytes_of(token) for token in range(len(one) + 3)] for one in (ours, theirs)]
    assert spelled[0] == spelled[1]
    for tools in (None, [{"name": "f"}]):
        chosen = []
        for one in (ours, theirs):
            try:
                chosen.append(one.get_chat_template(None, tools))
            except ValueError:
                chosen.append("refused")
        assert chosen[0] == chosen[1]
    for bad in ("\ud800", "a\udfff"):
        raised = []
        for one in (ours, theirs):
            with pytest.raises(Exception) as caught:
                one(bad)
            raised.append(caught.type)
        assert raised[0] is raised[1]


def test_grammars_are_spelled_the_same(pairs: dict[str, tuple[FastTokenizer, Any]]) -> None:
    for name in ("tiny", "default"):
        ours, theirs = pairs[name]
        assert Vocabulary(ours, len(theirs), [2]).digest == Vocabulary(theirs, len(theirs), [2]).digest


class Odd(PreTrainedTokenizerFast):  # type: ignore[misc]
    """Decodes in a way of its own."""

    def _decode(self, *given: Any, **named: Any) -> str:
        return "odd"


def test_a_class_with_ways_of_its_own_is_left_as_it_is(tmp_path: Path) -> None:
    assert data_of(Odd(tokenizer_object=tiny_tokenizer().backend_tokenizer)) is None
    assert data_of(object()) is None


def test_the_next_start_reads_what_the_first_one_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    tiny_tokenizer().save_pretrained(folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    first = load_tokenizer(str(folder), ModelStore(tmp_path / "store"))
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *given, **named: pytest.fail("loaded again"))
    second = load_tokenizer(str(folder), ModelStore(tmp_path / "store"))
    assert agree(first, theirs) and agree(second, theirs)
    # Another file, or a damaged note, is another tokenizer.
    monkeypatch.undo()
    (folder / "chat_template.jinja").write_text("other")
    assert load_tokenizer(str(folder), ModelStore(tmp_path / "store")).chat_template == "other"
    for note in (tmp_path / "store" / "manifests").glob("tokenizer-*"):
        found = json.loads(note.read_bytes())
        note.write_text(json.dumps({**found, "found": {**found["found"], "backend": "{}"}}))
    assert load_tokenizer(str(folder), ModelStore(tmp_path / "store")).chat_template == "other"


def test_what_was_said_of_a_tokenizer_is_said_again(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from swarm.base.events import Notice, Report
    from swarm.model.files import gguf_tokenizer

    def guessing(header: Any, source: Path, report: Report) -> Any:
        report(Notice("a rule had to be guessed", "warning"))
        return tiny_tokenizer()

    monkeypatch.setattr(gguf_tokenizer, "gguf_tokenizer", guessing)
    path = tmp_path / "m.gguf"
    path.write_bytes(store.tokenizer_source(DEFAULT_MODEL).read_bytes())
    for _ in range(2):
        said: list[Event] = []
        load_tokenizer(str(path), ModelStore(tmp_path / "kept"), said.append)
        assert len(said) == 1


def test_end_tokens_are_kept_too(store: ModelStore) -> None:
    checkpoint = open_model(DEFAULT_MODEL, store, (0, 1))
    assert end_tokens(checkpoint, store, DEFAULT_MODEL) == end_tokens(checkpoint, store, DEFAULT_MODEL) == {2}

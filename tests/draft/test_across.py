"""Drafting across vocabularies: texts keep their bytes, and a drafter in other tokens proposes what its model says."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from draft.across import AcrossDrafter, Pair
from draft.asset import across
from draft.base import ROOT, Child, DraftNode, DraftStep, Expansion
from draft.lm import LmDrafter
from draft.vocabulary import ByteVocabulary, same_specials
from swarm.model.rows import Layout
from swarm.model.sampler import Sampling, gumbel
from tests.draft.tiny import save_tiny, tiny_block, tiny_tokenizer

WORDS = "the unordered list of words returns an ordered list; order matters: def order(words): return words\n    for x"
TURNS = ["<|im_start|>", "<|im_end|>"]


def byte_level(size: int, text: str = WORDS) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2 and Qwen have it, with `size` ids learned from a text."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(ByteLevel.alphabet())
    trainer = BpeTrainer(vocab_size=size, initial_alphabet=alphabet, special_tokens=TURNS, show_progress=False)
    tokenizer.train_from_iterator([text] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=TURNS[1])


def pieces_of_words() -> PreTrainedTokenizerFast:
    """A sentencepiece-like vocabulary that begins texts with a space and falls back on bytes, as Llama 2's."""
    words = sorted({f"▁{word}" for word in WORDS.split()} | set("▁abcdefghijklmnopqrstuvwxyz"))
    names = ["<s>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    vocab, merges = {name: i for i, name in enumerate(dict.fromkeys(names))}, []
    for word in sorted(words, key=len):
        for cut in range(1, len(word)):
            left = word[:cut]
            if left not in vocab:
                vocab[left] = len(vocab)
            if cut > 1:
                merges.append((word[: cut - 1], word[cut - 1]))
        if len(word) > 1:
            merges.append((word[:-1], word[-1]))
    merges = [pair for pair in dict.fromkeys(merges) if all(part in vocab for part in (*pair, "".join(pair)))]
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("<s>"), AddedToken("</s>"), AddedToken("<unk>")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


KINDS = {
    "bytes": ByteVocabulary(tiny_tokenizer()),
    "small": ByteVocabulary(byte_level(290)),
    "large": ByteVocabulary(byte_level(340)),
    "pieces": ByteVocabulary(pieces_of_words()),
}
TEXTS = st.one_of(
    st.binary(max_size=24),
    st.text(max_size=24).map(str.encode),
    st.lists(st.sampled_from([*WORDS.split(" "), "\n", "  ", "<|im_end|>", "</s>", "é", "😀"]), max_size=12).map(
        lambda words: " ".join(words).encode()
    ),
    st.tuples(st.text(max_size=12), st.integers(0, 3)).map(lambda t: t[0].encode()[: -t[1] or None]),
)


@pytest.mark.parametrize("name", KINDS)
@given(data=TEXTS)
@settings(max_examples=120, deadline=None)
def test_text_keeps_its_bytes(name: str, data: bytes) -> None:
    """Any bytes, half characters included: ids spell them, none of them special, and pieces cover them in order."""
    vocabulary = KINDS[name]
    ids = vocabulary.encode(data)
    assert ids is not None
    assert vocabulary.spell(ids) == data
    assert not set(ids) & set(vocabulary.special)
    ends = vocabulary.pieces(data)
    assert list(ends) == sorted(set(ends)) and (not data or ends[-1] == len(data)) and all(end > 0 for end in ends)


@pytest.mark.parametrize("name", ["small", "large"])
@given(text=st.lists(st.sampled_from(WORDS.split(" ")), min_size=1, max_size=8).map(" ".join))
@settings(max_examples=60, deadline=None)
def test_pieces_are_never_crossed(name: str, text: str) -> None:
    """What comes before a piece is encoded the same with and without what follows: so it may become certain."""
    vocabulary, data = KINDS[name], text.encode()
    ids = vocabulary.encode(data)
    assert ids is not None
    for cut in vocabulary.pieces(data):
        before = vocabulary.encode(data[:cut])
        assert before is not None and ids[: len(before)] == before


def test_specials_mean_the_same() -> None:
    qwen = {5: "<|im_start|>", 6: "<|im_end|>", 7: "<|endoftext|>"}
    gemma = {1: "<eos>", 2: "<bos>", 105: "<start_of_turn>", 106: "<end_of_turn>"}
    assert same_specials(gemma, qwen) == {1: 6, 105: 5, 106: 6}
    assert same_specials(qwen, gemma) == {5: 105, 6: 106, 7: 106}
    assert same_specials(qwen, qwen) == {5: 5, 6: 6, 7: 7}


class Parrot(LmDrafter):
    """Reads like a model, in the drafter's tokens, and always says the same text by its own tokenizer."""

    def __init__(self, vocabulary: ByteVocabulary, text: bytes, prompt: bytes) -> None:
        self._words = vocabulary
        self._said = vocabulary.encode(prompt + text)
        self._paths: dict[int, tuple[int, ...]] = {}
        self.layout = Layout(256, 512)
        self.rows = 0

    def begin(self, prompt: Sequence[int], sampling: Sampling) -> None:
        self._paths = {ROOT: tuple(prompt)}

    def step(self, step: DraftStep) -> list[Expansion]:
        for node in (*step.committed, *step.nodes):
            self._paths[node.id] = (*self._paths[node.parent], node.token)
            assert node.position == len(self._paths[node.id]) - 1
        self.rows += len(step.expand)
        out = []
        for id in step.expand:
            path = self._paths[id]
            told = self._said is not None and self._said[: len(path)] == path and len(path) < len(self._said)
            next_token = self._said[len(path)] if told and self._said else 0
            out.append(Expansion(id, ((Child(next_token, 0.9), Child(2, 0.05)),)))
        return out


@pytest.mark.parametrize("ours", ["bytes", "small", "large", "pieces"])
@pytest.mark.parametrize("theirs", ["small", "large", "pieces"])
def test_what_the_drafter_would_say_is_proposed_in_the_targets_tokens(ours: str, theirs: str) -> None:
    """Words cut otherwise, in either direction: every token of the target is found, wherever runs have come to."""
    prompt, text = b"the unordered list of words", b" returns an ordered list; order matters: def order(words)"
    target = KINDS[theirs]
    tokens, begun = target.encode(prompt + text), target.encode(prompt)
    assert tokens is not None and begun is not None and tokens[: len(begun)] == begun
    parrot = Parrot(KINDS[ours], text + b" and more words", prompt)
    drafter = AcrossDrafter(parrot, pair_of(target, KINDS[ours]))
    drafter.begin(list(begun), Sampling())
    right, committed, root = 0, tuple[DraftNode, ...](), ROOT
    truth = tokens[len(begun) :]
    for at, token in enumerate(truth):
        (expansion,) = drafter.step(DraftStep(committed, (), (), (root,), 1, 8))
        right += bool(expansion.levels) and expansion.levels[0][0].token == token
        committed = (DraftNode(at + 1, root, token, len(begun) + at),)
        root = at + 1
    # Bytes are looked ahead by a few only, so a long word that they begin stays open.
    assert right >= (0.4 if ours == "bytes" else 0.85) * len(truth)


def pair_of(target: ByteVocabulary, own: ByteVocabulary) -> Pair:
    return Pair(target, own, same_specials(target.special, own.special), {})


def test_a_tree_over_two_real_vocabularies(tmp_path: Path) -> None:
    """Random trees, commits and drops over a real tiny model: the same chances as computed without any tree."""
    own, target = byte_level(300), byte_level(340)
    save_tiny(tmp_path, vocab=300)
    block = tiny_block(tmp_path)
    drafter = across(LmDrafter(block, context=160, scratch=128), own, target, frozenset({1}))
    rng, prompt = random.Random(0), target.encode("the unordered list of words returns", add_special_tokens=False)
    drafter.begin(prompt, Sampling())
    known, truth, next_id = {ROOT: list(prompt)}, list(prompt), 1
    root = ROOT
    for _ in range(60):
        committed: tuple[DraftNode, ...] = ()
        if rng.random() < 0.6:
            options = [i for i, path in known.items() if path[:-1] == truth and i != root]
            token = known[rng.choice(options)][-1] if options and rng.random() < 0.7 else rng.randrange(2, 340)
            id = next((i for i in options if known[i][-1] == token), next_id)
            next_id += id == next_id
            committed = (DraftNode(id, root, token, len(truth)),)
            truth, root = [*truth, token], id
            known[id] = list(truth)
        gone = [i for i, path in known.items() if i != root and path[: len(truth)] != truth]
        dropped = tuple(i for i in gone if known[i] != truth[: len(known[i])])
        for i in gone:
            del known[i]
        parent = rng.choice(list(known))
        new = DraftNode(next_id, parent, rng.randrange(2, 340), len(known[parent]))
        known[next_id] = [*known[parent], new.token]
        next_id += 1
        served = drafter.step(DraftStep(committed, dropped, (new,), (new.id, root), 2, 6))
        for expansion in served:
            shares = [child.confidence for child in expansion.levels[0]] if expansion.levels else []
            assert shares == sorted(shares, reverse=True) and sum(shares) <= 1.001
            fresh = drafter.another()
            fresh.begin(known[expansion.id], Sampling())
            (alone,) = fresh.step(DraftStep((), (), (), (ROOT,), 1, 6))
            if shares and alone.levels and shares[0] > 0.3:
                assert alone.levels[0][0].token in [child.token for child in expansion.levels[0]]


def test_noise_of_the_tail_ranks_the_children(tmp_path: Path) -> None:
    """At a temperature children are ranked by what the tail will add; the greedy order is another one."""
    own, target = byte_level(300), byte_level(340)
    save_tiny(tmp_path, vocab=300)
    drafter = across(LmDrafter(tiny_block(tmp_path), context=160, scratch=128), own, target, frozenset({1}))
    prompt = target.encode("the unordered list", add_special_tokens=False)
    shares = {}
    for temperature in (0.0, 1.0):
        drafter.begin(prompt, Sampling(temperature=temperature, seed=5))
        (expansion,) = drafter.step(DraftStep((), (), (), (ROOT,), 1, 16))
        shares[temperature] = {child.token: child.confidence for child in expansion.levels[0]}
    noise = gumbel(5, len(prompt), 340)
    ratio = {token: shares[1.0][token] / (shares[0.0][token] * 2.718281828 ** float(noise[token])) for token in
             shares[0.0].keys() & shares[1.0].keys()}  # fmt: skip
    assert len(ratio) > 2 and max(ratio.values()) < 1.001 * min(ratio.values())

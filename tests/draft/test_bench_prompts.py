"""Prompts of benchmarks are the tokens that transformers' own template makes of them."""

from __future__ import annotations

from swarm.model.files.checkpoint import load_tokenizer, transformers_tokenizer
from swarm.model.files.named import DEFAULT_MODEL
from swarm.model.files.store import ModelStore
from tests.bench import across, ring_pass, sim_real, window
from tests.bench.chat import asked


def test_benchmarks_ask_as_transformers_renders() -> None:
    store, texts = ModelStore(), ["Why is the sky blue?", "Two\nlines, and a é."]
    theirs = transformers_tokenizer(store.tokenizer_source(DEFAULT_MODEL), DEFAULT_MODEL)
    found = asked(load_tokenizer(DEFAULT_MODEL, store), texts)
    for text, ids in zip(texts, found, strict=True):
        said = [{"role": "user", "content": text}]
        assert ids == theirs.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
    assert all(module.asked is asked for module in (across, ring_pass, sim_real, window))


def test_long_prompts_are_cut_to_the_context() -> None:
    tokenizer = load_tokenizer(DEFAULT_MODEL, ModelStore())
    for prompt in window.long_prompts(tokenizer, 600, "prose"):
        assert 500 < len(prompt) < 620

"""Smaller models made from readable ones: what is written is read, near what it was made of, and says how near."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from swarm.base.errors import ModelError, UsageError
from swarm.cli.main import main
from swarm.model.files import safetensors_file
from swarm.model.files.checkpoint import load_tokenizer, open_model
from swarm.model.files.store import ModelStore
from swarm.model.quality import compare, quantize
from swarm.model.quant.kquants import quantize_q4_k
from swarm.model.quant.native import library
from swarm.model.requantize import TARGETS, requantize
from tests.swarm.model import encoded_files as files
from tests.swarm.model.files.test_gguf import TEXT, llama
from tests.swarm.model.gguf_files import write_gguf
from tests.swarm.model.test_encoded import gptq, tiny
from tests.swarm.model.tiny import logits_of, plain, random_model, tiny_config

FORMATS = {
    "q4_k": {"ggml:Q5_0", "ggml:Q8_0"},  # 64 and 96 columns are no multiples of 256
    "q8_0": {"ggml:Q8_0"},
    "int8": {"compressed-tensors-int8-channel"},
    "fp8": {"compressed-tensors-fp8-channel"},
}


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store", endpoint="http://127.0.0.1:9", hub_cache=tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with a tokenizer that knows a few words of the carried text."""
    tiny().save_pretrained(tmp_path / "model")
    words = {word: i for i, word in enumerate(["<e>", "</s>", "the", "and", "a", "of", "it", "is", "to", ","])}
    tokenizer = Tokenizer(models.WordLevel(words, "<e>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("to", sorted(TARGETS))
def test_a_smaller_model_is_read_and_compared(to: str, folder: Path, tmp_path: Path, store: ModelStore) -> None:
    made = quantize(store, str(folder), to, tmp_path / "out", True)
    summary = store.show(str(tmp_path / "out"))
    assert FORMATS[to] <= set(summary.formats)
    assert made.digest == summary.digest != store.show(str(folder)).digest
    assert made.bytes_after < 0.7 * made.bytes_before
    assert made.bytes_after == summary.total_bytes
    quality = made.quality
    assert quality is not None and quality.tokens > 200
    assert quality.perplexity_after == pytest.approx(quality.perplexity_before, rel=0.3 if to == "q4_k" else 0.1)
    assert 0.7 <= quality.same <= 1 and 0 <= quality.divergence < 0.1
    # One file a layer, so that a node fetches only its own; the tokenizer came with it.
    before, after = open_model(str(folder), store), open_model(str(tmp_path / "out"), store)
    assert len({entry.digest for entry in after.manifest.tensors}) == 4
    assert load_tokenizer(str(tmp_path / "out"), store)("the sea")["input_ids"] == [2, 0]
    whole, cut = logits_of(after, TEXT, (0, 3)), logits_of(after, TEXT, (0, 2, 3))
    torch.testing.assert_close(cut, whole, rtol=0, atol=3e-5)
    assert float((whole - logits_of(before, TEXT, (0, 3))).abs().max()) < 0.2 * float(whole.abs().max())
    if library() is not None and to != "fp8":
        assert after.hold("model.layers.0.mlp.up_proj.weight", without_kernel=False) is not None
    names = {w.entry.name for w in after.weights.values()}
    assert names == {w.entry.name for w in before.weights.values()}
    norm = "model.layers.0.input_layernorm.weight"
    assert torch.equal(after.read(norm, torch.float32), before.read(norm, torch.float32))


def test_the_report_is_what_transformers_computes(tmp_path: Path, store: ModelStore) -> None:
    model, other = llama(num_hidden_layers=3), llama(num_hidden_layers=3)
    with torch.no_grad():
        other.model.layers[1].mlp.down_proj.weight.mul_(1.2)
    model.save_pretrained(tmp_path / "a")
    other.save_pretrained(tmp_path / "b")
    tokens = torch.randint(0, 97, (60,), generator=torch.Generator().manual_seed(3))
    found = compare(open_model(str(tmp_path / "a"), store), open_model(str(tmp_path / "b"), store), tokens.tolist())
    with torch.inference_mode():
        losses = [float(m(tokens[None], labels=tokens[None]).loss) for m in (model, other)]
        first, second = (m(tokens[None]).logits[0, :-1].log_softmax(1) for m in (model, other))
    assert found.perplexity_before == pytest.approx(math.exp(losses[0]), rel=1e-4)
    assert found.perplexity_after == pytest.approx(math.exp(losses[1]), rel=1e-4)
    assert found.same == pytest.approx(float((first.argmax(1) == second.argmax(1)).float().mean()))
    assert found.divergence == pytest.approx(float((first.exp() * (first - second)).sum(1).mean()), rel=1e-3)


def test_ggufs_experts_tied_heads_and_quantised_models_are_read(tmp_path: Path, store: ModelStore) -> None:
    tied = random_model(tiny_config("llama-tied"))
    sources: list[tuple[str, Any]] = [
        (str(write_gguf(tmp_path / "tied.gguf", tied, "llama")), tied),
        (str(tmp_path / "experts"), random_model(tiny_config("qwen3-moe"))),
        (str(tmp_path / "gptq"), files.save_encoded(tmp_path / "gptq", tiny(), files.gptq(), gptq())),
    ]
    sources[1][1].save_pretrained(tmp_path / "experts")
    for number, (ref, model) in enumerate(sources):
        made = quantize(store, ref, "q8_0", tmp_path / f"out{number}", False)
        assert made.quality is None
        after = open_model(str(made.path), store)
        wanted = plain(model, TEXT)
        n = after.manifest.n_layers
        found = logits_of(after, TEXT, (0, n // 2, n))
        # The median: a rounding may choose another expert for a row.
        assert float((found - wanted).abs().median()) < 0.05 * float(wanted.abs().median())
        rounded = [w for w in after.weights.values() if w.entry.format == "ggml:Q8_0"]
        assert len(rounded) >= 6


def test_what_cannot_be_made_is_refused(folder: Path, tmp_path: Path, store: ModelStore) -> None:
    with pytest.raises(UsageError, match="is there already"):
        quantize(store, str(folder), "int8", folder, False)
    random_model(tiny_config("gpt2")).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ModelError, match="lie the other way"):
        quantize(store, str(tmp_path / "gpt2"), "int8", tmp_path / "out", False)
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.part").exists()
    tiny().save_pretrained(tmp_path / "mute")
    with pytest.raises(ModelError, match="--no-report makes the model without comparing"):
        quantize(store, str(tmp_path / "mute"), "int8", tmp_path / "out", True)
    (tmp_path / "out").mkdir()
    requantize(open_model(str(folder), store), "int8", tmp_path / "out")  # an empty folder will do


def test_a_full_disk_is_named_and_leaves_nothing(
    folder: Path, tmp_path: Path, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library has an error of its own for it, which is no OSError."""
    with pytest.raises(SafetensorError) as real:
        safetensors_file.save_file({"x": torch.zeros(1)}, "/proc/no such folder/x")
    written: list[Path] = []

    def full(tensors: object, path: Path, metadata: object) -> None:
        if written:
            raise SafetensorError(re.sub(r": [^:]*\(os error \d+\)", ": No space (os error 28)", str(real.value)))
        written.append(path)
        path.write_bytes(b"half")

    with monkeypatch.context() as patched:
        patched.setattr(safetensors_file, "save_file", full)
        with pytest.raises(ModelError, match="cannot write .*out: No space left on device; free space"):
            quantize(store, str(folder), "int8", tmp_path / "out", False)
    assert written and not (tmp_path / "out").exists() and not (tmp_path / ".out.part").exists()
    with pytest.raises(OSError, match="No such file"):
        safetensors_file.save_tensors({"x": torch.zeros(1)}, tmp_path / "absent" / "x")


def test_the_command_tells_sizes_and_quality(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model", "quantize", str(folder), "--to", "fp8", "--models", str(tmp_path / "models"), "--out"]
    assert main([*words, str(tmp_path / "a")]) == 0
    out = capsys.readouterr().out
    assert "perplexity" in out and "same token" in out and "before" in out
    assert main([*words, str(tmp_path / "b"), "--no-report", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["quality"] is None and made["path"] == str(tmp_path / "b") and len(made["digest"]) == 64


@given(st.integers(0, 2**32 - 1), st.sampled_from((2e-3, 0.02, 1.0, 300.0)), st.floats(-3, 3))
@settings(max_examples=25, deadline=None)
def test_q4_k_is_nearer_than_q4_0(seed: int, size: float, offset: float) -> None:
    rng = np.random.default_rng(seed)
    values = ((rng.normal(size=(8, 512)) + offset) * size).astype(np.float32)
    values[0] = 0
    values[1] = size  # all alike
    values[2, 256:] = 0
    stored = quantize_q4_k(values)
    assert stored.shape == (8, 2 * 144)
    found = np.asarray(gguf.dequantize(stored, gguf.GGMLQuantizationType.Q4_K))
    four = np.asarray(
        gguf.dequantize(gguf.quantize(values, gguf.GGMLQuantizationType.Q4_0), gguf.GGMLQuantizationType.Q4_0)
    )
    assert np.square(found - values)[3:].sum() <= 0.8 * np.square(four - values)[3:].sum()
    assert np.all(found[0] == 0)
    assert np.abs(found - values).max() <= 0.12 * np.abs(values).max() + 1e-7

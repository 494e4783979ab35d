"""GGUF files against the models they were made from: every key and tensor is used, harmless, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers

from swarm.base.errors import ModelError
from swarm.model.files import gguf_file
from swarm.model.files.checkpoint import open_model
from swarm.model.files.gguf_layout import layout
from swarm.model.files.store import ModelStore
from swarm.model.quant.formats import _HALVES
from swarm.model.rows import Layout
from tests.swarm.model.gguf_files import Tensors, add_key, gguf_keys, write_gguf
from tests.swarm.model.tiny import logits_of, plain, random_model, tiny_config

LAYOUT = Layout(scratch=8, context=64)
TEXT = [5, 17, 3, 88, 41, 0, 9, 60, 11, 12, 54, 33, 2, 7]


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store", endpoint="http://127.0.0.1:9", hub_cache=tmp_path / "cache")


def check(path: Path, model: Any, store: ModelStore, halves: bool = False) -> Any:
    """Whether the file says what the model says, whole and cut. halves: in two rather than three."""
    checkpoint = open_model(str(path), store)
    n = checkpoint.manifest.n_layers
    wanted = plain(model, TEXT)
    for cuts in ((0, n), (0, n // 2, n) if halves else (0, n // 3, n // 3 * 2, n)):
        torch.testing.assert_close(logits_of(checkpoint, TEXT, cuts), wanted, rtol=0, atol=1e-4 if halves else 3e-5)
    return checkpoint


def full(config: Any) -> Any:
    config.use_sliding_window, config.sliding_window = False, None
    config.layer_types = ["full_attention"] * config.num_hidden_layers
    return config


def llama(**changes: Any) -> Any:
    return random_model(transformers.LlamaConfig(**{**tiny_config("llama").to_dict(), **changes}))


def moe(kind: type[Any], **changes: Any) -> Any:
    return random_model(
        kind(
            hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=97, max_position_embeddings=256, num_experts=4, num_experts_per_tok=2,
            moe_intermediate_size=32, pad_token_id=None, bos_token_id=0, eos_token_id=1, **changes,
        )
    )  # fmt: skip


EXPERTS = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_dense_models_compute_like_the_ones_they_were_made_from(arch: str, tmp_path: Path, store: ModelStore) -> None:
    config = tiny_config(arch)
    model = random_model(full(config) if arch == "qwen2" else config)
    checkpoint = check(write_gguf(tmp_path / "a.gguf", model, arch), model, store)
    name = "model.layers.1.mlp.up_proj.weight"
    entry = checkpoint.manifest.entries[name]
    assert entry.format == "gguf:F32"
    stored = checkpoint.export_tensor_bytes(name, 0, entry.nbytes)
    assert np.array_equal(np.frombuffer(stored, np.float32).reshape(entry.shape), model.state_dict()[name].numpy())
    with pytest.raises(ModelError, match="wanted, which has"):
        checkpoint.export_tensor_bytes(name, 8, entry.nbytes)


def test_biases_of_every_projection_are_used(tmp_path: Path, store: ModelStore) -> None:
    model = llama(attention_bias=True, mlp_bias=True)
    checkpoint = check(write_gguf(tmp_path / "a.gguf", model, "llama"), model, store)
    assert "model.layers.0.mlp.down_proj.bias" in checkpoint.manifest.entries


@pytest.mark.parametrize(
    ("arch", "tensor"),
    [
        ("llama", "blk.2.ffn_down.bias"),
        ("llama", "blk.0.attn_output.bias"),
        ("qwen2", "blk.0.attn_output.bias"),
        ("qwen3", "blk.5.ffn_down.bias"),
        ("llama", "blk.1.attn_sinks.weight"),
        ("llama", "blk.1.attn_rot_embd"),
        ("llama", "token_embd_norm.weight"),
    ],
)
def test_a_tensor_that_nobody_would_read_is_refused(arch: str, tensor: str, tmp_path: Path, store: ModelStore) -> None:
    def add(tensors: Tensors) -> None:
        tensors[tensor] = np.ones(48, np.float32)

    config = tiny_config(arch)
    path = write_gguf(tmp_path / "a.gguf", random_model(full(config) if arch == "qwen2" else config), arch, change=add)
    with pytest.raises(ModelError, match=r"a tensor blk|lacks the tensor blk\.\d\.attn|a tensor token_embd_norm"):
        open_model(str(path), store)


def test_missing_tensors_and_layers_are_named(tmp_path: Path, store: ModelStore) -> None:
    model = llama()
    path = write_gguf(tmp_path / "a.gguf", model, "llama", change=lambda t: t.pop("blk.3.ffn_up.weight"))
    with pytest.raises(ModelError, match=r"lacks the tensor blk\.3\.ffn_up\.weight"):
        open_model(str(path), store)
    path = write_gguf(tmp_path / "b.gguf", model, "llama", {"block_count": 4_000_000_000})
    with pytest.raises(ModelError, match="holds 6 layers, its metadata says 4000000000"):
        open_model(str(path), store)
    path = write_gguf(tmp_path / "c.gguf", model, "llama", {"embedding_length": 64, "attention.key_length": 12})
    with pytest.raises(ModelError, match="has shape .* its metadata says"):
        open_model(str(path), store)


def linear(factor: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "linear", "factor": factor, "rope_theta": 10000.0}}


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("keys", "changes"),
    [
        ({"rope.scale_linear": 2.5}, linear(2.5)),
        ({"rope.scaling.factor": 2.5}, linear(2.5)),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 2.5}, linear(2.5)),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 2.5}, {}),
        ({"rope.scaling.factor": 1.0, "rope.dimension_count": 12, "attention.value_length": 12}, {}),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64},
            {"rope_parameters": YARN},
        ),
    ],
)
def test_rope_scaling_is_honoured(
    keys: dict[str, Any], changes: dict[str, Any], tmp_path: Path, store: ModelStore
) -> None:
    model = llama(**changes)
    check(write_gguf(tmp_path / "a.gguf", model, "llama", keys), model, store)


def test_the_rope_of_llama_3_is_found_from_its_factors(tmp_path: Path, store: ModelStore) -> None:
    rope = {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_theta": 500000.0,
    }  # fmt: skip
    model = llama(rope_parameters=rope, head_dim=16)
    plain_freq = 500000.0 ** (-np.arange(0, 16, 2) / 16)
    wave = 2 * np.pi / plain_freq  # as the converter writes it
    smooth = (8192 / wave - 1) / 3
    factors = np.where(wave < 8192 / 4, 1.0, np.where(wave > 8192, 32.0, 1 / ((1 - smooth) / 32 + smooth)))
    path = write_gguf(
        tmp_path / "a.gguf",
        model,
        "llama",
        change=lambda t: t.update({"rope_freqs.weight": factors.astype(np.float32)}),
    )
    checkpoint = check(path, model, store)
    assert checkpoint.config.rope_parameters["factor"] == 32.0
    path = write_gguf(
        tmp_path / "b.gguf", model, "llama", change=lambda t: t.update({"rope_freqs.weight": np.ones(8, np.float32)})
    )
    with pytest.raises(ModelError, match=r"rope_freqs\.weight is not of a scaling"):
        open_model(str(path), store)


def test_a_window_makes_a_mistral(tmp_path: Path, store: ModelStore) -> None:
    model = random_model(tiny_config("mistral"))
    checkpoint = check(write_gguf(tmp_path / "a.gguf", model, "llama", {"attention.sliding_window": 7}), model, store)
    assert checkpoint.config.model_type == "mistral"


@pytest.mark.parametrize(
    ("arch", "keys", "named"),
    [
        ("llama", {"attention.value_length": 8}, r"attention\.value_length 8"),
        ("llama", {"rope.dimension_count": 6}, r"rope\.dimension_count is 6"),
        ("llama", {"logit_scale": 0.5}, r"llama\.logit_scale = 0\.5"),
        ("llama", {"embedding_scale": 12.0}, r"llama\.embedding_scale = 12\.0"),
        ("llama", {"residual_scale": 0.22}, r"llama\.residual_scale"),
        ("llama", {"attention.scale": 0.01}, r"llama\.attention\.scale"),
        ("llama", {"attention.causal": False}, r"llama\.attention\.causal = False"),
        ("llama", {"attention.clamp_kqv": 8.0}, r"llama\.attention\.clamp_kqv"),
        ("llama", {"expert_count": 8, "expert_used_count": 2}, r"lacks the tensor blk\.0\.ffn_gate_inp"),
        ("llama", {"something.new": "x"}, r"llama\.something\.new = x"),
        ("llama", {"attention.head_count_kv": [1, 2, 2, 2, 2, 2]}, "head_count_kv differs between layers"),
        ("llama", {"rope.scaling.type": "longrope", "rope.scaling.factor": 2.0}, r"rope\.scaling\.type is 'longrope'"),
        ("llama", {"rope.scaling.attn_factor": 1.2}, r"rope\.scaling\.attn_factor"),
        ("qwen2", {"attention.sliding_window": 7}, r"attention\.sliding_window is 7"),
        ("qwen3", {"final_logit_softcapping": 30.0}, r"qwen3\.final_logit_softcapping"),
    ],
)
def test_a_key_that_would_be_ignored_is_refused(
    arch: str, keys: dict[str, Any], named: str, tmp_path: Path, store: ModelStore
) -> None:
    config = tiny_config(arch)
    path = write_gguf(tmp_path / "a.gguf", random_model(full(config) if arch == "qwen2" else config), arch, keys)
    with pytest.raises(ModelError, match=named):
        open_model(str(path), store)
    with pytest.raises(ModelError, match=named):
        store.show(str(path))


def test_keys_that_change_nothing_are_taken(tmp_path: Path, store: ModelStore) -> None:
    keys = {
        "attention.causal": True, "logit_scale": 1.0, "embedding_scale": 1.0, "residual_scale": 1.0, "vocab_size": 97,
        "expert_count": 0, "attention.sliding_window": 4096, "tensor_data_layout": "Meta AI original pth",
        "general.name": "x", "general.file_type": 1,
    }  # fmt: skip
    model = llama()
    check(write_gguf(tmp_path / "a.gguf", model, "llama", keys), model, store)


def test_a_set_of_files_is_the_model_of_one_file(tmp_path: Path, store: ModelStore) -> None:
    model = llama()
    whole = open_model(str(write_gguf(tmp_path / "whole.gguf", model, "llama")), store)
    first = write_gguf(tmp_path / "parts.gguf", model, "llama", split=20)
    parts = sorted(tmp_path.glob("parts-*.gguf"))
    assert len(parts) >= 3
    for part in (first, parts[1]):
        assert check(part, model, store).manifest.digest == whole.manifest.digest
    assert store.show(str(parts[2])).digest == whole.manifest.digest
    parts[1].rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=rf"{parts[1].name} is not beside it: copy the whole set"):
        open_model(str(first), store)
    (tmp_path / "elsewhere").rename(parts[1])
    first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(ModelError, match="known by their names"):
        open_model(str(tmp_path / "renamed.gguf"), store)
    (tmp_path / "renamed.gguf").rename(first)
    parts[2].write_bytes(parts[1].read_bytes())
    with pytest.raises(ModelError, match="says it is another part"):
        open_model(str(first), store)


def test_a_set_of_mixed_types_in_another_order_is_the_same_model(tmp_path: Path, store: ModelStore) -> None:
    """Parts hold tensors as they come, each stored in a way of its own."""

    def turned(tensors: Tensors) -> None:
        for name in [*tensors][::-1]:
            tensors[name] = tensors.pop(name)

    def kinds(name: str) -> str:
        return ("Q8_0", "Q4_0", "F16", "F32")[len(name) % 4]

    model = llama(hidden_size=64, intermediate_size=96)
    whole = open_model(str(write_gguf(tmp_path / "whole.gguf", model, "llama", kinds=kinds)), store)
    first = write_gguf(tmp_path / "parts.gguf", model, "llama", change=turned, split=11, kinds=kinds)
    parts = open_model(str(first), store)
    assert len({entry.format for entry in whole.manifest.tensors}) >= 3
    assert parts.manifest.digest == whole.manifest.digest
    assert all(
        torch.equal(whole.read(t.name, torch.float32), parts.read(t.name, torch.float32))
        for t in whole.manifest.tensors
    )


def test_a_part_of_another_set_is_refused(tmp_path: Path, store: ModelStore) -> None:
    first = write_gguf(tmp_path / "parts.gguf", llama(), "llama", split=20)
    (tmp_path / "other").mkdir()
    write_gguf(tmp_path / "other" / "parts.gguf", llama(), "llama", split=10)
    other, own = (sorted(folder.glob("parts-00002-*.gguf"))[0] for folder in (tmp_path / "other", tmp_path))
    own.write_bytes(other.read_bytes())
    with pytest.raises(ModelError, match=rf"{own.name} is of another model: its split.count is \d+"):
        open_model(str(first), store)


def test_experts_come_apart_and_compute(tmp_path: Path, store: ModelStore) -> None:
    model = moe(transformers.Qwen3MoeConfig, head_dim=16, norm_topk_prob=True)
    checkpoint = check(write_gguf(tmp_path / "a.gguf", model, "qwen3moe", EXPERTS), model, store)
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    entry = checkpoint.manifest.entries[name]
    assert entry.shape == (32, 48) and entry.nbytes == 4 * 32 * 48
    stored = np.frombuffer(checkpoint.export_tensor_bytes(name, 0, entry.nbytes), np.float32).reshape(32, 48)
    assert np.array_equal(stored, model.model.layers[1].mlp.experts.gate_up_proj[3, 32:].detach().numpy())
    shared = moe(transformers.Qwen2MoeConfig, shared_expert_intermediate_size=40, norm_topk_prob=False)
    check(write_gguf(tmp_path / "b.gguf", shared, "qwen2moe", EXPERTS), shared, store)


@pytest.mark.parametrize("arch", ["gemma2", "gemma3"])
def test_gemma_computes(arch: str, tmp_path: Path, store: ModelStore) -> None:
    model = random_model(tiny_config(arch))
    keys: dict[str, Any] = {"attention.sliding_window": 7, "attention.value_length": 16}
    if arch == "gemma2":
        keys |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    check(write_gguf(tmp_path / "a.gguf", model, arch, keys), model, store)


def test_fused_phi_3_computes(tmp_path: Path, store: ModelStore) -> None:
    model = random_model(tiny_config("phi3"))
    check(write_gguf(tmp_path / "a.gguf", model, "phi3", {"rope.dimension_count": 12}), model, store)


def test_gpt_2_computes(tmp_path: Path, store: ModelStore) -> None:
    config = tiny_config("gpt2")
    config.scale_attn_by_inverse_layer_idx = False
    model = random_model(config)
    keys = {"feed_forward_length": 192, "attention.key_length": None}
    check(write_gguf(tmp_path / "a.gguf", model, "gpt2", keys), model, store)


def test_starcoder_2_computes(tmp_path: Path, store: ModelStore) -> None:
    config = transformers.Starcoder2Config(
        hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=97, max_position_embeddings=256, bos_token_id=0, eos_token_id=1, sliding_window=None,
    )  # fmt: skip
    model = random_model(config)
    check(write_gguf(tmp_path / "a.gguf", model, "starcoder2"), model, store)


def test_a_folder_of_one_gguf_model_stands_for_it(tmp_path: Path, store: ModelStore) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    model = llama()
    write_gguf(folder / "parts.gguf", model, "llama", split=20)
    check(folder, model, store)
    write_gguf(folder / "other.gguf", model, "llama")
    with pytest.raises(ModelError, match=r"holds 2 GGUF models \(other\.gguf, parts-00001-of"):
        open_model(str(folder), store)


def test_every_type_that_is_called_readable_is(tmp_path: Path) -> None:
    for kind in gguf_file.READABLE:
        number = gguf.GGMLQuantizationType[kind]
        data = np.zeros((2, gguf.GGML_QUANT_SIZES[number][1]), np.uint8)
        assert gguf.dequantize(data, number).shape[0] == 2


def test_layouts_tell_whether_packed_rows_can_be_used() -> None:
    rotary = layout("model.layers.0.self_attn.q_proj.weight", (48, 48), tiny_config("llama").to_dict())
    assert rotary.packed_safe and rotary.rows is not None and sorted(rotary.rows.tolist()) == list(range(48))
    norm = layout("model.norm.weight", (48,), tiny_config("gemma3").to_dict())
    assert not norm.packed_safe
    matrix = layout("model.layers.0.mlp.up_proj.weight", (64, 48), tiny_config("llama").to_dict())
    assert matrix.packed_safe and matrix.rows is None


@pytest.mark.parametrize("kind", sorted(gguf_file.READABLE - {"F32", "F16", "BF16"}))
def test_a_model_of_every_type_is_the_model_of_its_numbers(kind: str, tmp_path: Path, store: ModelStore) -> None:
    """Random blocks: not every type can be written, all can be read."""
    number = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[number]
    model = llama(hidden_size=256, intermediate_size=256, num_hidden_layers=3, head_dim=64)
    path = write_gguf(tmp_path / "a.gguf", model, "llama")
    rng = np.random.default_rng(0)
    again = gguf.GGUFWriter(tmp_path / "b.gguf", "llama")
    for key, value in gguf_keys(model).items():
        add_key(again, f"llama.{key}", value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3)
    state, back = model.state_dict(), {}
    for name in state:
        back[names.get_name(name, try_suffixes=(".weight",))] = name
    for name, tensor in gguf_file.read_header(path).tensors.items():
        if len(tensor.shape) != 2:
            again.add_tensor(name, state[back[name]].numpy())
            continue
        stored = rng.integers(0, 256, (tensor.shape[0] * tensor.shape[1] // block, size), dtype=np.uint8)
        for at in _HALVES.get(kind, ()):
            scale = (rng.standard_normal(len(stored)) * 1e-4).astype(np.float16)
            stored[:, at : at + 2] = scale.view(np.uint8).reshape(-1, 2)
        if kind in ("MXFP4", "NVFP4"):
            stored[:, : 1 if kind == "MXFP4" else 4] = rng.integers(*((118, 122) if kind == "MXFP4" else (1, 20)))
        if kind == "TQ2_0":  # of its four codes one stands for no number
            parts = rng.integers(0, 3, (4, len(stored), 64), dtype=np.uint8)
            stored[:, :64] = parts[0] | parts[1] << 2 | parts[2] << 4 | parts[3] << 6
        if kind == "IQ1_M":  # its scale is the high nibbles of four words
            stored[:, 49:56:2] = (stored[:, 49:56:2] & 15) | np.array([0, 0, 8, 1], np.uint8) * 16
        stored = stored.reshape(tensor.shape[0], -1)
        again.add_tensor(name, stored, raw_dtype=number)
        values = np.asarray(gguf.dequantize(stored, number), np.float32)
        if kind == "NVFP4":
            again.add_tensor(name.replace(".weight", ".scale"), np.array([1.5], np.float32))
            again.add_tensor(name.replace(".weight", ".input_scale"), np.array([3.0], np.float32))
            values = values * np.float32(1.5)
        weight = torch.from_numpy(values)
        if ".attn_q." in name or ".attn_k." in name:
            heads = len(weight) // 64
            weight = weight.reshape(heads, 32, 2, -1).transpose(1, 2).reshape(weight.shape)
        state[back[name]].copy_(weight)
    again.write_header_to_file()
    again.write_kv_data_to_file()
    again.write_tensors_to_file()
    again.close()
    checkpoint = open_model(str(tmp_path / "b.gguf"), store)
    for cuts in ((0, 3), (0, 1, 3)):
        wanted = plain(model, TEXT)
        atol = 3e-5 * float(wanted.abs().max())
        torch.testing.assert_close(logits_of(checkpoint, TEXT, cuts), wanted, rtol=0, atol=atol)
    q = "model.layers.0.self_attn.q_proj.weight"
    matrix = checkpoint.hold(q, without_kernel=True)
    assert torch.equal(matrix.rows(torch.arange(256)), state[q])
    assert checkpoint.config.model_type == "llama"


def test_a_second_scale_that_does_not_fit_is_refused(tmp_path: Path, store: ModelStore) -> None:
    def add(tensors: Tensors) -> None:
        tensors["blk.0.ffn_up.scale"] = np.ones(1, np.float32)

    path = write_gguf(tmp_path / "a.gguf", llama(), "llama", change=add)  # beside a matrix that is no NVFP4
    with pytest.raises(ModelError, match=r"a tensor blk\.0\.ffn_up\.scale"):
        open_model(str(path), store)

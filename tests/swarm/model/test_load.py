"""What loading refuses, and that it reads and keeps no more than its layers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from swarm.base.errors import ModelError
from swarm.base.events import Event, Progress, silent
from swarm.model.block import load_block
from swarm.model.files.manifest import Manifest, layer_of
from swarm.model.files.store import ModelStore
from swarm.model.load import load_layers
from swarm.model.prune import check_config, inner_model
from tests.models.configs import tiny_config as sweep_config
from tests.models.sweep import _random_model
from tests.swarm.model.tiny import CPU, FAMILIES, MemoryCheckpoint, random_model, tiny_config


def load(checkpoint: Any, first: int = 0, last: int = 6, **kwargs: Any) -> Any:
    return load_block(checkpoint, first, last, CPU, torch.float32, **kwargs)


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            lambda: transformers.RwkvConfig(hidden_size=32, num_hidden_layers=2, vocab_size=50),
            "RwkvForCausalLM cannot be cut into blocks: its attention function cannot be replaced",
        ),
        (
            lambda: transformers.BertConfig(**SMALL, intermediate_size=32),  # no decoder, though its class is one
            "BertLMHeadModel cannot be cut into blocks: its attention is not causal",
        ),
        (
            lambda: transformers.XLMConfig(emb_dim=32, n_layers=2, n_heads=4, n_words=50),
            "the config of tiny says 2 layers, its weights hold 0",  # in lists of their own
        ),
        (
            lambda: transformers.GptOssConfig(
                **SMALL, num_key_value_heads=2, head_dim=8, intermediate_size=32, num_local_experts=2
            ),
            "GptOssForCausalLM cannot be cut into blocks: its layers do not run",  # four experts a row, of two
        ),
        (
            lambda: transformers.GPT2Config(
                n_embd=32, n_layer=2, n_head=4, vocab_size=50, reorder_and_upcast_attn=True
            ),
            "GPT2LMHeadModel cannot be cut into blocks: it computes attention in an order of its own",
        ),
    ],
    ids=["rwkv", "bert-encoder", "xlm", "fewer-experts-than-picked", "gpt2-upcast"],
)
def test_architectures_that_do_not_fit_are_refused_by_name(config: Any, message: str) -> None:
    model = transformers.AutoModelForCausalLM.from_config(config())
    with pytest.raises(ModelError, match=message):
        load(MemoryCheckpoint(model), 0, 1)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (SimpleNamespace(vision_config={}), "it takes pictures or sound as well as text"),
        (SimpleNamespace(audio_config={}), "it takes pictures or sound as well as text"),
        (SimpleNamespace(hidden_size_per_layer_input=8), "its layers look up the token ids themselves"),
    ],
    ids=["vision", "audio", "per-layer"],
)
def test_what_a_config_shows_is_refused_in_one_sentence_before_anything_is_read(config: Any, reason: str) -> None:
    with pytest.raises(ModelError, match=f"Some cannot be cut into blocks: {reason}"):
        check_config(config, "Some")
    check_config(SimpleNamespace(vision_config=None, hidden_size_per_layer_input=0), "Some")


def test_quantised_checkpoints_are_refused(checkpoint: MemoryCheckpoint) -> None:
    checkpoint.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(ModelError, match=r"little is quantised \(gptq\) and nothing has unpacked it"):
        load(checkpoint)


def test_a_model_of_more_than_text_says_so() -> None:
    manifest = Manifest("see", {"model_type": "idefics", "text_config": {"hidden_size": 8}}, ())
    with pytest.raises(ModelError, match="see takes more than text"):
        _ = manifest.n_layers


def test_an_encoder_is_no_language_model() -> None:
    config = transformers.T5Config(d_model=32, num_layers=2, num_heads=2, d_kv=16, d_ff=32, vocab_size=50)
    checkpoint = MemoryCheckpoint(random_model(tiny_config("llama")))
    checkpoint.config = config
    with pytest.raises(ModelError, match="T5Config, not a causal language model"):
        load(checkpoint, 0, 1)


@pytest.fixture
def checkpoint() -> MemoryCheckpoint:
    return MemoryCheckpoint(random_model(tiny_config("llama")), name="little")


def test_layers_outside_the_model(checkpoint: MemoryCheckpoint) -> None:
    with pytest.raises(ModelError, match="layers 4:7 are not in little, which has layers 0:6"):
        load(checkpoint, 4, 7)


def test_a_tensor_of_another_shape_is_named(checkpoint: MemoryCheckpoint) -> None:
    checkpoint.weights["model.layers.3.mlp.up_proj.weight"] = torch.zeros(3, 48)
    with pytest.raises(
        ModelError, match=r"model\.layers\.3\.mlp\.up_proj\.weight .* has shape \[3, 48\], .* \[64, 48\]"
    ):
        load(checkpoint, 2, 4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_tensor_that_is_not_finite_is_named(checkpoint: MemoryCheckpoint, value: float) -> None:
    checkpoint.weights["model.layers.2.input_layernorm.weight"][5] = value
    with pytest.raises(ModelError, match=r"model\.layers\.2\.input_layernorm\.weight .* not finite"):
        load(checkpoint, 2, 4)
    load(checkpoint, 3, 4)  # other layers are fine


@pytest.mark.parametrize("name", ["model.layers.2.self_attn.k_proj.weight", "model.norm.weight", "lm_head.weight"])
def test_a_missing_tensor_is_named(checkpoint: MemoryCheckpoint, name: str) -> None:
    kept = tuple(t for t in checkpoint.manifest.tensors if t.name != name)
    checkpoint.manifest = type(checkpoint.manifest)("little", checkpoint.manifest.config, kept)
    expected = name.replace("layers.2", "layers.0")
    with pytest.raises(ModelError, match=f"little lacks {expected}"):
        load(checkpoint, 2, 6)


def test_weights_of_the_experts_of_another_model_are_refused() -> None:
    checkpoint = MemoryCheckpoint(random_model(tiny_config("mixtral")))
    name = next(n for n in checkpoint.weights if "experts" in n)
    checkpoint.weights[name] = torch.zeros(2, 5, 7)
    with pytest.raises(ModelError):
        load(checkpoint)


@pytest.mark.parametrize(("first", "last"), [(0, 2), (2, 4), (4, 6), (0, 6)])
@pytest.mark.parametrize("family", ["llama", "llama-tied", "gpt2", "mixtral"])
def test_only_the_tensors_of_the_layers_are_read(family: str, first: int, last: int) -> None:
    checkpoint = MemoryCheckpoint(random_model(tiny_config(family)))
    load(checkpoint, first, last)
    layers = {layer_of(name) for name in checkpoint.names_read} - {None}
    assert layers == set(range(first, last))
    outer = {name.split(".")[-2] for name in checkpoint.names_read if layer_of(name) is None}
    ends = {
        "llama": ({"embed_tokens"}, {"norm", "lm_head"}),
        "llama-tied": ({"embed_tokens"}, {"norm", "embed_tokens"}),
    }
    head, tail = ends.get(
        family, ({"wte", "wpe"}, {"ln_f", "wte"}) if family == "gpt2" else ({"embed_tokens"}, {"norm", "lm_head"})
    )
    assert outer == (head if first == 0 else set()) | (tail if last == 6 else set())
    assert len(checkpoint.names_read) == len(set(checkpoint.names_read))


def test_loading_reports_layers_and_leaves_the_terminal_alone(
    checkpoint: MemoryCheckpoint, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[Event] = []
    load(checkpoint, 1, 4, report=seen.append)
    assert seen == [Progress("load", "little", done, 3, "layers") for done in range(4)]
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


MEASURE = """
import json, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from swarm.model.block import load_block
from swarm.model.load import load_layers
from swarm.model.files.local import open_folder

def mine():
    # Private memory of the process, and what it has mapped of the model's files.
    private = mapped = 0
    for block in Path("/proc/self/smaps").read_text().split("VmFlags")[:-1]:
        numbers = {l.split(":")[0]: int(l.split()[1]) for l in block.splitlines() if l.endswith(" kB")}
        private += numbers["Private_Dirty"] + numbers["Private_Clean"]
        mapped += numbers["Size"] if sys.argv[1] in block else 0
    return private * 1024, mapped * 1024

checkpoint = open_folder(Path(sys.argv[1]), "m", Path(sys.argv[2]))
tiny = load_block(open_folder(Path(sys.argv[3]), "t", Path(sys.argv[2])), 0, 1, torch.device("cpu"), torch.float32)
before, _ = mine()
block = load_block(checkpoint, int(sys.argv[4]), int(sys.argv[5]), torch.device("cpu"), torch.float32)
after, mapped = mine()
print(json.dumps({"grown": after - before, "mapped": mapped, "read": checkpoint.bytes_read}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_third_of_a_model_takes_a_third_of_its_memory(tmp_path: Path) -> None:
    shape = {
        "num_attention_heads": 4,
        "vocab_size": 64,
        "max_position_embeddings": 32,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    big = transformers.LlamaConfig(hidden_size=512, intermediate_size=2048, num_hidden_layers=6, **shape)
    little = transformers.LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, **shape)
    for name, config in (("big", big), ("little", little)):
        transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / name)
    total = sum(f.stat().st_size for f in (tmp_path / "big").glob("*.safetensors"))
    command = [sys.executable, "-c", MEASURE, *(str(tmp_path / n) for n in ("big", "kept", "little")), "2", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(done.stdout)
    assert found["mapped"] == 0  # nothing stays mapped once it is read
    assert found["read"] == pytest.approx(total / 3, rel=0.02)
    assert total / 3 * 0.95 < found["grown"] < total / 3 * 1.2


def test_a_config_that_promises_more_than_the_weights_hold(checkpoint: MemoryCheckpoint) -> None:
    def with_config(**changes: int) -> MemoryCheckpoint:
        config = {**checkpoint.manifest.config, **changes}
        checkpoint.manifest = type(checkpoint.manifest)("little", config, checkpoint.manifest.tensors)
        checkpoint.config = transformers.LlamaConfig(**config)
        return checkpoint

    with pytest.raises(ModelError, match="says 1000000000 layers, its weights hold 6"):
        load(with_config(num_hidden_layers=10**9))
    kept = tuple(t for t in checkpoint.manifest.tensors if "embed_tokens" not in t.name)
    checkpoint.manifest = type(checkpoint.manifest)("little", checkpoint.manifest.config, kept)
    with pytest.raises(ModelError, match=r"wants \d{12,} weights for these layers"):
        load(with_config(num_hidden_layers=6, vocab_size=10**10), 0, 2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("first", "last"), [(0, 6), (1, 5), (3, 6)])
def test_a_range_loaded_in_pieces_equals_the_range_loaded_at_once(family: str, first: int, last: int) -> None:
    checkpoint = MemoryCheckpoint(random_model(tiny_config(family)))
    seen: list[Event] = []
    piece = checkpoint.manifest.layer_bytes(1) + 1  # two layers each
    pieces = load_layers(checkpoint, first, last, CPU, torch.float32, seen.append, piece_bytes=piece)
    assert seen == [Progress("load", "tiny", done, last - first, "layers") for done in range(last - first + 1)]
    whole = load_layers(checkpoint, first, last, CPU, torch.float32, silent)
    found, expected = pieces.model.state_dict(), whole.model.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    rows = torch.randn(1, 3, 48)
    outs = []
    for loaded in (pieces, whole):
        loaded.attending.trial = []
        given = {"inputs_embeds": rows, "position_ids": torch.arange(3)[None], "use_cache": False}
        outs.append(loaded.edges.through(inner_model(loaded.model), given).last_hidden_state)
    assert torch.equal(outs[0], outs[1])
    if family == "llama-tied" and (first, last) == (0, 6):
        assert found["lm_head.weight"].data_ptr() == found["model.embed_tokens.weight"].data_ptr()


def saved(path: Path, model: Any) -> Any:
    """The model as a folder, opened by the store; `path` becomes the folder."""
    model.save_pretrained(path)
    return open_folder(path)


def open_folder(path: Path) -> Any:
    return ModelStore(path.parent / "store").open(str(path))


def edited(path: Path, **values: Any) -> None:
    config = json.loads((path / "config.json").read_bytes())
    (path / "config.json").write_text(json.dumps({**config, **values}))


def test_a_gpt_neox_saved_with_embed_out_loads(tmp_path: Path) -> None:
    model = random_model(tiny_config("neox"))
    model.save_pretrained(tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    weights["embed_out.weight"] = weights.pop("lm_head.weight" if "lm_head.weight" in weights else "embed_out.weight")
    weights["gpt_neox.layers.0.attention.masked_bias"] = torch.tensor(-1e9)  # a buffer that old files carry
    save_file(weights, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    block = load(open_folder(tmp_path / "m"))
    assert torch.equal(block.loaded.model.get_output_embeddings().weight, model.get_output_embeddings().weight)
    load(open_folder(tmp_path / "m"), 4, 6)


def test_code_shipped_with_a_model_and_another_class_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m"
    saved(path, random_model(tiny_config("llama")))
    edited(path, auto_map={"AutoModelForCausalLM": "modeling_odd.OddForCausalLM"})
    with pytest.raises(
        ModelError, match="is a OddForCausalLM, but its type llama is LlamaForCausalLM and code shipped"
    ):
        load(open_folder(path))
    edited(path, auto_map={"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"})  # Phi-3's files say so
    load(open_folder(path))
    edited(path, auto_map=None, architectures=["LlamaForSequenceClassification"])
    with pytest.raises(
        ModelError, match="is a LlamaForSequenceClassification, but its type llama is LlamaForCausalLM;"
    ):
        load(open_folder(path))


@pytest.mark.parametrize("name", ["model.layers.3.mlp.down_proj.bias", "model.extra.weight"])
def test_a_tensor_that_nobody_takes_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m"
    saved(path, random_model(tiny_config("llama")))
    weights = load_file(path / "model.safetensors")
    save_file({**weights, name: torch.ones(48)}, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=rf"has {name.replace('.3.', '.0.')}, which LlamaForCausalLM does not take"):
        load(open_folder(path), 3, 6)


def test_an_infinity_in_a_config_is_one(tmp_path: Path) -> None:
    path = tmp_path / "m"
    saved(path, random_model(tiny_config("llama")))
    edited(path, attention_cap={"__float__": "Infinity"})
    checkpoint = open_folder(path)
    assert checkpoint.config.attention_cap == float("inf")
    load(checkpoint)


def test_a_model_that_does_arithmetic_between_its_layers_is_refused(
    checkpoint: MemoryCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = transformers.models.llama.modeling_llama.LlamaDecoderLayer
    plain = layer.forward

    def follows_the_longest(self: Any, hidden_states: torch.Tensor, *rest: Any, **named: Any) -> Any:
        return plain(self, hidden_states * (1 + 0.1 * named["position_ids"].max()), *rest, **named)

    monkeypatch.setattr(layer, "forward", follows_the_longest)
    with pytest.raises(ModelError, match="LlamaForCausalLM cannot be cut .* called one by one, give other rows"):
        load(checkpoint, 2, 4)


LIES = {
    "llama-heads": ("llama", {"num_attention_heads": 5}),
    "llama-more-heads": ("llama", {"num_attention_heads": 8}),
    "llama-key-heads": ("llama", {"num_key_value_heads": 3}),
    "llama-width": ("llama", {"hidden_size": 64}),
    "llama-fewer-layers": ("llama", {"num_hidden_layers": 5}),
    "llama-more-layers": ("llama", {"num_hidden_layers": 7}),
    "bert-fewer-layers": ("bert", {"num_hidden_layers": 5}),
    "bart-more-layers": ("bart", {"decoder_layers": 7}),
    "gemma3-kinds-short": ("gemma3_text", {"layer_types": ["full_attention"] * 5}),
    "gemma3-kinds-long": ("gemma3_text", {"layer_types": ["full_attention"] * 7}),
    "lfm2-kinds-swapped": ("lfm2", {"layer_types": ["full_attention"] * 6}),
    "qwen3-next-kind-unknown": ("qwen3_next", {"layer_types": ["telepathy"] * 6}),
    "mixtral-fewer-experts": ("mixtral", {"num_local_experts": 3}),
    "mixtral-more-experts": ("mixtral", {"num_local_experts": 5}),
    "deepseek-groups": ("deepseek_v3", {"n_group": 3}),
    "deepseek-shares": ("deepseek_v2", {"norm_topk_prob": True}),
    "deepseek-scores": ("deepseek_v2", {"scoring_func": "sigmoid"}),
    "deepseek-dense": ("deepseek_v3", {"moe_layer_freq": 2}),
    "deepseek-4-shares": ("deepseek_v4", {"norm_topk_prob": False}),
    "mamba-states": ("mamba", {"state_size": 16}),
    "bloom-heads": ("bloom", {"n_head": 3}),
}


@pytest.mark.parametrize("case", LIES)
def test_a_config_that_lies_is_refused_by_name(case: str, tmp_path: Path) -> None:
    kind, lie = LIES[case]
    _random_model(sweep_config(kind)).save_pretrained(tmp_path / "liar")
    path = tmp_path / "liar" / "config.json"
    config = json.loads(path.read_text())
    if "layer_types" in lie and "layer_types" not in config:
        config.pop("full_attn_idxs", None)
    path.write_text(json.dumps({**config, **lie}))
    with pytest.raises(ModelError) as refused:
        load_block(ModelStore(tmp_path / "store").open(str(tmp_path / "liar"), (0, 2)), 0, 2, CPU, torch.float32)
    name = type(_random_model(sweep_config(kind))).__name__
    assert any(named in str(refused.value) for named in ("liar", name, ".layers.0.")), refused.value

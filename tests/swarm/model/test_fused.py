"""Decoder layers in two calls: what their classes compute, the same bits in any company and on any instruction set."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers import AttentionInterface, AutoModelForCausalLM

from swarm.model.fused import FusedLayer, fuse, fused_of, settle
from swarm.model.job import Job
from swarm.model.packing import put_in
from swarm.model.quant.formats import find_format
from swarm.model.quant.matrix import hold
from swarm.model.quant.native import ISAS, Library, library
from swarm.model.rows import no_commits
from tests.swarm.model.exact_rows import LAYERS, LAYOUT, Session, block_of, forward, random_text
from tests.swarm.model.tiny import certain, drafted

NAME = "test_seen"
SIZES: dict[str, Any] = dict(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=32, vocab_size=50, max_position_embeddings=128, rms_norm_eps=1e-5, layer_types=None,
)  # fmt: skip
CONFIGS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "llama with biases": lambda: transformers.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "mistral": lambda: transformers.MistralConfig(**SIZES, sliding_window=7),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=9, max_window_layers=1),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES),
}
ROWS = 5

pytestmark = pytest.mark.skipif(library() is None, reason="no kernels were built: install with a C++ compiler")


def packed_model(config: Any, dtype: torch.dtype, form_name: str = "Q8_0") -> Any:
    """A random model whose linear layers are packed, with fused layers (off)."""
    torch.manual_seed(3)
    AttentionInterface.register(NAME, seen)
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation=NAME).to(dtype).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    form = find_format(f"gguf:{form_name}")
    assert form is not None
    matrices = {}
    for name, module in model.model.layers.named_modules():
        if type(module) is nn.Linear:
            values = module.weight.detach().float().numpy()
            stored = gguf.quantize(values, gguf.GGMLQuantizationType[form_name])
            matrices[f"model.layers.{name}.weight"] = hold(stored, form, values.shape, None, name, library())
    put_in(model, matrices, dtype)
    fuse(model.model.layers)
    return model


CALLS: list[dict[str, Any]] = []


def seen(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **named: Any
) -> Any:
    """Attention of a row to itself and its queries, so that all three matter; what it was asked with is kept."""
    CALLS.append({name: item for name, item in named.items() if name in ("scaling", "sliding_window")})
    groups = query.shape[1] // key.shape[1]
    out = torch.tanh(query) * key.repeat_interleave(groups, 1) + value.repeat_interleave(groups, 1)
    return out.transpose(1, 2).contiguous(), None


def run(model: Any, place: int, x: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(3, 3 + x.shape[1])[None]
    angles = model.model.rotary_emb(x, positions)
    with torch.inference_mode():
        return model.model.layers[place](x, position_embeddings=angles)  # type: ignore[no-any-return]


def fused(model: Any, place: int = 0) -> FusedLayer:
    found = fused_of(model.model.layers[place])
    assert found is not None
    return found


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_fused_layer_computes_what_its_class_does(family: str, dtype: torch.dtype) -> None:
    model = packed_model(CONFIGS[family](), dtype)
    for place in (0, 1):
        x = torch.randn(1, ROWS, 64, generator=torch.Generator().manual_seed(place)).to(dtype)
        CALLS.clear()
        want = run(model, place, x)
        fused(model, place).on = True
        got = run(model, place, x)
        plain, quick = CALLS
        assert quick["scaling"] == plain["scaling"]
        assert quick.get("sliding_window") == plain.get("sliding_window")
        apart = (got.float() - want.float()).norm(dim=2) / want.float().norm(dim=2)
        assert apart.max() < 0.02 and apart.median() < 0.004  # single bytes of rounded rows may differ
        assert not torch.equal(got, x)


def test_a_row_has_the_same_bits_alone_in_company_and_on_every_number_of_threads() -> None:
    lib = library()
    assert lib is not None
    model = packed_model(CONFIGS["qwen3"](), torch.bfloat16)
    fused(model).on = True
    x = torch.randn(1, 40, 64, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with lib.undivided():
            many = run(model, 0, x)
        torch.set_num_threads(1)
        assert torch.equal(run(model, 0, x), many)
        assert torch.equal(run(model, 0, x[:, :1]), many[:, :1])
        assert torch.equal(run(model, 0, torch.cat([x[:, :9], x[:, :2] * 1e3], 1))[:, :9], many[:, :9])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_instruction_set_gives_the_same_bits(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    lib = library()
    assert lib is not None
    model = packed_model(CONFIGS["qwen3"](), dtype, "Q4_0")
    fused(model).on = True
    x = (torch.randn(1, ROWS, 64, generator=torch.Generator().manual_seed(4)) * 9).to(dtype)
    want = run(model, 0, x)
    for isa in range(lib.best_isa):
        monkeypatch.setattr(lib, "best_isa", isa)
        assert torch.equal(run(model, 0, x), want), ISAS[isa]


def test_a_layer_that_computes_something_else_stays_as_it_is() -> None:
    model = packed_model(CONFIGS["llama"](), torch.float32)
    x = torch.randn(1, ROWS, 64)
    settle(model.model.layers, lambda place: run(model, place, x)[0])
    assert fused(model, 0).on and fused(model, 1).on
    other = packed_model(CONFIGS["llama"](), torch.float32)
    last = other.model.layers[1]
    plain = fused(other, 1)._plain
    fused(other, 1)._plain = lambda *given, **named: plain(*given, **named) * 1.5
    settle(other.model.layers, lambda place: run(other, place, x)[0])
    assert not fused(other, 0).on and not fused(other, 1).on
    assert torch.equal(
        run(other, 1, x), last.forward(x, position_embeddings=other.model.rotary_emb(x, torch.arange(3, 8)[None]))
    )


def test_layers_of_other_classes_or_parts_are_left_alone() -> None:
    model = packed_model(CONFIGS["llama"](), torch.float32)
    assert fused_of(model.model.layers[0]) is not None
    other = transformers.Gemma3TextConfig(**{**SIZES, "query_pre_attn_scalar": 16})
    assert fused_of(packed_model(other, torch.float32).model.layers[0]) is None
    gelu = transformers.LlamaConfig(**SIZES, hidden_act="gelu")
    assert fused_of(packed_model(gelu, torch.float32).model.layers[0]) is None


def test_large_gates_and_numbers_that_are_not_finite_come_through() -> None:
    model = packed_model(CONFIGS["llama"](), torch.float32)
    fused(model).on = True
    x = torch.full((1, 2, 64), 3e4)
    x[0, 1, 5] = float("nan")
    out = run(model, 0, x)
    assert torch.isfinite(out[0, 0]).all() and torch.isnan(out[0, 1]).all()
    assert np.isfinite(out[0, 0].numpy()).all()


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_layer_in_one_call_has_the_bits_of_a_layer_in_two(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions that share a forward, drafts on paths of their own, windows; and one session twice, which takes two."""
    block, text = block_of(family, "Q8_0"), random_text(2, 90)
    whole, calls = Library.layer_whole, []

    def counted(*given: Any) -> None:
        calls.append(given)
        whole(*given)

    monkeypatch.setattr(Library, "layer_whole", counted)
    frames = [
        ([certain(text[:80], 0, LAYOUT), certain(text[5:40], 0, LAYOUT)], [no_commits(), no_commits()]),
        ([drafted(text[80:84], [-1, 0, 0, 1], [30, 3, 17, 9], 80, LAYOUT), certain(text[40:41], 35, LAYOUT)],
         [no_commits(), no_commits()]),
    ]  # fmt: skip
    found: list[list[torch.Tensor]] = []
    for _ in range(2):
        sessions = [Session.open(block, []) for _ in range(2)]
        found.append([rows for frame in frames for one in forward(sessions, *frame) for rows in one])
        monkeypatch.setattr(FusedLayer, "_jobs", lambda *given: None)
    assert len(calls) == 2 * LAYERS
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
    monkeypatch.undo()
    monkeypatch.setattr(Library, "layer_whole", counted)
    calls.clear()
    (kv,) = Session.open(block, []).kvs
    parts = [Job(kv, no_commits(), certain(text[a:b], a, LAYOUT), None) for a, b in ((0, 30), (30, 80))]
    for job in parts:
        job.rows.want[:] = True
    logits = block.forward(parts)
    assert not calls and torch.equal(torch.cat(logits)[-1], found[0][0][-1])

"""Decoder layers in few calls: what their classes compute, the same bits in any company and on any instruction set."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AttentionInterface, AutoModelForCausalLM

from swarm.model import fused as fused_module
from swarm.model.block import Block
from swarm.model.fused import MOST_AHEAD, FusedLayer, LayerRun, fuse, fused_of, settle
from swarm.model.job import Job
from swarm.model.kvcache import KVPool
from swarm.model.packing import put_in
from swarm.model.prune import layer_list
from swarm.model.quant.formats import find_format
from swarm.model.quant.matrix import hold
from swarm.model.quant.native import ISAS, Library, library
from swarm.model.rows import Rows, no_commits
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
    calls = counted(monkeypatch)
    frames = [
        ([certain(text[:80], 0, LAYOUT), certain(text[5:40], 0, LAYOUT)], [no_commits(), no_commits()]),
        ([drafted(text[80:84], [-1, 0, 0, 1], [30, 3, 17, 9], 80, LAYOUT), certain(text[40:41], 35, LAYOUT)],
         [no_commits(), no_commits()]),
    ]  # fmt: skip
    found: list[list[torch.Tensor]] = []
    for _ in range(2):
        sessions = [Session.open(block, []) for _ in range(2)]
        found.append([rows for frame in frames for one in forward(sessions, *frame) for rows in one])
        monkeypatch.setattr(LayerRun, "compute", lambda *given: None)
    assert calls == [1] * LAYERS + [LAYERS]
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
    monkeypatch.undo()
    calls = counted(monkeypatch)
    (kv,) = Session.open(block, []).kvs
    parts = [Job(kv, no_commits(), certain(text[a:b], a, LAYOUT), None) for a, b in ((0, 30), (30, 80))]
    for job in parts:
        job.rows.want[:] = True
    logits = block.forward(parts)
    assert not calls and torch.equal(torch.cat(logits)[-1], found[0][0][-1])


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each call of the kernels that computes layers whole how many these are, as they come."""
    whole, calls = Library.layers_whole, []

    def count(*given: Any) -> None:
        calls.append(len(given[-1]))
        whole(*given)

    monkeypatch.setattr(Library, "layers_whole", count)
    return calls


_blocks: dict[str, Block] = {}


def block(family: str) -> Block:
    if family not in _blocks:
        _blocks[family] = block_of(family, "Q8_0")
    return _blocks[family]


@settings(max_examples=40)
@given(data=st.data(), family=st.sampled_from(["llama", "qwen2"]), cuts=st.sets(st.integers(1, LAYERS - 1)))
def test_layers_that_go_together_have_the_bits_of_layer_by_layer(
    data: st.DataObject, family: str, cuts: set[int]
) -> None:
    """Any cut, any number of rows, any company; every part of the model is one call where rows are few."""
    whole, text, frames = block(family), random_text(3, 130), []
    starts = data.draw(st.lists(st.integers(1, 90), min_size=1, max_size=3), "texts")
    frames.append([certain(text[:n], 0, LAYOUT) for n in starts])
    for count in data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=2), "rows"):
        drafts = data.draw(st.lists(st.booleans(), min_size=len(starts), max_size=len(starts)), "drafts")
        parents = [data.draw(st.integers(-1, i - 1)) for i in range(count)]
        slots = data.draw(st.permutations(range(32)))[:count]
        frames.append(
            [
                drafted(text[n : n + count], parents, slots, n, LAYOUT)
                if draft
                else certain(text[n : n + count], n, LAYOUT)
                for n, draft in zip(starts, drafts, strict=True)
            ]
        )
    found = []
    for most in (MOST_AHEAD, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fused_module, "MOST_AHEAD", most)
            calls = counted(patch)
            sessions = [Session.open(whole, sorted(cuts)) for _ in starts]
            nothing = [no_commits() for _ in starts]
            found.append([forward(sessions, frame, nothing) for frame in frames])
        parts = [part.last - part.first for part in sessions[0].parts]
        few = [sum(map(len, frame)) <= most for frame in frames]
        assert calls == [n for one in few for n in (parts if one else [1] * LAYERS)]
    for one, two in zip(*found, strict=True):
        pairs = [pair for a, b in zip(one, two, strict=True) for pair in zip(a, b, strict=True)]
        assert pairs and all(torch.equal(a, b) for a, b in pairs)


def test_a_look_between_layers_sees_what_each_gives() -> None:
    one, rows = block("qwen2").view(0, LAYERS - 1), certain(random_text(1, 4), 0, LAYOUT)
    watched = one.forward_watched([job_of(one, rows)], (1, 2), to_head=False)
    assert one._attending.early == {}  # nothing waits for a later forward
    for tap in (1, 2):
        part = block("qwen2").view(0, tap)
        (want,) = part.forward([job_of(part, rows)])
        assert torch.equal(watched.tapped[0][tap], want)


def test_what_changes_rows_between_layers_is_computed_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is computed ahead in vain again."""
    one, rows = block_of("llama", "Q8_0"), certain(random_text(1, 4), 0, LAYOUT)
    layers = layer_list(one._model, type(one._model).__name__)[1]
    hook = layers[1].register_forward_hook(lambda module, given, out: out * 2)
    monkeypatch.setattr(fused_module, "MOST_AHEAD", 0)
    (want,) = one.forward([job_of(one, rows)])
    monkeypatch.undo()
    calls = counted(monkeypatch)
    (got,) = one.forward([job_of(one, rows)])
    assert torch.equal(got, want) and calls == [LAYERS, 1]
    calls.clear()
    (got,) = one.forward([job_of(one, rows)])
    assert torch.equal(got, want) and calls == [1] * LAYERS
    hook.remove()
    (plain,) = one.forward([job_of(one, rows)])
    assert not torch.equal(plain, want)


def test_a_forward_that_fails_leaves_nothing_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    one, text = block("llama"), random_text(1, 8)
    kept = job_of(one, certain(text[:4], 0, LAYOUT))
    (want,) = one.forward([kept])
    layers = layer_list(one._model, type(one._model).__name__)[1]

    def fail(*given: Any) -> None:
        raise InterruptedError

    hook = layers[1].register_forward_pre_hook(fail)
    with pytest.raises(InterruptedError):
        one.forward([job_of(one, certain(text[4:], 0, LAYOUT))])
    hook.remove()
    assert one._attending.early == {} and len(one._attending.ahead) == 0
    assert torch.equal(one.forward([kept])[0], want)


def job_of(block: Block, rows: Rows) -> Job:
    """A session of its own."""
    return Job(KVPool(block, 1 << 40).open(LAYOUT, block.first, block.last), no_commits(), rows, None)


def test_all_layers_of_a_cut_model_are_no_new_module() -> None:
    """What transformers' classes ask for in every pass."""
    one = block("llama")
    layers = layer_list(one._model, type(one._model).__name__)[1]
    assert layers[:LAYERS] is layers and layers[: LAYERS + 1] is layers and layers[:] is layers
    for index in (slice(1, None), slice(0, LAYERS - 1), slice(None, None, -1)):
        assert list(layers[index]) == list(layers)[index]
    assert layers[-1] is list(layers)[-1]
    part = one.view(1, LAYERS)
    kept = layer_list(part._model, type(part._model).__name__)[1]
    assert kept[: LAYERS - 1] is kept and list(kept) != list(layers)

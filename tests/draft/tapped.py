"""Tiny drafters that read a target's hidden rows, with random weights, laid out as published ones are; and what they
compute, written from the papers with transformers' modules."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import LlamaConfig, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import (
    Qwen3DecoderLayer,
    Qwen3RMSNorm,
    Qwen3RotaryEmbedding,
    apply_rotary_pos_emb,
)

OWN_VOCAB = 24
BLOCK = 5


def filled(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    made = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape)
        made[name] = 1 + 0.2 * noise if len(shape) == 1 and "norm" in name else noise * 0.6 / shape[-1] ** 0.5 * 2
    return made


def layer_shapes(prefix: str, config: Any, entering: int, norms: Sequence[str]) -> dict[str, tuple[int, ...]]:
    width, inner, d = config.hidden_size, config.intermediate_size, config.head_dim
    q, kv = config.num_attention_heads * d, config.num_key_value_heads * d
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (q, entering),
        "self_attn.k_proj.weight": (kv, entering),
        "self_attn.v_proj.weight": (kv, entering),
        "self_attn.o_proj.weight": (width, q),
        "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.weight": (inner, width),
        "mlp.down_proj.weight": (width, inner),
        **{f"{name}.weight": (width,) for name in norms},
    }
    if config.model_type == "qwen3":
        shapes |= {"self_attn.q_norm.weight": (d,), "self_attn.k_norm.weight": (d,)}
    return {prefix + name: shape for name, shape in shapes.items()}


def own_ids(vocab: int) -> torch.Tensor:
    return torch.linspace(0, vocab - 1, OWN_VOCAB).round().long()


def config_for(target: Any, kind: str = "llama", layers: int = 1, **more: Any) -> Any:
    make = LlamaConfig if kind == "llama" else Qwen3Config
    return make(
        vocab_size=target.vocab_size, hidden_size=target.hidden_size, intermediate_size=40, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=256, rope_theta=10000.0,
        **more,
    )  # fmt: skip


def save_eagle3(folder: Path, target: Any, form: str = "authors", seed: int = 5, **flags: Any) -> None:
    """An EAGLE-3 head for a target of config `target`, in the form of its authors or of `speculators`."""
    config = config_for(target)
    width, three = target.hidden_size, 3 * target.hidden_size
    prefix = "midlayer." if form == "authors" else "layers.0."
    norms = ("hidden_norm", "input_layernorm", "post_attention_layernorm")
    shapes = layer_shapes(prefix, config, 2 * width, norms)
    shapes |= {"fc.weight": (width, three), "norm.weight": (width,), "lm_head.weight": (OWN_VOCAB, width)}
    if flags.get("norm_before_fc"):
        shapes["input_norm.weight"] = (three,)
    if flags.get("fc_norm"):
        shapes |= {f"fc_norm.{i}.weight": (width,) for i in range(3)}
    tensors = filled(shapes, seed)
    ids = own_ids(target.vocab_size)
    tensors["d2t"] = ids - torch.arange(OWN_VOCAB)
    tensors["t2d"] = torch.zeros(target.vocab_size, dtype=torch.bool).index_fill(0, ids, True)
    values = {**config.to_dict(), "draft_vocab_size": OWN_VOCAB}
    values["eagle_config"] = {"eagle_aux_hidden_state_layer_ids": [1, 3, 4]}
    if form == "speculators":
        values = {"speculators_model_type": "eagle3", "draft_vocab_size": OWN_VOCAB, **flags}
        values |= {"eagle_aux_hidden_state_layer_ids": [4, 1, 2], "transformer_layer_config": config.to_dict()}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(values))


def save_medusa(
    folder: Path, target: Any, form: str = "authors", heads: int = 3, blocks: int = 1, seed: int = 4
) -> None:
    """Medusa heads in the form of their authors, or of vLLM with a vocabulary of its own."""
    width, own = target.hidden_size, form == "vllm"
    scored = OWN_VOCAB if own else target.vocab_size
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(heads):
        for j in range(blocks):
            name = f"blocks.{i}.layers.{j}" if own else f"{i}.{j}.linear"
            shapes |= {f"{name}.weight": (width, width)} | ({} if own else {f"{name}.bias": (width,)})
        shapes[f"lm_heads.{i}.weight" if own else f"{i}.{blocks}.weight"] = (scored, width)
    tensors = filled(shapes, seed)
    told = {"medusa_num_heads": heads, "medusa_num_layers": blocks}
    if own:
        told = {"model_type": "medusa", "num_heads": heads, "num_hidden_layers": blocks, "hidden_size": width}
        tensors["token_map"] = own_ids(target.vocab_size).flip(0)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(told))


class ResBlock(torch.nn.Module):
    """As Medusa's authors have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear, self.act = torch.nn.Linear(width, width), torch.nn.SiLU()

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows + self.act(self.linear(rows))


class MedusaReference:
    """What the heads say behind a text, by the authors' modules. Scores float32 [heads, the target's vocabulary]."""

    def __init__(self, model: Any, folder: Path, form: str) -> None:
        self.model = model
        tensors, width = load_file(folder / "model.safetensors"), model.config.hidden_size
        ids = tensors.pop("token_map", torch.arange(model.config.vocab_size))
        if form == "vllm":
            count = sum(name.startswith("lm_heads.") for name in tensors)
            blocks = sum(name.startswith("blocks.0.") for name in tensors)
            renamed = {}
            for name, tensor in tensors.items():
                parts = name.split(".")
                if parts[0] == "blocks":
                    renamed[f"{parts[1]}.{parts[3]}.linear.weight"] = tensor
                    renamed[f"{parts[1]}.{parts[3]}.linear.bias"] = torch.zeros(width)
                else:
                    renamed[f"{parts[1]}.{blocks}.weight"] = tensor
            tensors = renamed
        else:
            count = 1 + max(int(name.split(".")[0]) for name in tensors)
            blocks = max(int(name.split(".")[1]) for name in tensors)
        self.ids = ids
        self.heads = torch.nn.ModuleList(
            torch.nn.Sequential(*(ResBlock(width) for _ in range(blocks)), torch.nn.Linear(width, len(ids), bias=False))
            for _ in range(count)
        )
        self.heads.load_state_dict(tensors)

    @torch.inference_mode()
    def shares(self, text: Sequence[int]) -> torch.Tensor:
        """Of the heads over the last token's row, [heads, the target's vocabulary]."""
        row = self.model(torch.tensor([list(text)]), output_hidden_states=True).hidden_states[-1][0, -1]
        found = torch.zeros(len(self.heads), self.model.config.vocab_size)
        for share, head in zip(found, self.heads, strict=True):
            share[self.ids] = torch.softmax(head(row), -1)
        return found


def rows_of(model: Any, text: Sequence[int], taps: Sequence[int]) -> torch.Tensor:
    """What a target's layers gave for a text, side by side: [n, taps x hidden_size]."""
    with torch.inference_mode():
        states = model(torch.tensor([list(text)]), output_hidden_states=True).hidden_states
    return torch.cat([states[tap][0] for tap in taps], -1)


class Eagle3Reference:
    """The scores of an EAGLE-3 head over a whole text, computed anew for each."""

    def __init__(self, model: Any, folder: Path, taps: Sequence[int]) -> None:
        self.model, self.taps = model, taps
        self.tensors = load_file(folder / "model.safetensors")
        told = json.loads((folder / "config.json").read_text())
        self.told = told
        config = LlamaConfig(**told.get("transformer_layer_config", told))
        config._attn_implementation = "eager"
        self.layer = LlamaDecoderLayer(config, 0).eval()
        for name in ("q", "k", "v"):
            weight = self[f"self_attn.{name}_proj.weight"]
            setattr(self.layer.self_attn, f"{name}_proj", torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False))
        prefix = next(n for n in self.tensors if n.endswith("q_proj.weight")).removesuffix("self_attn.q_proj.weight")
        own = {n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)}
        hidden_norm = own.pop("hidden_norm.weight")
        self.layer.load_state_dict(own)
        self.hidden_norm = self._norm(hidden_norm, config)
        self.last = self._norm(self.tensors["norm.weight"], config)
        self.rotary, self.config = LlamaRotaryEmbedding(config), config

    def __getitem__(self, name: str) -> torch.Tensor:
        return next(t for n, t in self.tensors.items() if n.endswith(name))

    def _norm(self, weight: torch.Tensor, config: Any) -> LlamaRMSNorm:
        norm = LlamaRMSNorm(len(weight), config.rms_norm_eps)
        norm.load_state_dict({"weight": weight})
        return norm

    @torch.inference_mode()
    def scores(self, text: Sequence[int], drafted: Sequence[int], known: int | None = None) -> torch.Tensor:
        """Of the token after `drafted`, which follow a certain text, float32 [own vocabulary].

        known: how many of the certain tokens' rows are not here, from the front."""
        rows = rows_of(self.model, text[:-1], self.taps)
        width = len(rows[0]) // 3
        if self.told.get("norm_before_fc"):
            rows = self._norm(self.tensors["input_norm.weight"], self.config)(rows)
        if self.told.get("fc_norm"):
            norms = [self._norm(self.tensors[f"fc_norm.{i}.weight"], self.config) for i in range(3)]
            rows = torch.cat([norm(p) for norm, p in zip(norms, rows.split(width, -1), strict=True)], -1)
        given = functional.linear(rows, self.tensors["fc.weight"])
        ids, first = list(text[1:]), 1
        if known:
            given, ids, first = given[known:], ids[known:], 1 + known
        for step in range(len(drafted) + 1):
            out = self._layer(ids, given, first)
            shown = self.last(out)
            if step < len(drafted):
                ids.append(drafted[step])
                given = torch.cat([given, (shown if self.told.get("norm_output") else out)[-1:]])
        return functional.linear(shown[-1], self.tensors["lm_head.weight"])

    def _layer(self, ids: Sequence[int], given: torch.Tensor, first: int) -> torch.Tensor:
        layer, n = self.layer, len(ids)
        embedded = layer.input_layernorm(self.model.get_input_embeddings()(torch.tensor([ids])))
        inner = self.hidden_norm(given)[None]
        rows = inner if self.told.get("norm_before_residual") else given[None]
        mask = torch.full((n, n), float("-inf")).triu(1)[None, None]
        turn = self.rotary(rows, first + torch.arange(n)[None])
        read = layer.self_attn(torch.cat([embedded, inner], -1), position_embeddings=turn, attention_mask=mask)[0]
        rows = rows + read
        return (rows + layer.mlp(layer.post_attention_layernorm(rows)))[0]


def save_block(folder: Path, target: Any, kind: str, taps: Sequence[int], seed: int = 9, **flags: Any) -> None:
    """A DFlash (as its authors or as `speculators` lay it out) or DSpark drafter of two layers."""
    windows = {"sliding_window": 6, "layer_types": ["full_attention", "sliding_attention"], "use_sliding_window": True}
    config = config_for(target, "qwen3", 2, **(windows if flags.pop("windowed", False) else {}))
    width = target.hidden_size
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(2):
        norms = ("input_layernorm", "post_attention_layernorm")
        shapes |= layer_shapes(f"layers.{i}.", config, width, norms)
    shapes |= {"fc.weight": (width, len(taps) * width), "hidden_norm.weight": (width,), "norm.weight": (width,)}
    if kind != "authors":
        shapes["lm_head.weight"] = (OWN_VOCAB, width)
    rank, markov = 6, flags.get("markov_head_type")
    if kind == "dspark":
        shapes |= {"markov_head.markov_w1.weight": (target.vocab_size, rank)}
        shapes |= {"markov_head.markov_w2.weight": (OWN_VOCAB, rank)}
        more = {"gated": ("gate_proj", rank, width + rank), "rnn": ("joint_proj", 3 * rank, 2 * rank + width)}
        if markov in more:
            name, rows, columns = more[markov]
            shapes |= {f"markov_head.{name}.weight": (rows, columns), f"markov_head.{name}.bias": (rows,)}
    tensors = filled(shapes, seed)
    if kind != "authors":
        tensors["d2t"] = own_ids(target.vocab_size) - torch.arange(OWN_VOCAB)
        values = {"speculators_model_type": kind, "transformer_layer_config": config.to_dict(), "mask_token_id": 3}
        values |= {"aux_hidden_state_layer_ids": list(taps), "block_size": BLOCK, **flags}
        values |= {"markov_rank": rank} if kind == "dspark" else {}
    else:
        own = {"mask_token_id": 3, "target_layer_ids": [tap - 1 for tap in taps]}
        values = {**config.to_dict(), "block_size": BLOCK, "dflash_config": own}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(values))


class BlockReference:
    """The rows and scores of a block behind a text, from the papers' description, with Qwen3's modules."""

    def __init__(self, model: Any, folder: Path, taps: Sequence[int]) -> None:
        self.model, self.taps = model, taps
        self.tensors = load_file(folder / "model.safetensors")
        self.told = json.loads((folder / "config.json").read_text())
        self.config = config = Qwen3Config(**self.told.get("transformer_layer_config", self.told))
        config._attn_implementation = "eager"
        self.layers = [Qwen3DecoderLayer(config, i).eval() for i in range(2)]
        for i, layer in enumerate(self.layers):
            own = {n.removeprefix(f"layers.{i}."): t for n, t in self.tensors.items() if n.startswith(f"layers.{i}.")}
            layer.load_state_dict(own)
        self.rotary = Qwen3RotaryEmbedding(config)

    def norm(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        norm = Qwen3RMSNorm(rows.shape[-1], self.config.rms_norm_eps)
        norm.load_state_dict({"weight": self.tensors[name]})
        return norm(rows)

    @torch.inference_mode()
    def rows(self, text: Sequence[int], known: Sequence[int]) -> torch.Tensor:
        """Rows [block, d] of a block that begins with `known`, behind `text`, all of whose rows are here."""
        joined = functional.linear(rows_of(self.model, text, self.taps), self.tensors["fc.weight"])
        joined = self.norm("hidden_norm.weight", joined)
        ids = [*known, *[3] * (BLOCK - len(known))]
        rows, n = self.model.get_input_embeddings()(torch.tensor(ids)), len(text)
        cos, sin = self.rotary(rows, torch.arange(n + BLOCK)[None])
        for i, layer in enumerate(self.layers):
            a, inner = layer.self_attn, layer.input_layernorm(rows)
            both, d = torch.cat([joined, inner]), self.config.head_dim
            q = a.q_norm(a.q_proj(inner).view(BLOCK, -1, d)).transpose(0, 1)
            k = a.k_norm(a.k_proj(both).view(n + BLOCK, -1, d)).transpose(0, 1)
            v = a.v_proj(both).view(n + BLOCK, -1, d).transpose(0, 1)
            q = apply_rotary_pos_emb(q[None], q[None], cos[:, n:], sin[:, n:])[0][0]
            k = apply_rotary_pos_emb(k[None], k[None], cos, sin)[0][0]
            k, v = (t.repeat_interleave(len(q) // len(t), 0) for t in (k, v))
            scores = q @ k.transpose(1, 2) * d**-0.5
            if (self.config.layer_types or [""] * 2)[i] == "sliding_attention":
                places = torch.arange(n + BLOCK)
                seen = (places >= n - self.config.sliding_window) & (places <= n + torch.arange(BLOCK)[:, None])
                scores = scores.masked_fill(~seen, float("-inf"))
            read = (scores.softmax(-1) @ v).transpose(0, 1).reshape(BLOCK, -1)
            rows = rows + a.o_proj(read)
            rows = rows + layer.mlp(layer.post_attention_layernorm(rows))
        return self.norm("norm.weight", rows)

    @torch.inference_mode()
    def firsts(self, text: Sequence[int], known: Sequence[int]) -> list[int]:
        """The first choices of the places behind `known`, each behind those before."""
        rows, head = self.rows(text, known), self.tensors.get("lm_head.weight")
        scores = functional.linear(rows, head) if head is not None else self.model.lm_head(rows)
        ids = own_ids(self.config.vocab_size) if head is not None else torch.arange(self.config.vocab_size)
        shifted = self.told.get("sample_from_anchor", self.told.get("speculators_model_type") == "dspark")
        t = {n.removeprefix("markov_head."): w for n, w in self.tensors.items() if n.startswith("markov_head.")}
        block, found, state = list(known), list[int](), torch.zeros(6)
        for place in range(BLOCK):
            before = block[place] if shifted else block[max(0, place - 1)]
            extra = torch.zeros(len(ids))
            if t:
                kind, e = self.told.get("markov_head_type", "vanilla"), t["markov_w1.weight"][before]
                if kind == "gated":
                    z = torch.cat([rows[place], e])
                    e = torch.sigmoid(functional.linear(z, t["gate_proj.weight"], t["gate_proj.bias"])) * e
                if kind == "rnn":
                    z = torch.cat([state, e, rows[place]])
                    g, c, o = functional.linear(z, t["joint_proj.weight"], t["joint_proj.bias"]).chunk(3)
                    state = torch.sigmoid(g) * state + (1 - torch.sigmoid(g)) * torch.tanh(c)
                    e = torch.tanh(o)
                extra = t["markov_w2.weight"] @ e
            guess = int(ids[(scores[place] + extra).argmax()])
            if place + shifted >= len(known):
                found.append(guess)
                if len(block) <= place + shifted:
                    block.append(guess)
        return found

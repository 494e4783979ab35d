"""Tiny random checkpoints with a multi-token prediction head, and transformers' own computation of that head."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import MtpModel

from tests.models.configs import LAYERS, tiny_config
from tests.swarm.model.tiny import random_model

APPENDED = ("deepseek_v3", "glm4_moe", "glm4_moe_lite")
APART = ("qwen3_next", "qwen3_5_text")


def save_with_head(kind: str, folder: Path) -> Any:
    """A checkpoint of a kind with a head, as its makers lay it out; returns the model of transformers.

    The head's layer has the shape of the model's own last layer of that sort, and other numbers.
    """
    config = tiny_config(kind)
    if kind in APART:  # as in published ones; transformers takes its head's norms to be like the last layer's first
        config.layer_types = ["linear_attention", "linear_attention", "full_attention"] * (LAYERS // 3)
    model = random_model(config)
    model.save_pretrained(folder)
    if kind not in APART:  # files say how many heads there are, whether a class knows the field or not
        stated = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**stated, "num_nextn_predict_layers": 1}))
    file = folder / "model.safetensors"
    tensors = load_file(file)
    hidden, source = config.hidden_size, LAYERS - 1
    if kind in APART:
        source = [i for i, what in enumerate(config.layer_types) if what == "full_attention"][-1]
    torch.manual_seed(5)

    def norm() -> torch.Tensor:
        return 0.2 * torch.randn(hidden) + (0.0 if kind in APART else 1.0)

    own = {
        name.partition(f"layers.{source}.")[2]: tensor
        for name, tensor in tensors.items()
        if f".layers.{source}." in name
    }
    own = {name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in own.items()}
    joins = 0.2 * torch.randn(hidden, 2 * hidden)
    if kind in APART:
        made = {f"mtp.layers.0.{name}": tensor for name, tensor in own.items()}
        made |= {"mtp.fc.weight": joins, "mtp.norm.weight": norm()}
        made |= {"mtp.pre_fc_norm_embedding.weight": norm(), "mtp.pre_fc_norm_hidden.weight": norm()}
    else:
        made = {f"model.layers.{LAYERS}.{name}": tensor for name, tensor in own.items()}
        at = f"model.layers.{LAYERS}"
        made |= {f"{at}.eh_proj.weight": joins, f"{at}.enorm.weight": norm(), f"{at}.hnorm.weight": norm()}
        made |= {f"{at}.shared_head.norm.weight": norm()}
        made |= {f"{at}.shared_head.head.weight": tensors["lm_head.weight"].clone()}
        made |= {f"{at}.embed_tokens.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(tensors | made, file, metadata={"format": "pt"})
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def their_head(model: Any) -> MtpModel:
    """transformers' own head of a checkpoint: it knows of the layers to look for by numbers of published models."""
    kind = model.config.model_type
    model._keys_to_ignore_on_load_unexpected = [r"^mtp.*" if kind in APART else rf"model\.layers\.{LAYERS}\."]
    config = model.config
    config.num_mtp_layers = 1
    if getattr(config, "layer_types", None) is not None:
        config.mtp_layer_types = ["full_attention"]
    if getattr(config, "mlp_layer_types", None) is not None:
        config.mtp_mlp_layer_types = ["sparse"]
    return MtpModel.from_pretrained(model).eval()


@torch.inference_mode()
def expected(model: Any, head: MtpModel, text: Sequence[int], levels: int) -> list[torch.Tensor]:
    """What the head expects after `text`, whose last token was drawn after the others: scores float32 [vocab] of each
    level, computed anew over the whole text; behind the first level each goes on from the one before, as is usual
    where a checkpoint has one head."""
    ids = list(text)
    rows = model(torch.tensor([ids[:-1]]), output_hidden_states=True).hidden_states[-1]
    found = []
    for _ in range(levels):
        places = torch.arange(1, len(ids))[None]
        made = head.forward_layer(0, rows, places, None, input_ids=torch.tensor([ids[1:]]))
        found.append(head._project_to_logits(made)[0, -1].float())
        rows = torch.cat([rows, made[:, -1:]], dim=1)
        ids.append(int(found[-1].argmax()))
    return found


def save_foreseeing(folder: Path, right: bool) -> Any:
    """A checkpoint whose next token follows from the last one alone, in a cycle of all tokens, and whose
    head knows how (or, not `right`, is sure of the wrong one): no layer adds anything, so it goes on from the token."""
    config = tiny_config("glm4_moe")
    config.hidden_size, config.num_mtp_layers = 128, 1
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_config(config).eval()
    vocabulary, hidden = config.vocab_size, config.hidden_size
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj", "down_proj.weight")):
            weight.data.zero_()
    table = torch.linalg.qr(torch.randn(hidden, hidden)).Q[:vocabulary]
    order = torch.randperm(vocabulary)
    model.model.embed_tokens.weight.data = table
    model.lm_head.weight.data = torch.zeros(vocabulary, hidden)
    model.lm_head.weight.data[order.roll(-1)] = table[order]
    model.save_pretrained(folder)
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stated, "num_nextn_predict_layers": 1}))
    file, at = folder / "model.safetensors", f"model.layers.{LAYERS}"
    tensors = load_file(file)
    source = f"model.layers.{LAYERS - 1}."
    made = {name.replace(source, f"{at}."): tensor.clone() for name, tensor in tensors.items() if source in name}
    token, row = torch.eye(hidden), torch.zeros(hidden, hidden)
    joins = torch.cat([token, row] if right else [row, token], dim=1)
    ones = torch.ones(hidden)
    made |= {f"{at}.eh_proj.weight": joins, f"{at}.enorm.weight": ones, f"{at}.hnorm.weight": ones.clone()}
    made |= {f"{at}.shared_head.norm.weight": ones.clone()}
    save_file(tensors | made, file, metadata={"format": "pt"})
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

"""What the tensors of a model are called in a GGUF file.

Names come from the table of the `gguf` package (`TensorNameMap`), asked for every tensor of a model that is built
without memory; here is what that table does not say: which tensors a converter takes apart or joins, and names that
transformers changed since a model was released.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import gguf

GATE, UP, DOWN, GATE_UP = "gate", "up", "down", "gate_up"
"""Roles of stacked experts: [experts, outputs, inputs] each, gate before up where both are one."""


@dataclass(frozen=True)
class StoredPart:
    """A tensor of a file, and which part of the model's tensor it is; "": all of it."""

    stored: str
    role: str = ""


Alternative = tuple[StoredPart, ...]
"""What together makes one tensor of the model. Converters of different years take different ways."""

_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")
_ENDINGS = ("", ".weight", ".bias")
_SUFFIX = re.compile(r"\.(weight|bias)$")

_SAID_OTHERWISE: tuple[tuple[str, str], ...] = (
    (r"\.e_score_correction_bias$", ".e_score_correction.bias"),
    (r"\.dt_bias$", ".dt_proj.bias"),
    (r"\.mlp\.gate\.moe_statics\.", ".mlp.moe_statics."),
    (r"^model\.layers\.(\d+)\.mixer\.", r"backbone.layers.\1.mixer."),
    (r"\.mlp\.gate\.e_score_correction", ".mlp.e_score_correction"),
    (r"\.mlp\.router\.", ".mlp.gate."),
    (r"\.block_sparse_moe\.router\.", ".block_sparse_moe.gate."),
)
"""Endings of transformers' names, and what the table of the `gguf` package knows them by."""

_SHARED = (
    (
        r"\.shared_mlp\.input_linear\.weight$",
        (
            "first=blk.{n}.ffn_gate_shexp.weight second=blk.{n}.ffn_up_shexp.weight",
            "first=blk.{n}.ffn_gate.weight second=blk.{n}.ffn_up.weight",
        ),
    ),
    (r"\.shared_mlp\.output_linear\.weight$", ("blk.{n}.ffn_down_shexp.weight", "blk.{n}.ffn_down.weight")),
)
_LATENT = (
    r"\.kv_b_proj\.weight$",
    ("blk.{n}.attn_kv_b.weight", "k_b=blk.{n}.attn_k_b.weight v_b=blk.{n}.attn_v_b.weight"),
)
_LAST_NORM = (r"^model\.embedding_norm\.weight$", ("token_embd_norm.weight", "output_norm.weight"))

_OWN: Mapping[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "gpt-oss": (
        (r"experts\.gate_up_proj_bias$", ("even=blk.{n}.ffn_gate_exps.bias odd=blk.{n}.ffn_up_exps.bias",)),
        (r"experts\.down_proj_bias$", ("blk.{n}.ffn_down_exps.bias",)),
        (  # files of a first version call it otherwise
            r"\.post_attention_layernorm\.weight$", ("blk.{n}.post_attention_norm.weight", "blk.{n}.ffn_norm.weight"),
        ),
    ),
    "deepseek2": (_LATENT,),
    "granitemoe": _SHARED,
    "granitehybrid": _SHARED,
    "mistral4": (_LATENT,),
    "lfm2": (_LAST_NORM,),
    "lfm2moe": (_LAST_NORM,),
    "qwen3next": (
        (
            r"\.in_proj_qkvz\.weight$",
            ("blk.{n}.ssm_in.weight", "qkv=blk.{n}.attn_qkv.weight z=blk.{n}.attn_gate.weight"),
        ),
    ),
}  # fmt: skip
"""By architecture: patterns of transformers' names, and the stored names that together are each (`{n}` is the layer),
"role=name" where they are parts."""


class Names:
    """Names of one architecture. Raises ValueError for one that the `gguf` package does not know."""

    def __init__(self, architecture: str, layers: int) -> None:
        number = next((key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), None)
        if number is None:
            raise ValueError(f"architecture {architecture} has no table of names")
        self._map = gguf.get_tensor_name_map(number, layers)
        self._own = [(re.compile(pattern), names) for pattern, names in _OWN.get(architecture, ())]

    def sources(self, name: str) -> list[Alternative]:
        """What a tensor of the model, by its name there, can be stored as; the usual way first."""
        layer = found.group(1) if (found := _LAYER.search(name)) else ""
        for pattern, stored in self._own:
            if pattern.search(name):
                return [_alternative(each.replace("{n}", layer)) for each in stored]
        if name.endswith("experts.gate_up_proj"):
            gate, both = f"blk.{layer}.ffn_gate_exps.weight", f"blk.{layer}.ffn_gate_up_exps.weight"
            return [(StoredPart(gate, GATE), StoredPart(gate.replace("gate", "up"), UP)), (StoredPart(both, GATE_UP),)]
        if found := re.search(r"experts\.(up|down)_proj$", name):
            return [(StoredPart(f"blk.{layer}.ffn_{found.group(1)}_exps.weight", found.group(1)),)]
        for known in self._spellings(name):
            if (whole := self._map.get_name(known)) is not None:  # an ending that the table holds is not written
                return [(StoredPart(whole + each),) for each in (("",) if _SUFFIX.search(known) else _ENDINGS)]
            ending = found.group() if (found := _SUFFIX.search(known)) else ""
            if ending and (stem := self._map.get_name(known.removesuffix(ending))) is not None:
                return [(StoredPart(stem + ending),)]
        return []

    def _spellings(self, name: str) -> Iterable[str]:
        spelled = [name]
        for pattern, other in _SAID_OTHERWISE:
            spelled += [re.sub(pattern, other, one) for one in spelled if re.search(pattern, one)]
        for one in spelled:
            yield one
        for one in spelled:  # converted from the model without its head
            yield one.partition(".")[2]


def _alternative(text: str) -> Alternative:
    """ "a=x b=y" -> x is part a, y is part b; "x" -> x is all of it."""
    parts = []
    for each in text.split():
        role, equal, stored = each.partition("=")
        parts.append(StoredPart(stored, role) if equal else StoredPart(each))
    return tuple(parts)

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
class Source:
    """A tensor of a file, and which part of the model's tensor it is; "": all of it."""

    stored: str
    role: str = ""


Alternative = tuple[Source, ...]
"""What together makes one tensor of the model. Converters of different years take different ways."""

_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")
_SUFFIX = re.compile(r"\.(weight|bias)$")

_SAID_OTHERWISE: tuple[tuple[str, str], ...] = (
    (r"\.e_score_correction_bias$", ".e_score_correction.bias"),
    (r"\.dt_bias$", ".dt_proj.bias"),
    (r"\.mlp\.gate\.e_score_correction", ".mlp.e_score_correction"),
    (r"\.mlp\.router\.", ".mlp.gate."),
    (r"\.feed_forward\.expert_bias$", ".feed_forward.expert_bias.bias"),
)
"""Endings of transformers' names, and what the table of the `gguf` package knows them by."""

_OWN: Mapping[str, tuple[tuple[str, tuple[str, ...]], ...]] = {}
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
            return [(Source(gate, GATE), Source(gate.replace("gate", "up"), UP)), (Source(both, GATE_UP),)]
        if found := re.search(r"experts\.(up|down)_proj$", name):
            return [(Source(f"blk.{layer}.ffn_{found.group(1)}_exps.weight", found.group(1)),)]
        stem, ending = self._stem(name)
        if stem is None:
            return []
        return [(Source(stem + ending),)] if ending else [(Source(stem),), (Source(f"{stem}.weight"),)]

    def _stem(self, name: str) -> tuple[str | None, str]:
        for known in self._spellings(name):
            ending = found.group() if (found := _SUFFIX.search(known)) else ""
            for key in (known.removesuffix(ending), known):
                if (stem := self._map.get_name(key)) is not None:
                    return stem, ending
        return None, ""

    def _spellings(self, name: str) -> Iterable[str]:
        spelled = [name]
        for pattern, other in _SAID_OTHERWISE:
            spelled += [re.sub(pattern, other, one) for one in spelled if re.search(pattern, one)]
        for one in spelled:
            yield one
        for one in spelled:  # converted from the model without its head
            yield one.partition(".")[2]


def _alternative(text: str) -> Alternative:
    """"a=x b=y" -> x is part a, y is part b; "x" -> x is all of it."""
    parts = []
    for each in text.split():
        role, equal, stored = each.partition("=")
        parts.append(Source(stored, role) if equal else Source(each))
    return tuple(parts)

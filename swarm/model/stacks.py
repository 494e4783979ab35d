"""Which stored tensors are the experts of a layer, by transformers' own table of names.

Files keep experts one by one, or all of one projection in one tensor; the model has one parameter for all of them, with
gate and up joined. Where every one of them can be held as it is stored, the stack of them takes the parameter's place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)

from swarm.base.errors import ModelError
from swarm.model.quant.experts import Stack, projections, unlike
from swarm.model.quant.matrix import Matrix

_NUMBER = re.compile(r"\.(\d+)\.")
_PLAIN = re.compile(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")
"""How a GGUF's experts are called in a manifest, whatever the model's own files call them."""


@dataclass(frozen=True)
class ExpertPlace:
    """Where a stored tensor belongs: the model's parameter, which of its parts (gate before up), whose; None: all.
    plain: transformers has no rule that would join them."""

    target: str
    part: int
    expert: int | None
    plain: bool = False


class ExpertNames:
    """The experts of a model (on the meta device) that can stay as they are stored.

    shapes: (experts, outputs, inputs) by the parameter's name, whichever way it lies in the model; turned: whether it
    lies [experts, inputs, outputs] there; alternate: whose gate and up rows take turns; packable: the others are only
    known for being joined.
    """

    def __init__(self, model: nn.Module) -> None:
        self.shapes: dict[str, tuple[int, int, int]] = {}
        self.turned: dict[str, bool] = {}
        self.alternate: set[str] = set()
        self.packable: set[str] = set()
        for path, module in model.named_modules():
            if unlike(module):
                self._take_others(path, module)
                continue
            for name in projections(module):
                count, out, width = getattr(module, name).shape
                turned = bool(module.is_transposed)
                self.shapes[f"{path}.{name}"] = (count, width, out) if turned else (count, out, width)
                self.turned[f"{path}.{name}"] = turned
                self.packable.add(f"{path}.{name}")
                if module.has_gate and not module.is_concatenated and name == "gate_up_proj":
                    self.alternate.add(f"{path}.{name}")
        transforms: list[Any] = get_model_conversion_mapping(model) if self.packable else []
        self._renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
        self._converters = [t for t in transforms if isinstance(t, WeightConverter)]

    def _take_others(self, path: str, module: nn.Module) -> None:
        """Experts that compute by code of their own: joined where a GGUF has them one by one, never packed."""
        own = dict(module.named_parameters(recurse=False))
        both, down = own.get("gate_up_proj"), own.get("down_proj")
        if both is None or down is None or both.dim() != 3 or down.dim() != 3:
            return
        turned = both.shape[2] == 2 * down.shape[1]
        for name, parameter in (("gate_up_proj", both), ("down_proj", down)):
            count, out, width = parameter.shape
            self.shapes[f"{path}.{name}"] = (count, width, out) if turned else (count, out, width)
            self.turned[f"{path}.{name}"] = turned

    def place(self, name: str) -> ExpertPlace | None:
        """Of a tensor by the name that its file has; None when it is no expert's, or is changed on its way in."""
        if not self.shapes:
            return None
        target, pattern = rename_source_key(name, self._renamings, self._converters)
        if target not in self.packable:
            return self._plain(name)
        if pattern is None:
            return ExpertPlace(target, 0, None)
        converter = next(c for c in self._converters if pattern in c.source_patterns)
        numbers = _NUMBER.findall(name.removeprefix(target.rpartition(".")[0]))
        steps = [type(step) for step in converter.operations]
        joined = steps == [MergeModulelist, Concatenate] and converter.operations[1].dim == 1
        if not numbers or not (joined or steps == [MergeModulelist]) or converter.operations[0].dim != 0:
            return None
        return ExpertPlace(target, converter.source_patterns.index(pattern), int(numbers[-1]))

    def _plain(self, name: str) -> ExpertPlace | None:
        """Of an expert by the name that a manifest of a GGUF has for it, where the model's own files have others."""
        found = _PLAIN.fullmatch(name)
        if found is None:
            return None
        module, number, kind = found.groups()
        target = f"{module}.gate_up_proj" if kind != "down" else f"{module}.down_proj"
        target = target if target in self.shapes else f"{module}.{kind}_proj"
        if target not in self.shapes:
            return None
        return ExpertPlace(target, int(kind == "up" and target.endswith("gate_up_proj")), int(number), plain=True)


@dataclass
class Gathered:
    """The stored tensors of one parameter: by part and expert, or the one that holds all."""

    pieces: dict[int, dict[int, str]] = field(default_factory=dict)
    whole: str | None = None
    plain: bool = False

    def add(self, place: ExpertPlace, name: str) -> None:
        self.plain = self.plain or place.plain
        if place.expert is None:
            self.whole = name
        else:
            self.pieces.setdefault(place.part, {})[place.expert] = name

    @property
    def names(self) -> list[str]:
        one_by_one = [name for part in self.pieces.values() for name in part.values()]
        return one_by_one if self.whole is None else [self.whole, *one_by_one]


def gather(
    stored: list[tuple[str, str]], names: ExpertNames | None
) -> tuple[dict[str, Gathered], list[tuple[str, str]]]:
    """Of (stored name, the model's name before it is converted): experts by their parameter, and all others."""
    found: dict[str, Gathered] = {}
    others = []
    for source, name in stored:
        place = None if names is None else names.place(name)
        if place is None:
            others.append((source, name))
        else:
            found.setdefault(place.target, Gathered()).add(place, source)
    return found, others


def hold_stack(
    target: str,
    gathered: Gathered,
    shape: tuple[int, int, int],
    hold: Callable[[str], Matrix | None],
    hold_all: Callable[[str], tuple[Matrix, ...] | None],
    shape_of: Mapping[str, tuple[int, ...]],
    alternate: bool = False,
) -> Stack | None:
    """All experts of a parameter as they are stored; None where one of them must be unpacked. shape_of: of the stored
    names; alternate: gate and up take turns. Raises ModelError, before anything is read, for experts that are missing
    or of another shape."""
    count, out, width = shape
    if gathered.whole is not None:
        if gathered.pieces or sorted(shape_of[gathered.whole]) != sorted(shape):
            return None
        held = hold_all(gathered.whole)
        fits = held is not None and len(held) == count and all(m.shape == (out, width) for m in held)
        return Stack((held,)) if held is not None and fits else None
    parts = [gathered.pieces[part] for part in sorted(gathered.pieces)]
    if not parts or sorted(gathered.pieces) != list(range(len(parts))):
        return None
    for part in parts:
        if missing := set(range(count)) - set(part):
            name = _NUMBER.sub(f".{min(missing)}.", "." + next(iter(part.values())).rpartition(".experts.")[2], count=1)
            raise ModelError(f"expert{name} of {target} is not there: the model is not whole, pull it again")
        for name in part.values():
            if len(shape_of[name]) != 2:  # bitsandbytes states it in its data alone
                return None
            if shape_of[name] != (out // len(parts), width):
                raise ModelError(
                    f"{name} has shape {list(shape_of[name])}, its config says {[out // len(parts), width]}: config "
                    "and weights are of different models"
                )
    stacks = []
    for part in parts:
        matrices = []
        for expert in range(count):
            if (matrix := hold(part[expert])) is None:
                return None
            matrices.append(matrix)
        stacks.append(tuple(matrices))
    return Stack(tuple(stacks), alternate and len(stacks) == 2)


def join_experts(
    target: str, gathered: Gathered, names: ExpertNames, read: Callable[[str], torch.Tensor]
) -> torch.Tensor:
    """All experts of the parameter `target` in one tensor, as the model has it; after `hold_stack` looked at them."""
    count, out, width = names.shapes[target]
    turned, alternate = names.turned[target], target in names.alternate
    parts = [gathered.pieces[part] for part in sorted(gathered.pieces)]
    whole: torch.Tensor | None = None
    for number, part in enumerate(parts):
        for expert in range(count):
            matrix = read(part[expert])
            if whole is None:
                whole = torch.empty((count, width, out) if turned else (count, out, width), dtype=matrix.dtype)
            own = whole[expert].T if turned else whole[expert]
            first = number * (out // len(parts))
            rows = slice(number, None, len(parts)) if alternate else slice(first, first + out // len(parts))
            own[rows] = matrix
    assert whole is not None
    return whole

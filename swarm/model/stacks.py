"""Which stored tensors are the experts of a layer, by transformers' own table of names.

Files keep experts one by one, or all of one projection in one tensor; the model has one parameter for all of them, with
gate and up joined. Where every one of them can be held as it is stored, the stack of them takes the parameter's place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

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


@dataclass(frozen=True)
class ExpertPlace:
    """Where a stored tensor belongs: the model's parameter, which of its parts (gate before up), whose; None: all."""

    target: str
    part: int
    expert: int | None


class ExpertNames:
    """The experts of a model (on the meta device) that can stay as they are stored.

    shapes: (experts, outputs, inputs) by the parameter's name, whichever way it lies in the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.shapes: dict[str, tuple[int, int, int]] = {}
        for path, module in model.named_modules():
            if unlike(module):
                continue
            for name in projections(module):
                count, out, width = getattr(module, name).shape
                turned = bool(module.is_transposed)
                self.shapes[f"{path}.{name}"] = (count, width, out) if turned else (count, out, width)
        transforms: list[Any] = get_model_conversion_mapping(model) if self.shapes else []
        self._renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
        self._converters = [t for t in transforms if isinstance(t, WeightConverter)]

    def place(self, name: str) -> ExpertPlace | None:
        """Of a tensor by the name that its file has; None when it is no expert's, or is changed on its way in."""
        if not self.shapes:
            return None
        target, pattern = rename_source_key(name, self._renamings, self._converters)
        if target not in self.shapes:
            return None
        if pattern is None:
            return ExpertPlace(target, 0, None)
        converter = next(c for c in self._converters if pattern in c.source_patterns)
        numbers = _NUMBER.findall(name.removeprefix(target.rpartition(".")[0]))
        steps = [type(step) for step in converter.operations]
        joined = steps == [MergeModulelist, Concatenate] and converter.operations[1].dim == 1
        if not numbers or not (joined or steps == [MergeModulelist]) or converter.operations[0].dim != 0:
            return None
        return ExpertPlace(target, converter.source_patterns.index(pattern), int(numbers[-1]))


@dataclass
class Gathered:
    """The stored tensors of one parameter: by part and expert, or the one that holds all."""

    pieces: dict[int, dict[int, str]] = field(default_factory=dict)
    whole: str | None = None

    def add(self, place: ExpertPlace, name: str) -> None:
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
) -> Stack | None:
    """All experts of a parameter as they are stored; None where one of them must be unpacked. shape_of: of the stored
    names. Raises ModelError, before anything is read, for experts that are missing or of another shape."""
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
    return Stack(tuple(stacks))

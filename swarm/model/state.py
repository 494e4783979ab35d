"""The tensors of a layer range, read and checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, TypeVar

import torch

from swarm.base.errors import ModelError
from swarm.model.files.checkpoint import Checkpoint
from swarm.model.files.manifest import is_embedding, layer_of
from swarm.model.files.schemes import layer_weights, weights_of
from swarm.model.files.wrappers import is_wrapper, text_name
from swarm.model.per_layer import part_of
from swarm.model.prune import LayerRange
from swarm.model.quant.experts import Stack
from swarm.model.quant.matrix import Matrix
from swarm.model.shared import check_copy, target_layer
from swarm.model.stacks import ExpertNames, Gathered, gather, hold_stack, join_experts

_RENAMED = {
    "embed_out.weight": "lm_head.weight",
    "backbone.embeddings.weight": "model.embeddings.weight",
    "model.word_embeddings.weight": "model.embed_tokens.weight",
}
"""Outer tensors by the names that files have for them (GPT-NeoX, Nemotron-H, Ling), where the model has others."""

_HARMLESS = re.compile(
    r"(?:rotary_emb|rotary_pos_emb|rope)\.(?:inv_freq|cos_cached|sin_cached)$|\.(?:attn|attention)\.(?:masked_)?bias$"
)
"""Buffers that files carry and models compute themselves: rotary frequencies, and causal masks named biases."""


Held = TypeVar("Held")

_OWN_KEYS = re.compile(r"\.self_attn\.[kv]_(?:proj|norm)\.")
"""What makes keys and values in a layer: of no use in one that reads another's."""


def unconsumed(names: Iterable[str]) -> list[str]:
    """Of tensors that a model did not take, those that it should have taken: leaving one out changes what it says."""
    return sorted(name for name in names if not _HARMLESS.search(name))


@dataclass(frozen=True)
class Packing:
    """Which tensors stay as they are stored: `targets`, by the model's names, as far as the checkpoint can hold them.
    experts: which parameters are those of experts; without_kernel: also what is unpacked for every product; expanded:
    nothing stays as it is stored."""

    targets: frozenset[str] = frozenset()
    without_kernel: bool = False
    experts: ExpertNames | None = None
    expanded: bool = False


EXPANDED = Packing(expanded=True)


@dataclass(frozen=True)
class ModelState:
    """What was read, by the model's names: plain tensors (of experts that are not held, by those before they are
    joined), matrices of layers, and all experts of a projection."""

    tensors: dict[str, torch.Tensor]
    matrices: dict[str, Matrix]
    stacks: dict[str, Stack]

    @property
    def numbers(self) -> int:
        """How many weights they are."""
        count = sum(tensor.numel() for tensor in self.tensors.values())
        count += sum(matrix.shape[0] * matrix.shape[1] for matrix in self.matrices.values())
        return count + sum(s.experts * s.out_features * s.in_features for s in self.stacks.values())


def read_state(
    checkpoint: Checkpoint,
    shape: LayerRange,
    expected: dict[str, torch.Size],
    prefix: str,
    dtype: torch.dtype,
    tell: Callable[[int], None],
    packing: Packing = EXPANDED,
    tied: Mapping[str, str] | None = None,
) -> ModelState:
    """Tensors under the names that the model pruned to `shape` has for them.

    expected: shapes by those names, as far as the config tells; tied: names of tensors that a class shares with others,
    with those; `tell` gets the layers read so far. What `packing` names comes as matrices instead. Raises ModelError
    for a tensor of another shape or with values that are not finite.
    """
    reading = _Reading(checkpoint, shape, expected, dtype, packing)
    wanted = reading.wanted(prefix, tied or {})
    for done, layer in enumerate(range(shape.first, shape.last), 1):
        of_experts, plain = gather(wanted.get(layer, []), packing.experts)
        names = dict(wanted.get(layer, ()))
        for target, gathered in of_experts.items():
            if not reading.take_experts(target, gathered):
                plain += [(name, names[name]) for name in gathered.names]
        for source, target in plain:
            reading.take(source, target)
        tell(done)
    return reading.state


_Wanted: TypeAlias = dict[int, list[tuple[str, str]]]
"""By the layer with which they are read: names of stored tensors, and those that the model has for them."""


class _Reading:
    """One `read_state`: what is to be read, and what was."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        shape: LayerRange,
        expected: Mapping[str, torch.Size],
        dtype: torch.dtype,
        packing: Packing,
    ) -> None:
        self._checkpoint, self._shape, self._expected = checkpoint, shape, expected
        self._dtype, self._packing = dtype, packing
        self._model = checkpoint.manifest.model
        stored = layer_weights(checkpoint.manifest, shape.first, shape.last)
        self._entries = {weight.entry.name: weight.entry for weight in stored}
        self.state = ModelState({}, {}, {})

    def wanted(self, prefix: str, tied: Mapping[str, str]) -> _Wanted:
        """What is to be read, ends with the first layer."""
        manifest, shape, expected = self._checkpoint.manifest, self._shape, self._expected
        # Saved without its head class; Nemotron-H's files say `backbone`, which its class renames itself.
        bare = not any(name.startswith((prefix + ".", "backbone.")) for name in manifest.entries)
        wanted: _Wanted = {}
        wraps = is_wrapper(manifest.config)
        weighed = {layer_of(name) for name in expected}
        for entry in self._entries.values():
            name = f"{prefix}.{entry.name}" if bare and not entry.name.startswith("lm_head.") else entry.name
            name = (text_name(entry.name) or name) if wraps else name
            stored = layer_of(entry.name)
            layer = None if stored is None else target_layer(entry.name, stored, shape.ties, shape.first, shape.last)
            if stored is not None and layer is None:
                read = partial(self._checkpoint.read, dtype=self._dtype)
                check_copy(entry.name, stored, shape.ties, read, self._model)
                continue
            if layer is not None and layer - shape.first not in weighed:
                continue  # text goes by this layer, so the model has no weights for it
            if layer is not None:
                target = re.sub(rf"\.{stored}\.", f".{layer - shape.first}.", name, count=1)
                if layer in shape.ties.reads and target not in expected and _OWN_KEYS.search(target):
                    continue  # files carry them, and their class drops them
                wanted.setdefault(layer, []).append((entry.name, target))
            elif name in expected or _RENAMED.get(name) in expected or not is_embedding(entry.name):
                # What nobody expects is read as well: the model's own renamings may know it, or it is refused by name.
                target = name if name in expected else _RENAMED.get(name, name)
                wanted.setdefault(shape.first, []).append((entry.name, target))
        if self._checkpoint.config.tie_word_embeddings:
            self._add_tied(wanted, tied)
        return wanted

    def _add_tied(self, wanted: _Wanted, tied: Mapping[str, str]) -> None:
        """What stands in the files once, and in this model is to stand a second time."""
        shape, expected = self._shape, self._expected
        have = {target for pairs in wanted.values() for _, target in pairs}
        ends = wanted.setdefault(shape.first, [])
        if "lm_head.weight" in expected and "lm_head.weight" not in have and shape.first > 0:
            ends.append((_embedding(self._checkpoint), "lm_head.weight"))
            have.add("lm_head.weight")
        if shape.last != shape.n_layers:
            return
        for target, source in tied.items():
            if shape.first == 0 and (target == "lm_head.weight" or not self._packing.targets):
                continue  # the whole model has both ends: they share one tensor
            if target in expected and target not in have and source in self._entries:
                ends.append((source, target))

    def take_experts(self, target: str, gathered: Gathered) -> bool:
        """Experts of one projection as they are stored, or joined; False where the model joins them itself."""
        packing, checkpoint = self._packing, self._checkpoint
        assert packing.experts is not None
        stack = None
        if not packing.expanded or gathered.plain:
            keep = not packing.expanded and target in packing.experts.packable
            stack = hold_stack(
                target,
                gathered,
                packing.experts.shapes[target],
                partial(_held, checkpoint.hold, keep, packing.without_kernel),
                partial(_held, checkpoint.hold_stack, keep, packing.without_kernel),
                {name: self._entries[name].shape for name in gathered.names},
                target in packing.experts.alternate,
            )
        if stack is not None:
            self.state.stacks[target] = stack
        elif gathered.plain:
            self.state.tensors[target] = join_experts(target, gathered, packing.experts, self._read)
        return stack is not None or gathered.plain

    def take(self, source: str, target: str) -> None:
        """A tensor, as it is stored where that is asked for."""
        packing, shape = self._packing, self._shape
        # Another shape is refused before memory is taken (bitsandbytes states it in its data alone).
        if target in packing.targets and len(self._entries[source].shape) == 2:
            _check_shape(source, self._entries[source].shape, self._expected[target], self._model)
            if matrix := self._checkpoint.hold(source, packing.without_kernel):
                self.state.matrices[target] = matrix
                return
        tensor = self._checkpoint.read(source, self._dtype)
        if shape.ties.embeds:
            tensor = part_of(target, tensor, shape.first, shape.last, shape.n_layers)
        if target in self._expected:
            _check_shape(source, tensor.shape, self._expected[target], self._model)
        self.state.tensors[target] = _checked(tensor, source, self._model)

    def _read(self, name: str) -> torch.Tensor:
        return _checked(self._checkpoint.read(name, self._dtype), name, self._model)


def _held(hold: Callable[[str, bool], Held], keep: bool, without_kernel: bool, name: str) -> Held | None:
    return hold(name, without_kernel) if keep else None


def _checked(tensor: torch.Tensor, source: str, model: str) -> torch.Tensor:
    """The tensor. Raises ModelError for values that are not finite."""
    if tensor.is_floating_point() and tensor.numel() and not _finite(tensor):
        raise ModelError(f"{source} of {model} holds values that are not finite: pull it again")
    return tensor


def _check_shape(source: str, found: Sequence[int], expected: Sequence[int], model: str) -> None:
    if tuple(found) != tuple(expected):
        raise ModelError(
            f"{source} of {model} has shape {list(found)}, its config says {list(expected)}: config and weights are "
            "of different models"
        )


def _finite(tensor: torch.Tensor) -> bool:
    """One pass without a mask of the tensor's size; minimum and maximum both pass NaN on."""
    least, most = tensor.aminmax()
    return bool(torch.isfinite(least) & torch.isfinite(most))


def _embedding(checkpoint: Checkpoint) -> str:
    """Name of the input embedding's weight."""
    known = re.compile(r"(?:^|\.)(?:embed_tokens|wte|embed_in|word_embeddings|embeddings)\.weight$")
    for name in weights_of(checkpoint.manifest):
        if layer_of(name) is None and known.search(name):
            return name
    raise ModelError(f"{checkpoint.manifest.model} has neither a head nor an embedding to share; is it complete?")

"""What of a checkpoint can be held as it is stored, from its manifest alone: planners ask before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swarm.model.files.gguf_layout import layout
from swarm.model.files.manifest import TensorEntry
from swarm.model.files.schemes import Weight
from swarm.model.quant.floats import Float4
from swarm.model.quant.formats import Format, blocks_format, find_format, has_kernel
from swarm.model.quant.native import library
from swarm.model.quant.panels import PANEL

OWN_EXPERTS = ("dbrx", "jetmoe", "llama4", "llama4_text", "longcat_flash")
"""Types whose experts transformers computes by code of their own: theirs are expanded."""


def packs(entry: TensorEntry, config: Mapping[str, Any], without_kernel: bool = False) -> bool:
    """Whether a matrix can be held as it is stored (`FileCheckpoint.hold`), should the model have a layer for it."""
    form = find_format(entry.format)
    if form is None or len(entry.shape) != 2 or not _packs_by_name(entry.name, config):
        return False
    if not layout(entry.name, entry.shape, config).packed_safe:
        return False
    return without_kernel or has_kernel(form, entry.shape, library())


def packs_encoded(weight: Weight, config: Mapping[str, Any]) -> bool:
    """As `packs`, of a matrix that several stored tensors make up and that a kernel multiplies."""
    kind = None if weight.encoding is None else weight.encoding.kernel_format
    form = blocks_format(kind)
    if form is None or len(weight.entry.shape) != 2 or not _packs_by_name(weight.entry.name, config):
        return False
    return has_kernel(form, weight.entry.shape, library())


def stored_form(weight: Weight) -> Format | None:
    """The blocks in which a weight lies, or into which its encoding brings it; None for others."""
    return find_format(weight.entry.format) if weight.encoding is None else blocks_format(weight.encoding.kernel_format)


def stack_shape(weight: Weight) -> tuple[int, int, int] | None:
    """(experts, outputs, inputs) of a tensor that is a stack of matrices; None for others."""
    shape = weight.entry.shape
    if len(shape) != 3:
        return None
    if isinstance(weight.encoding, Float4) and weight.encoding.stacked:
        return (shape[0], shape[2], shape[1])
    if weight.encoding is None and find_format(weight.entry.format) is not None:
        return (shape[0], shape[1], shape[2])
    return None


def stack_bytes(weight: Weight, config: Mapping[str, Any], without_kernel: bool) -> int | None:
    """Bytes of a stack that is held as it is stored; None where it is expanded."""
    shape = stack_shape(weight)
    if shape is None or not _experts_pack(weight.entry.name, config):
        return None
    form, lib = stored_form(weight), library()
    if form is not None and lib is not None and has_kernel(form, shape[1:], lib):
        return shape[0] * lib.packed_bytes(form.number, *shape[1:])
    return weight.entry.nbytes if without_kernel else None


def encoded_packs(weight: Weight, config: Mapping[str, Any]) -> bool:
    """Whether a matrix without a kernel can be held as its parts, unpacked for every product."""
    return weight.encoding is not None and len(weight.entry.shape) == 2 and _packs_by_name(weight.entry.name, config)


def _packs_by_name(name: str, config: Mapping[str, Any]) -> bool:
    """Not the matrices that make keys and values of a latent: attention takes them apart (`latent.py`)."""
    return _experts_pack(name, config) and not (".kv_b_proj." in name and config.get("kv_lora_rank"))


def _experts_pack(name: str, config: Mapping[str, Any]) -> bool:
    return ".experts." not in name or config.get("model_type") not in OWN_EXPERTS


def is_cut(weight: Weight, config: Mapping[str, Any], weights: str) -> bool:
    """Whether a layer's tensor is cut where its layer is too large for a device (`quant.sliced`): the matrices of
    linear layers, and experts that stay as stored. weights: of `load_block`."""
    shape = weight.entry.shape
    if weights == "expanded" and ".experts." in weight.entry.name:
        return False
    if len(shape) == 2:
        return shape[0] >= 2 * PANEL and weight.entry.name.endswith(".weight")
    return stack_bytes(weight, config, weights == "stored") is not None

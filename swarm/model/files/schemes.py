"""Which stored tensors make up which weight of a model, from its `quantization_config`.

Everything is decided from the manifest, so that what cannot be read is refused before a weight is fetched: a method by
its name, a group size that does not divide or scales of another shape by the tensor's. Scales of activations and of
key/value caches are left alone: rows are computed in more precision than they were made for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from swarm.base.errors import ModelError
from swarm.model.files.gguf_layout import layout
from swarm.model.files.manifest import Manifest, TensorEntry
from swarm.model.files.safetensors_file import DTYPES
from swarm.model.quant.bitsandbytes import BNB_ROLES, bitsandbytes
from swarm.model.quant.compressed import COMPRESSED_ROLES, compressed_tensors
from swarm.model.quant.encoding import Encoding
from swarm.model.quant.floats import Float4, ScaledFloats
from swarm.model.quant.ggml import GGML_ROLES, SCALE, ScaledBlocks, ggml_blocks
from swarm.model.quant.integers import Integers
from swarm.model.quant.joined import PART, joined

Choose = Callable[[str, Mapping[str, TensorEntry]], Encoding | None]
"""(module, its stored tensors by role) -> how the weight is stored; None where it is plain. Raises ValueError."""

READABLE = "fp8, fbgemm_fp8, gptq, awq, mxfp4, compressed-tensors, modelopt, bitsandbytes"
INSTEAD = "take its unquantised weights, a GGUF, or one quantised by another method"

_IGNORED = (
    ".input_scale", ".activation_scale", ".activation_scale_inv", ".input_global_scale", ".input_zero_point",
    ".output_scale", ".output_zero_point", ".k_scale", ".v_scale", ".q_scale", ".kv_scale", ".prob_scale",
    ".weight_format",
)  # fmt: skip
"""Endings of what says how activations were to be rounded."""


@dataclass(frozen=True)
class Weight:
    """A tensor of the model. entry: its name and shape there, its encoding's name, its stored bytes in all.

    parts: what it is stored in, by role; encoding: None for plain numbers and GGUF blocks, then `entry` is the stored
    tensor itself.
    """

    entry: TensorEntry
    parts: Mapping[str, TensorEntry]
    encoding: Encoding | None = None


@dataclass(frozen=True)
class Method:
    """roles: endings of stored names, and what they are to an encoding; target: the ending of the model's name."""

    roles: Mapping[str, str]
    choose: Choose
    target: str = ".weight"


def weights_of(manifest: Manifest) -> dict[str, Weight]:
    """The model's tensors by name. Raises ModelError for what cannot be read, naming method or tensor."""
    return _group(manifest.tensors, manifest)


def layer_weights(manifest: Manifest, first: int, last: int) -> tuple[Weight, ...]:
    """As `Manifest.layer_tensors`, in the model's tensors."""
    return tuple(_group(manifest.layer_tensors(first, last), manifest).values())


def _group(tensors: Sequence[TensorEntry], manifest: Manifest) -> dict[str, Weight]:
    """Parts of a weight share its module, so that a layer's are all among the layer's tensors."""
    method = find_method(manifest.config, manifest.model)
    if any(PART in t.name for t in tensors):
        return _group_parts(tensors, manifest)
    if method is None and any(t.name.endswith(SCALE) for t in tensors):
        method = _gguf(manifest.config)
    if method is None:
        return {t.name: _plain(t, manifest.model) for t in tensors}
    found: dict[str, Weight] = {}
    modules: dict[str, dict[str, TensorEntry]] = {}
    for entry in tensors:
        ending = next((e for e in method.roles if entry.name.endswith(e)), None)
        if ending is not None and entry.name != ending:
            parts = modules.setdefault(entry.name.removesuffix(ending), {})
            if (role := method.roles[ending]) in parts:
                raise ModelError(f"{manifest.model} has {entry.name} beside {parts[role].name}; pull it again")
            parts[role] = entry
        elif not entry.name.endswith(_IGNORED):
            found[entry.name] = _plain(entry, manifest.model)
    for module, parts in modules.items():
        weight = _join(module, parts, method, manifest.model)
        if weight.entry.name in found:
            raise ModelError(f"{manifest.model} has {weight.entry.name} twice, packed and plain; pull it again")
        found[weight.entry.name] = weight
    return found


def _group_parts(tensors: Sequence[TensorEntry], manifest: Manifest) -> dict[str, Weight]:
    """Of a GGUF that keeps some tensors in parts."""
    parts: dict[str, dict[str, TensorEntry]] = {}
    for entry in tensors:
        name, apart, role = entry.name.partition(PART)
        if apart:
            parts.setdefault(name, {})[role] = entry
    found = _group([entry for entry in tensors if PART not in entry.name], manifest)
    for name, own in parts.items():
        if name in found:
            raise ModelError(f"{manifest.model} has {name} twice, in parts and whole; pull it again")
        try:
            encoding = joined(own, manifest.config)
            shape = encoding.shape(own)
        except (ValueError, IndexError, KeyError) as exc:
            raise ModelError(f"{name} of {manifest.model} cannot be read: {exc}; pull it again") from exc
        first = next(iter(own.values()))
        entry = TensorEntry(name, shape, encoding.name, sum(p.nbytes for p in own.values()), first.digest)
        found[name] = Weight(entry, own, encoding)
    return found


def find_method(config: Mapping[str, Any], model: str) -> Method | None:
    """How a checkpoint is quantised; None when it is not. Raises ModelError for what cannot be read."""
    stated = config.get("quantization_config")
    if not stated:
        return None
    if not isinstance(stated, Mapping):
        raise ModelError(f"the quantization_config of {model} is no object; pull it again")
    name = str(stated.get("quant_method", "")).lower()
    reader = _METHODS.get(name)
    if reader is None:
        raise ModelError(f"{model} is quantised by {name or 'no stated method'!r}, expected {READABLE}; {INSTEAD}")
    if config.get("model_type") in ("gpt2", "openai-gpt") and name != "bitsandbytes":
        raise ModelError(f"{model} is a quantised {config['model_type']}, whose matrices lie the other way; {INSTEAD}")
    try:
        return reader(stated)
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, re.error) as exc:
        raise ModelError(f"{model} is quantised by {name} in a way that is not read: {exc}; {INSTEAD}") from exc


def _plain(entry: TensorEntry, model: str) -> Weight:
    if entry.format not in DTYPES and not entry.format.startswith("gguf:"):
        raise ModelError(
            f"{entry.name} of {model} is stored as {entry.format} without the scales of a method that is read "
            f"({READABLE}); {INSTEAD}"
        )
    return Weight(entry, {"": entry})


def _join(module: str, parts: dict[str, TensorEntry], method: Method, model: str) -> Weight:
    first = next(iter(parts.values()))
    try:
        if "codes" not in parts:
            raise ValueError("it belongs to no weight")
        encoding = method.choose(module, parts)
        if encoding is None:
            if len(parts) > 1:
                raise ValueError("it stands beside plain numbers")
            return _plain(first, model)
        if lacking := sorted(encoding.needs - set(parts)):
            ending = next(e for e, role in method.roles.items() if role == lacking[0])
            raise ValueError(f"it lacks {module}{ending}")
        shape = encoding.shape(parts)
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, re.error) as exc:
        raise ModelError(f"{first.name} of {model} cannot be read: {exc}; pull it again") from exc
    entry = TensorEntry(
        module + method.target, shape, encoding.name, sum(p.nbytes for p in parts.values()), first.digest
    )
    return Weight(entry, parts, encoding)


def _integers(name: str, parts: Mapping[str, TensorEntry], base: Integers) -> Integers:
    _typed(parts, codes=("I32",), scales=("F16", "BF16", "F32"), zeros=("I32",), order=("I32", "I64"))
    return replace(base, fine=parts["scales"].format in ("F16", "BF16")) if "scales" in parts else base


def _typed(parts: Mapping[str, TensorEntry], **kinds: tuple[str, ...]) -> None:
    for role, entry in parts.items():
        if role in kinds and entry.format not in kinds[role]:
            raise ValueError(f"{entry.name} is {entry.format}, expected {' or '.join(kinds[role])}")


_WORDS = {".qweight": "codes", ".qzeros": "zeros", ".scales": "scales", ".g_idx": "order"}


def _gptq(stated: Mapping[str, Any]) -> Method:
    bits, group = int(stated["bits"]), int(stated.get("group_size", 128))
    form = str(stated.get("checkpoint_format") or stated.get("format") or "gptq")
    if bits not in (2, 4, 8):
        raise ValueError(f"{bits} bits, expected 2, 4 or 8")
    if form not in ("gptq", "gptq_v2"):
        raise ValueError(f"checkpoint_format {form}, expected gptq or gptq_v2")
    own = stated.get("dynamic") or {}
    if any(not str(rule).startswith("-") for rule in own):
        raise ValueError("dynamic gives some layers other bits")
    ordered = bool(stated.get("desc_act")) and group > 0
    base = Integers(form, bits, max(0, group), bool(stated.get("sym", True)), ordered=ordered)
    return Method(_WORDS, lambda name, parts: _integers(name, parts, base))


def _awq(stated: Mapping[str, Any]) -> Method:
    bits = int(stated.get("bits", stated.get("w_bit", 4)))
    group = int(stated.get("group_size", stated.get("q_group_size", 128)))
    version = str(stated.get("version", "gemm")).lower()
    if bits != 4 or version != "gemm":
        raise ValueError(f"{bits} bits in the order of {version}, expected 4 in that of gemm")
    base = Integers("awq", bits, max(0, group), not stated.get("zero_point", True))
    return Method(_WORDS, lambda name, parts: _integers(name, parts, base))


def _gguf(config: Mapping[str, Any]) -> Method:
    """GGUFs, of whose formats NVFP4 alone takes a second tensor."""

    def choose(module: str, parts: Mapping[str, TensorEntry]) -> Encoding | None:
        codes = parts["codes"]
        if codes.format != "gguf:NVFP4":
            return None
        if "scales" not in parts:
            return None
        lies = layout(codes.name, codes.shape, config)
        if not lies.packed_safe or lies.columns is not None:
            raise ValueError("its matrix lies the other way")
        return ScaledBlocks(lies.rows)

    return Method({SCALE: "scales", ".weight": "codes"}, choose)


_F8 = ("F8_E4M3", "F8_E5M2")


def _fp8(stated: Mapping[str, Any]) -> Method:
    block = stated.get("weight_block_size")
    tile = (0, 0) if block is None else (int(block[0]), int(block[1]))
    if block is not None and (len(block) != 2 or min(tile) < 1):
        raise ValueError(f"weight_block_size {block}")
    return Method({".weight_scale_inv": "scales", ".weight": "codes"}, _floats("fp8", tile))


def _fbgemm(stated: Mapping[str, Any]) -> Method:
    return Method({".weight_scale": "scales", ".weight": "codes"}, _floats("fbgemm", (1, 0)))


def _floats(method: str, tile: tuple[int, int]) -> Choose:
    def choose(module: str, parts: Mapping[str, TensorEntry]) -> Encoding | None:
        return ScaledFloats(method, tile) if parts["codes"].format in _F8 else None

    return choose


def _mxfp4(stated: Mapping[str, Any]) -> Method:
    def choose(module: str, parts: Mapping[str, TensorEntry]) -> Encoding | None:
        _typed(parts, codes=("U8",), scales=("U8", "F8_E8M0"))
        return Float4("mxfp4", 32, stacked=True)

    return Method({"_blocks": "codes", "_scales": "scales"}, choose, target="")


def _modelopt(stated: Mapping[str, Any]) -> Method:
    algorithm = stated.get("quant_algo")
    if algorithm not in ("FP8", "NVFP4"):
        raise ValueError(f"quant_algo {algorithm}, expected FP8 or NVFP4")
    roles = {".weight_scale_2": "whole", ".weight_scale": "scales", ".weight": "codes"}

    def choose(module: str, parts: Mapping[str, TensorEntry]) -> Encoding | None:
        if parts["codes"].format in _F8:
            return ScaledFloats("modelopt", (0, 0))
        if parts["codes"].format != "U8":
            return None
        _typed(parts, scales=("F8_E4M3",), whole=("F32",))
        return Float4("modelopt", 16, divided=False)

    return Method(roles, choose)


def _compressed(stated: Mapping[str, Any]) -> Method:
    return Method(COMPRESSED_ROLES, compressed_tensors(stated))


def _bitsandbytes(stated: Mapping[str, Any]) -> Method:
    return Method(BNB_ROLES, bitsandbytes(stated))


_METHODS: Mapping[str, Callable[[Mapping[str, Any]], Method]] = {
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm,
    "gptq": _gptq,
    "awq": _awq,
    "mxfp4": _mxfp4,
    "modelopt": _modelopt,
    "compressed-tensors": _compressed,
    "bitsandbytes": _bitsandbytes,
    "ggml": lambda stated: Method(GGML_ROLES, ggml_blocks),
}

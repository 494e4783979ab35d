"""The `quantization_config` of compressed-tensors: which group of settings a module has, and its encoding.

Source: compressed-tensors 0.20 (config/base.py, quantization/quant_config.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from swarm.model.quant.encoding import Encoding, StoredTensor
from swarm.model.quant.floats import Float4, ScaledFloats
from swarm.model.quant.integers import Integers

COMPRESSED_ROLES = {
    ".weight_packed": "codes",
    ".weight_global_scale": "whole",
    ".weight_scale": "scales",
    ".weight_zero_point": "zeros",
    ".weight_shape": "shape",
    ".weight_g_idx": "order",
    ".weight": "codes",
}
_FORMATS = (
    "pack-quantized", "int-quantized", "naive-quantized", "float-quantized", "nvfp4-pack-quantized",
    "mxfp4-pack-quantized", "mixed-precision", "dense",
)  # fmt: skip


def compressed_tensors(stated: Mapping[str, Any]) -> Callable[[str, Mapping[str, StoredTensor]], Encoding | None]:
    """Raises ValueError for what is not read."""
    if stated.get("transform_config"):
        raise ValueError("transform_config: its activations are to be rotated")
    sparsity = (stated.get("sparsity_config") or {}).get("format", "dense")
    if sparsity != "dense":
        raise ValueError(f"sparse weights as {sparsity}")
    groups = list(dict(stated.get("config_groups") or {}).values())
    for form in (stated.get("format", "dense"), *(g.get("format") for g in groups)):
        if form is not None and form not in _FORMATS:
            raise ValueError(f"format {form}, expected one of {', '.join(_FORMATS)}")

    def choose(module: str, parts: Mapping[str, StoredTensor]) -> Encoding | None:
        codes = parts["codes"]
        if codes.name.endswith(".weight") and codes.format not in ("I8", "F8_E4M3", "F8_E5M2"):
            return None
        group = _group_of(module, groups)
        return _encoding(dict(group.get("weights") or {}), parts)

    return choose


def _group_of(module: str, groups: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The group whose targets name the module, else the one for its class."""
    for group in groups:
        for target in map(str, group.get("targets") or ()):
            if target == module or (target.startswith("re:") and _pattern(target[3:], module)):
                return group
    classes = [g for g in groups if any(not str(t).startswith("re:") and "." not in str(t) for t in g["targets"])]
    if len(classes) != 1:
        raise ValueError(f"{len(classes)} config_groups are for it")
    return classes[0]


_REPEATED = re.compile(r"\)\s*[*+{?]")


def _pattern(pattern: str, module: str) -> bool:
    """Whether a pattern of a config names the module. Configs come from anywhere, and a pattern can be made to run for
    ever: few repeats, and none of a group. Raises ValueError for others."""
    repeats = sum(pattern.count(sign) for sign in "*+{")
    if len(pattern) > 200 or len(module) > 200 or repeats > 3 or _REPEATED.search(pattern):
        raise ValueError(f"the target re:{pattern[:40]} is too involved to follow")
    return re.match(pattern, module) is not None


def _encoding(weights: Mapping[str, Any], parts: Mapping[str, StoredTensor]) -> Encoding:
    bits, kind = int(weights.get("num_bits", 8)), str(weights.get("type", "int"))
    strategy, group = str(weights.get("strategy") or ""), int(weights.get("group_size") or 0)
    codes, scales = parts["codes"], parts.get("scales")
    if kind == "float" and codes.format in ("F8_E4M3", "F8_E5M2"):
        tile = {"tensor": (0, 0), "channel": (1, 0), "group": (1, group)}.get(strategy)
        if strategy == "block":
            height, width = weights["block_structure"]
            tile = (int(height), int(width))
        if tile is None or bits != 8:
            raise ValueError(f"{bits}-bit floats with a scale per {strategy}")
        return ScaledFloats("compressed-tensors", tile)
    if kind == "float" and codes.format == "U8" and bits == 4 and "zeros" not in parts:
        scale = {16: ("F8_E4M3",), 32: ("U8", "F8_E8M0")}.get(group, ())
        if not scale or (scales is not None and scales.format not in scale) or (group == 32 and "whole" in parts):
            found = "none" if scales is None else scales.format
            raise ValueError(f"4-bit floats in groups of {group} with scales of {found}")
        return Float4("compressed-tensors", group)
    if kind != "int" or strategy not in ("tensor", "channel", "group"):
        raise ValueError(f"{bits}-bit {kind} codes of {codes.format} with a scale per {strategy or 'nothing stated'}")
    if codes.format == "I8" and bits <= 8:
        bits, form = 8, "int"
    elif codes.format == "I32" and bits in (2, 4, 8):
        form = "packed"
    else:
        raise ValueError(f"{bits}-bit codes as {codes.format}")
    if scales is not None and scales.format not in ("F16", "BF16", "F32"):
        raise ValueError(f"scales of {scales.format}")
    fine = scales is not None and scales.format in ("F16", "BF16")
    ordered = str(weights.get("actorder") or "").lower() in ("group", "dynamic", "true")
    return Integers(
        form, bits, group if strategy == "group" else 0, bool(weights.get("symmetric", True)), fine, ordered
    )

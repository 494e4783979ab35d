"""Folders of quantised checkpoints, packed here in plain numpy by what each method's own documentation says.

Each writer takes a matrix [out, in] and a generator, and gives the tensors that a file would have for it and the
numbers that they stand for, in float64.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

Array = NDArray[Any]
Stored = dict[str, torch.Tensor]
Writer = Callable[[Array, np.random.Generator], tuple[Stored, Array]]

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def words(codes: Array, bits: int) -> torch.Tensor:
    """Codes [rows, n] in int32 words along the rows, lowest bits first."""
    rows, width = codes.shape
    per = 32 // bits
    out = np.zeros((rows, -(-width // per)), np.uint32)
    for i in range(width):
        out[:, i // per] |= codes[:, i].astype(np.uint32) << np.uint32(bits * (i % per))
    return torch.from_numpy(out.view(np.int32).copy())


def integers(w: Array, bits: int, group: int, rng: np.random.Generator, sym: bool, dtype: torch.dtype) -> Any:
    """Codes, zero points and scales per group of columns (0: all), the scales rounded to `dtype`."""
    out, width = w.shape
    part = w.reshape(out, -1, group or width)
    top = 2**bits - 1
    if sym:
        scale = np.abs(part).max(2) / (2 ** (bits - 1) - 1)
        zero = np.full(scale.shape, 2 ** (bits - 1))
    else:
        low, high = np.minimum(part.min(2), 0), np.maximum(part.max(2), 0)
        scale = (high - low) / top
        zero = np.clip(np.round(-low / np.where(scale == 0, 1.0, scale)), 1, top).astype(int)
    scale = torch.from_numpy(np.where(scale == 0, 1.0, scale)).to(dtype)
    s = scale.double().numpy()
    codes = np.clip(np.round(part / s[:, :, None]) + zero[:, :, None], 0, top).astype(int)
    values = (codes - zero[:, :, None]) * s[:, :, None]
    return codes.reshape(out, width), zero, scale, values.reshape(out, width)


def gptq(bits: int = 4, group: int = 32, sym: bool = True, desc_act: bool = False, v2: bool = False) -> Writer:
    def write(w: Array, rng: np.random.Generator) -> tuple[Stored, Array]:
        order = rng.permutation(w.shape[1]) if desc_act else np.arange(w.shape[1])
        codes, zero, scale, values = integers(w[:, order], bits, group, rng, sym, torch.float16)
        back = np.argsort(order)
        stored_zero = zero if v2 else (zero - 1) & (2**bits - 1)
        index = (np.arange(w.shape[1]) // (group or w.shape[1]))[back]
        return {
            "qweight": words(codes[:, back], bits).T.contiguous(),
            "qzeros": words(stored_zero.T, bits),
            "scales": scale.T.contiguous(),
            "g_idx": torch.from_numpy(index.astype(np.int32)),
        }, values[:, back]

    return write


def awq(group: int = 32) -> Writer:
    def write(w: Array, rng: np.random.Generator) -> tuple[Stored, Array]:
        codes, zero, scale, values = integers(w, 4, group, rng, False, torch.float16)
        place = [8 * (i // 8) + (0, 2, 4, 6, 1, 3, 5, 7)[i % 8] for i in range(len(w))]  # nibble i holds this output
        return {
            "qweight": words(codes.T[:, place], 4),
            "qzeros": words(zero.T[:, place], 4),
            "scales": scale.T.contiguous(),
        }, values

    return write


def packed(bits: int = 4, group: int = 32, sym: bool = True, dtype: torch.dtype = torch.bfloat16) -> Writer:
    def write(w: Array, rng: np.random.Generator) -> tuple[Stored, Array]:
        codes, zero, scale, values = integers(w, bits, group, rng, sym, dtype)
        stored = {
            "weight_packed": words(codes, bits),
            "weight_scale": scale,
            "weight_shape": torch.tensor(w.shape),
        }
        if not sym:
            stored["weight_zero_point"] = words(zero.T, bits).T.contiguous()
        return stored, values

    return write


def int8(group: int = 0, sym: bool = True) -> Writer:
    def write(w: Array, rng: np.random.Generator) -> tuple[Stored, Array]:
        codes, zero, scale, values = integers(w, 8, group, rng, sym, torch.bfloat16)
        stored = {"weight": torch.from_numpy((codes - 128).astype(np.int8)), "weight_scale": scale}
        if not sym:
            stored["weight_zero_point"] = torch.from_numpy((zero - 128).astype(np.int8))
        return stored, values

    return write


def fp8(rows: int, columns: int, name: str, dtype: torch.dtype = torch.float32) -> Writer:
    """RowTiles of rows x columns with a scale; 0 for all of them."""

    def write(w: Array, rng: np.random.Generator) -> tuple[Stored, Array]:
        height, width = rows or w.shape[0], columns or w.shape[1]
        scales = np.zeros((-(-w.shape[0] // height), -(-w.shape[1] // width)))
        for i, j in np.ndindex(*scales.shape):
            scales[i, j] = np.abs(w[i * height : (i + 1) * height, j * width : (j + 1) * width]).max() / 448
        stored_scales = torch.from_numpy(scales).to(dtype)
        each = np.kron(stored_scales.double().numpy(), np.ones((height, width)))[: w.shape[0], : w.shape[1]]
        codes = torch.from_numpy(w / each).to(torch.float8_e4m3fn)
        return {
            "weight": codes,
            name: stored_scales.reshape(1) if not rows else stored_scales,
        }, codes.double().numpy() * each

    return write


def nibbles(w: Array) -> Array:
    """The nearest e2m1 code of each number."""
    return np.abs(w[..., None] - E2M1).argmin(-1)


def low_first(codes: Array) -> torch.Tensor:
    return torch.from_numpy((codes[..., ::2] | (codes[..., 1::2] << 4)).astype(np.uint8))


def mxfp4(w: Array, rng: np.random.Generator) -> tuple[Stored, Array]:
    part = w.reshape(len(w), -1, 32)
    exponent = np.floor(np.log2(np.abs(part).max(2))).astype(int) - 2
    codes = nibbles(part / 2.0 ** exponent[..., None])
    values = E2M1[codes] * 2.0 ** exponent[..., None]
    return {
        "weight_packed": low_first(codes.reshape(w.shape)),
        "weight_scale": torch.from_numpy((exponent + 127).astype(np.uint8)),
    }, values.reshape(w.shape)


def nvfp4(modelopt: bool = False) -> Writer:
    def write(w: Array, rng: np.random.Generator) -> tuple[Stored, Array]:
        part = w.reshape(len(w), -1, 16)
        whole = np.float32(448 * 6 / np.abs(w).max())
        if modelopt:
            whole = np.float32(1 / whole)
        wide = 1 / float(whole) if modelopt else float(whole)
        scale = torch.from_numpy(np.abs(part).max(2) / 6 * wide).to(torch.float8_e4m3fn)
        each = scale.double().numpy()[..., None] / wide
        codes = nibbles(part / each)
        names = ("weight", "weight_scale_2") if modelopt else ("weight_packed", "weight_global_scale")
        return {
            names[0]: low_first(codes.reshape(w.shape)),
            "weight_scale": scale,
            names[1]: torch.tensor(whole if modelopt else [whole]),
        }, (E2M1[codes] * each).reshape(w.shape)

    return write


def bnb8(w: Array, rng: np.random.Generator) -> tuple[Stored, Array]:
    largest = torch.from_numpy(np.abs(w).max(1)).float()
    codes = np.round(w / largest.double().numpy()[:, None] * 127).astype(np.int8)
    return {
        "weight": torch.from_numpy(codes),
        "SCB": largest,
        "weight_format": torch.tensor(0, dtype=torch.uint8),
    }, codes * (largest.double().numpy() / 127)[:, None]


def bnb4(double: bool = True) -> Writer:
    table = np.sort(np.concatenate((-np.geomspace(0.08, 1, 7), [0], np.geomspace(0.08, 1, 8)))).astype(np.float32)

    def write(w: Array, rng: np.random.Generator) -> tuple[Stored, Array]:
        flat = w.reshape(-1, 64)
        largest = np.abs(flat).max(1).astype(np.float32)
        state: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": list(w.shape)}
        stored: Stored = {"weight.quant_map": torch.tensor(table)}
        if double:
            second = np.linspace(-1, 1, 256).astype(np.float32)
            offset = float(largest.mean())
            nested = np.array(
                [np.abs(largest[i : i + 256] - offset).max() for i in range(0, len(largest), 256)], np.float32
            )
            each = np.repeat(nested, 256)[: len(largest)]
            rounded = np.abs(((largest - offset) / each)[:, None] - second).argmin(1)
            stored["weight.absmax"] = torch.from_numpy(rounded.astype(np.uint8))
            stored["weight.nested_absmax"] = torch.from_numpy(nested)
            stored["weight.nested_quant_map"] = torch.tensor(second)
            state |= {"nested_blocksize": 256, "nested_offset": offset, "nested_dtype": "float32"}
            largest = second[rounded].astype(np.float64) * each + offset  # type: ignore[assignment]
        else:
            stored["weight.absmax"] = torch.from_numpy(largest)
        codes = np.abs(flat[..., None] / largest[:, None, None] - table).argmin(-1)
        pairs = codes.reshape(-1, 2)
        stored["weight"] = torch.from_numpy((pairs[:, :1] << 4 | pairs[:, 1:]).astype(np.uint8))
        blob = json.dumps(state).encode()
        stored["weight.quant_state.bitsandbytes__nf4"] = torch.frombuffer(bytearray(blob), dtype=torch.uint8)
        return stored, (table[codes].astype(np.float64) * np.asarray(largest, np.float64)[:, None]).reshape(w.shape)

    return write


def save_encoded(
    folder: Path,
    model: Any,
    write: Writer,
    stated: Mapping[str, Any],
    change: Callable[[Stored], None] = lambda tensors: None,
) -> Any:
    """Save the model with its layers' matrices packed by `write`, and give it the numbers that they stand for. stated:
    its quantization_config."""
    rng = np.random.default_rng(1)
    tensors: Stored = {}
    state = model.state_dict()
    for name, weight in state.items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if ".layers." not in name or weight.dim() != 2:
            tensors[name] = weight.contiguous()
            continue
        stored, values = write(weight.double().numpy(), rng)
        weight.copy_(torch.from_numpy(values))
        module = name.removesuffix(".weight")
        tensors |= {f"{module}.{key}": value.contiguous() for key, value in stored.items()}
    change(tensors)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {**model.config.to_dict(), "quantization_config": dict(stated)}
    (folder / "config.json").write_text(json.dumps(config))
    return model

"""Rounding a matrix to Q4_K, which the `gguf` package can read and not write.

A block is 256 columns in eight parts of 32. Part j is d * s_j * code - dmin * m_j, with codes of 4 bits, s_j and m_j of
6 and d, dmin binary16. Scale and minimum of a part are searched as llama.cpp does (`make_qkx2_quants` in
https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c): for each of 21 scales around the plain one, round, then
take the scale and minimum that fit those codes best in least squares, weighting large numbers more.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK, PART, TOP = 256, 32, 15
_STEPS, _DELTA, _FIRST = 20, 0.1, -1.0

Floats = NDArray[np.float32]


def quantize_q4_k(values: Floats) -> NDArray[np.uint8]:
    """float32 [rows, columns] to blocks, uint8 [rows, columns / 256 * 144]. Columns must divide by 256."""
    rows, columns = values.shape
    if columns % BLOCK:
        raise ValueError(f"{columns} columns do not divide into blocks of {BLOCK}")
    x = values.reshape(-1, BLOCK // PART, PART).astype(np.float32)
    scale, least = _fit(x)
    d = (scale.max(1) / 63).astype(np.float16)
    dmin = (least.max(1) / 63).astype(np.float16)
    s = _level(scale, d.astype(np.float32)[:, None], 63)
    m = _level(least, dmin.astype(np.float32)[:, None], 63)
    each = (d.astype(np.float32)[:, None] * s)[..., None]
    moved = x + (dmin.astype(np.float32)[:, None] * m)[..., None]
    codes = _level(moved, each, TOP)
    out = np.empty((len(x), 144), np.uint8)
    out[:, 0:2] = d.view(np.uint8).reshape(-1, 2)
    out[:, 2:4] = dmin.view(np.uint8).reshape(-1, 2)
    out[:, 4:8] = s[:, :4] | ((s[:, 4:] >> 4) << 6)
    out[:, 8:12] = m[:, :4] | ((m[:, 4:] >> 4) << 6)
    out[:, 12:16] = (s[:, 4:] & 15) | ((m[:, 4:] & 15) << 4)
    pairs = codes.reshape(-1, 4, 2, PART)
    out[:, 16:] = (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(-1, 128)
    return out.reshape(rows, -1)


def _level(values: Floats, step: Floats, top: int) -> NDArray[np.uint8]:
    """values / step to the nearest whole number in [0, top]; 0 where there is no step."""
    safe = np.where(step == 0, np.float32(1), step)
    return np.where(step == 0, 0, np.clip(np.rint(values / safe), 0, top)).astype(np.uint8)


def _fit(x: Floats) -> tuple[Floats, Floats]:
    """Scale and (positive) minimum of each part [blocks, parts, 32]."""
    weight = np.sqrt((x * x).mean(2, keepdims=True)) + np.abs(x)
    low = np.minimum(x.min(2, keepdims=True), 0)
    high = x.max(2, keepdims=True)
    span = np.where(high > low, high - low, 1).astype(np.float32)
    scale, least = span / TOP, low
    codes = np.clip(np.rint((x - low) / scale), 0, TOP)
    best = (weight * (scale * codes + low - x) ** 2).sum(2, keepdims=True)
    sum_w, sum_x = weight.sum(2, keepdims=True), (weight * x).sum(2, keepdims=True)
    for step in range(_STEPS + 1):
        tried = np.clip(np.rint((x - low) * (_FIRST + _DELTA * step + TOP) / span), 0, TOP)
        sum_l, sum_l2 = (weight * tried).sum(2, keepdims=True), (weight * tried * tried).sum(2, keepdims=True)
        sum_xl = (weight * x * tried).sum(2, keepdims=True)
        det = sum_w * sum_l2 - sum_l * sum_l
        good = det > 0
        safe = np.where(good, det, 1)
        a, b = (sum_w * sum_xl - sum_x * sum_l) / safe, (sum_l2 * sum_x - sum_l * sum_xl) / safe
        above = b > 0  # then no minimum: the scale alone
        a = np.where(above, sum_xl / np.where(sum_l2 > 0, sum_l2, 1), a)
        b = np.where(above, 0, b)
        error = (weight * (a * tried + b - x) ** 2).sum(2, keepdims=True)
        better = good & (error < best) & (a > 0)
        best, scale, least = np.where(better, error, best), np.where(better, a, scale), np.where(better, b, least)
    flat = high <= low
    return np.where(flat, 0, scale)[..., 0].astype(np.float32), -least[..., 0].astype(np.float32)

"""The one definition of quantized arithmetic. The interpreter, QAT's forward and the native integers agree with it bit for bit.

    t = x * multiplier                       float32, multiplier = float32(1 / scale)
    q = rint(clip(t, -zero_point, 255 - zero_point)) + zero_point          ties to even; NaN becomes 0
    a = init + sum_k (q_k - zero_point) * w_k                              int32, exact
    y = float32(float32(a) * scale) + bias                                 two roundings: no fused multiply-add

Only operations that x86, ARM and wasm round alike are used, so all of them give the same bits.
"""

from __future__ import annotations

import numpy as np

U8_MAX = 255
S8_MAX = 127
EXACT = (1 << 24) // (U8_MAX * 128)


def quantize(x: np.ndarray, multiplier: np.ndarray, zero_point: int) -> np.ndarray:
    """float32 (..., K), multiplier () or (K,) -> uint8 (..., K)."""
    low, high = np.float32(-zero_point), np.float32(U8_MAX - zero_point)
    t = x.astype(np.float32, copy=False) * np.asarray(multiplier, np.float32)
    t = np.where(t > low, t, low)  # NaN compares false and becomes low
    t = np.where(t < high, t, high)
    return (np.rint(t).astype(np.int32) + zero_point).astype(np.uint8)


def dot(q: np.ndarray, weight: np.ndarray, zero_point: int, init: np.ndarray | None = None) -> np.ndarray:
    """uint8 (..., K), int8 (N, K)[, int32 (..., N)] -> int32 (..., N), exact.

    BLAS does the work in float32: integers below 2**24 add up exactly there in any order, and a block of EXACT columns stays below.
    Over all blocks |sum| stays below 2**31 for K < 66,000.
    """
    x = q.astype(np.float32) - np.float32(zero_point)
    w = weight.astype(np.float32).T
    acc = np.zeros((*q.shape[:-1], len(weight)), np.int32)
    for start in range(0, q.shape[-1], EXACT):
        acc += (x[..., start : start + EXACT] @ w[start : start + EXACT]).astype(np.int32)
    return acc if init is None else acc + init


def rescale(acc: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """int32 (..., N), float32 (N,), float32 (N,) -> float32 (..., N)."""
    return acc.astype(np.float32) * scale.astype(np.float32, copy=False) + bias.astype(np.float32, copy=False)


def quantize_rows(weight: np.ndarray, limit: int = S8_MAX, row_max: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """float32 (N, K)[, the largest magnitude to represent (N,)] -> int8 (N, K) in [-limit, limit], float32 scale (N,).

    Symmetric, one scale a row (an output channel of a linear, a row of a table). A row of zeros has scale 1; a scale is never denormal, so
    hardware that flushes those to zero agrees.
    """
    top = np.abs(weight).max(axis=1) if row_max is None else row_max
    scale = np.where(top > 0, np.maximum(top / limit, np.finfo(np.float32).tiny), 1.0).astype(np.float32)
    q = np.rint(weight / scale[:, None])
    return np.clip(q, -limit, limit).astype(np.int8), scale

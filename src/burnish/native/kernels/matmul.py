"""MATMUL: products within a row (interactions, attention). Vectors run along the last axis, sums along the shared one in order."""

from __future__ import annotations

import math

from burnish.errors import BuildError
from burnish.native.code import Code
from burnish.native.plan import Step

TEMPLATE = r"""
template <int R, int NV, int K, int N, int TAIL> INL void matmul_tile(const float *a, const float *b, float *y) {
  F acc[R][NV] = {};
  ROLLED
  for (int k = 0; k < K; k++) UNROLL
  for (int j = 0; j < NV; j++) {
    F v = load(b + (i64)k * N + j * LANES);
    UNROLL
    for (int i = 0; i < R; i++) acc[i][j] = muladd(splat(a[i * K + k]), v, acc[i][j]);
  }
  UNROLL
  for (int i = 0; i < R; i++) UNROLL
  for (int j = 0; j < NV; j++) put(y + (i64)i * N + j * LANES, acc[i][j], j == NV - 1 ? TAIL : LANES);
}
template <int M, int K, int N, int NV, int TAIL> INL void matmul_columns(const float *a, const float *b, float *y) {
  constexpr int R = LANES == 16 ? 6 : 4;
  int i = 0;
  ROLLED
  for (; i + R <= M; i += R) matmul_tile<R, NV, K, N, TAIL>(a + i * K, b, y + (i64)i * N);
  if constexpr (M % R != 0) matmul_tile<M % R, NV, K, N, TAIL>(a + i * K, b, y + (i64)i * N);
}
template <int M, int K, int N> INL void matmul_row(const float *a, const float *b, float *y) {
  if constexpr (N == 1) {
    for (int i = 0; i < M; i++) y[i] = dot_few<K>(a + i * K, b);
  } else {
    constexpr int NV = LANES == 16 ? 4 : 2, ALL = (N + LANES - 1) / LANES, REST = ALL % NV, LAST = N - (ALL - 1) * LANES;
    constexpr int WHOLE = REST || LAST == LANES ? ALL / NV : ALL / NV - 1;
    ROLLED
    for (int j = 0; j < WHOLE; j++) matmul_columns<M, K, N, NV, LANES>(a, b + j * NV * LANES, y + j * NV * LANES);
    constexpr int DONE = WHOLE * NV * LANES, LEFT = ALL - WHOLE * NV;
    if constexpr (LEFT != 0) matmul_columns<M, K, N, LEFT, LAST>(a, b + DONE, y + DONE);
  }
}
"""


def check(step: Step) -> None:
    node = step.head
    assert node is not None
    if node.dtype != "float32" or any(v.dtype != "float32" for v in node.inputs):
        raise BuildError(f"the native backend has no MATMUL of {node.dtype}: {node!r}. Cast its operands to float32")


def emit(code: Code, step: Step) -> None:
    node = step.head
    assert node is not None
    a, b = node.inputs
    m, k, n = node.shape[-2], a.shape[-1], node.shape[-1]
    ra, rb, ry = code.read(a), code.read(b), code.write(node)
    lead = node.shape[:-2]
    with code.block("for (i64 m = 0; m < M; m++)"):
        depth, at_a, at_b, at_y = code.depth, "", "", ""
        for axis, count in enumerate(lead):
            code.add(f"for (int i{axis} = 0; i{axis} < {count}; i{axis}++) {{")
            code.depth += 1
            at_y += f" + i{axis} * {math.prod(node.shape[axis + 1 :])}"
            at_a += _offset(a.shape, len(lead), axis)
            at_b += _offset(b.shape, len(lead), axis)
        code.add(f"matmul_row<{m}, {k}, {n}>({ra.row()}{at_a}, {rb.row()}{at_b}, {ry.row()}{at_y});")
        while code.depth > depth:
            code.depth -= 1
            code.add("}")


def _offset(shape: tuple[int, ...], rank: int, axis: int) -> str:
    own = axis - (rank - (len(shape) - 2))
    return f" + i{axis} * {math.prod(shape[own + 1 :])}" if own >= 0 and shape[own] > 1 else ""

"""MATMUL: products within a row (interactions, attention).

Vectors run along the last axis, sums along the shared one in order. Where the second operand is a transpose, both run along the shared
axis: it is never transposed, its rows are multiplied as they lie, and a value times its own transpose is computed by half.
"""

from __future__ import annotations

import math

from burnish.errors import BuildError
from burnish.graph.node import Graph, Node
from burnish.graph.ops import Op
from burnish.native.code import Code
from burnish.native.plan import Step, absorbed

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
// Sums of the lanes of LANES vectors, in order: halves are folded together, two vectors into one, until each sum is one lane
template <int W> INL F fold(F a, F b) { // a and b hold runs of 2 * W lanes to be folded into W
  typename vector<int32_t, LANES>::type low, high;
  UNROLL
  for (int i = 0; i < LANES / 2; i++) {
    low[i] = i / W * 2 * W + i % W;
    high[i] = low[i] + W;
    low[i + LANES / 2] = low[i] + LANES;
    high[i + LANES / 2] = high[i] + LANES;
  }
#ifdef __clang__
  F x, y;
  UNROLL
  for (int i = 0; i < LANES; i++) {
    x[i] = low[i] < LANES ? a[low[i] % LANES] : b[low[i] % LANES];
    y[i] = high[i] < LANES ? a[high[i] % LANES] : b[high[i] % LANES];
  }
  return x + y;
#else
  return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
#endif
}
INL F sums_of(F *v) {
  UNROLL
  for (int i = 0; i < LANES / 2; i++) v[i] = fold<LANES / 2>(v[2 * i], v[2 * i + 1]);
  if constexpr (LANES == 16) {
    UNROLL
    for (int i = 0; i < 4; i++) v[i] = fold<4>(v[2 * i], v[2 * i + 1]);
    UNROLL
    for (int i = 0; i < 2; i++) v[i] = fold<2>(v[2 * i], v[2 * i + 1]);
  } else if constexpr (LANES == 8) {
    UNROLL
    for (int i = 0; i < 2; i++) v[i] = fold<2>(v[2 * i], v[2 * i + 1]);
  }
  return fold<1>(v[0], v[1]);
}
// Dot products of R rows of a with S rows of b, all K wide, N from row to row of y; MIRROR: also at the transposed place
template <int R, int S, int K, int N, bool MIRROR> INL void dots_tile(const float *a, const float *b, float *y, float *mirrored) {
  F acc[R * S] = {};
  constexpr int WHOLE = K / LANES * LANES;
  ROLLED
  for (int k = 0; k < WHOLE; k += LANES) {
    F v[S];
    UNROLL
    for (int j = 0; j < S; j++) v[j] = load(b + j * K + k);
    UNROLL
    for (int i = 0; i < R; i++) {
      F u = load(a + i * K + k);
      UNROLL
      for (int j = 0; j < S; j++) acc[i * S + j] = muladd(u, v[j], acc[i * S + j]);
    }
  }
  if constexpr (WHOLE != K) {
    UNROLL
    for (int i = 0; i < R; i++) UNROLL
    for (int j = 0; j < S; j++)
      acc[i * S + j] = muladd(load_some(a + i * K + WHOLE, K - WHOLE), load_some(b + j * K + WHOLE, K - WHOLE), acc[i * S + j]);
  }
  float sums[R * S];
  constexpr int FOLDED = R * S / LANES * LANES;
  UNROLL
  for (int i = 0; i < FOLDED; i += LANES) store(sums + i, sums_of(acc + i));
  UNROLL
  for (int i = FOLDED; i < R * S; i++) sums[i] = sum_of(acc[i]);
  UNROLL
  for (int i = 0; i < R; i++) {
    memcpy(y + i * N, sums + i * S, S * sizeof(float));
    if constexpr (MIRROR) UNROLL
    for (int j = 0; j < S; j++) mirrored[j * N + i] = sums[i * S + j];
  }
}
template <int M, int K, int N, int S, bool MIRROR> INL void dots_rows(const float *a, const float *b, float *y, int i, int j) {
  ROLLED
  for (; i + 4 <= M; i += 4) dots_tile<4, S, K, N, MIRROR>(a + i * K, b + j * K, y + i * N + j, y + j * N + i);
  if constexpr (M % 4 != 0) dots_tile<M % 4, S, K, N, MIRROR>(a + i * K, b + j * K, y + i * N + j, y + j * N + i);
}
// a (M, K) times b (N, K) transposed; SAME: a is b, so half of the products is enough, and `MIRROR` writes the other half
template <int M, int K, int N, bool SAME, bool MIRROR> INL void dots_row(const float *a, const float *b, float *y) {
  ROLLED
  for (int j = 0; j + 4 <= N; j += 4) dots_rows<M, K, N, 4, MIRROR>(a, b, y, SAME ? j : 0, j);
  if constexpr (N % 4 != 0) dots_rows<M, K, N, N % 4, MIRROR>(a, b, y, SAME ? N / 4 * 4 : 0, N / 4 * 4);
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
    swapped = b in absorbed(code.plan.graph)
    if swapped:
        (b,) = b.inputs
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
        halves = "true, false" if a is b and reads_below(code.plan.graph, node) else "true, true" if a is b else "false, false"
        kernel = f"dots_row<{m}, {k}, {n}, {halves}>" if swapped else f"matmul_row<{m}, {k}, {n}>"
        code.add(f"{kernel}({ra.row()}{at_a}, {rb.row()}{at_b}, {ry.row()}{at_y});")
        while code.depth > depth:
            code.depth -= 1
            code.add("}")


def reads_below(graph: Graph, node: Node) -> bool:
    """Whether all that is read of a square product is a TAKE of places on or below its diagonal, as in DLRM."""
    users, outputs, n = graph.users(), {value for _, value in graph.outputs}, node.shape[-1]
    flat = users[node]
    if len(node.shape) != 2 or {node, *flat} & outputs or not all(v.op is Op.RESHAPE and len(v.shape) == 1 for v in flat):
        return False
    takes = [take for v in flat for take in users[v]]
    return all(take.op is Op.TAKE and all(i // n >= i % n for i in take["indices"]) for take in takes)


def _offset(shape: tuple[int, ...], rank: int, axis: int) -> str:
    own = axis - (rank - (len(shape) - 2))
    return f" + i{axis} * {math.prod(shape[own + 1 :])}" if own >= 0 and shape[own] > 1 else ""

"""What runs along axes of a row: sums, means, extremes, products, softmax, layer norm, arg max, arg sort, running sums and products.

A row is seen as (outer, n, inner), n being the axes in question; vectors run along `inner` when there is one, else along n itself. Sums
have a fixed order: the same bits in any company.
"""

from __future__ import annotations

import math
from contextlib import ExitStack

from burnish.errors import BuildError
from burnish.graph.node import Node
from burnish.graph.ops import Op
from burnish.native.code import Code, Ref
from burnish.native.plan import Step, ctype

TEMPLATE = r"""
enum { SUM_OF, MEAN_OF, MAX_OF, MIN_OF, PROD_OF };
template <int KIND, class X> INL X both(X a, X b) { // NaN wins in extremes
  if constexpr (KIND == MAX_OF)
    return ((b > a) | (b != b)) ? b : a;
  else if constexpr (KIND == MIN_OF)
    return ((b < a) | (b != b)) ? b : a;
  else if constexpr (KIND == PROD_OF)
    return a * b;
  else
    return a + b;
}
template <int N> INL F first_lanes(F v, float fill) { // the lanes behind the first N hold `fill`
  if constexpr (N >= LANES) return v;
  I kept;
  UNROLL
  for (int i = 0; i < LANES; i++) kept[i] = i < N ? -1 : 0;
  return kept ? v : F{} + fill;
}
// lanes in a fixed order: halves are folded together
template <int KIND, int W = LANES> INL float across(typename vector<float, W>::type v) {
  if constexpr (W == 4) {
    return both<KIND>(both<KIND>((float)v[0], (float)v[2]), both<KIND>((float)v[1], (float)v[3]));
  } else {
    typename vector<float, W / 2>::type low, high;
    memcpy(&low, &v, sizeof low);
    memcpy(&high, (const char *)&v + sizeof low, sizeof high);
    return across<KIND, W / 2>(both<KIND>(low, high));
  }
}
template <int KIND> constexpr float NOTHING = KIND == MAX_OF ? -INFINITY : KIND == MIN_OF ? INFINITY : KIND == PROD_OF ? 1.f : 0.f;
template <int KIND, int OUTER, int N, int INNER> INL void reduce_row(const float *x, float *y) {
  for (int o = 0; o < OUTER; o++, x += N * INNER, y += INNER) {
    if constexpr (INNER == 1) {
      constexpr int WHOLE = N / LANES * LANES;
      float acc = x[0];
      if constexpr (WHOLE != 0) {
        F v = load(x);
        for (int i = LANES; i < WHOLE; i += LANES) v = both<KIND>(v, load(x + i));
        if constexpr (WHOLE != N) v = both<KIND>(v, first_lanes<N - WHOLE>(load(x + WHOLE), NOTHING<KIND>));
        acc = across<KIND>(v);
      } else {
        for (int i = 1; i < N; i++) acc = both<KIND>(acc, x[i]);
      }
      *y = KIND == MEAN_OF ? acc / (float)N : acc;
    } else {
      for (int c = 0; c < INNER; c += LANES) {
        F v = load(x + c);
        for (int i = 1; i < N; i++) v = both<KIND>(v, load(x + i * INNER + c));
        if constexpr (KIND == MEAN_OF) v = v / splat((float)N);
        put(y + c, v, INNER - c < LANES ? INNER - c : LANES);
      }
    }
  }
}
template <int KIND, int OUTER, int N, int INNER, class T> INL void reduce_row(const T *x, T *y) { // other types, value by value
  using A = typename choose<(T)0.5 != 0, double, i64>::type;
  for (int o = 0; o < OUTER; o++)
    for (int c = 0; c < INNER; c++) {
      A acc = x[o * N * INNER + c];
      for (int i = 1; i < N; i++) acc = both<KIND>(acc, (A)x[(o * N + i) * INNER + c]);
      y[o * INNER + c] = (T)(KIND == MEAN_OF ? acc / N : acc);
    }
}
// rows of a few vectors stay in registers
template <int OUTER, int N> INL void softmax_short(const float *x, float *y) {
  constexpr int NV = (N + LANES - 1) / LANES, TAIL = N - (NV - 1) * LANES;
  for (int o = 0; o < OUTER; o++, x += N, y += N) {
    F v[NV];
    UNROLL
    for (int i = 0; i < NV; i++) v[i] = load(x + i * LANES);
    F top = first_lanes<TAIL>(v[NV - 1], -INFINITY);
    UNROLL
    for (int i = 0; i < NV - 1; i++) top = both<MAX_OF>(top, v[i]);
    const F most = splat(across<MAX_OF>(top));
    v[NV - 1] = first_lanes<TAIL>(v[NV - 1], *x); // an exponent as any other: what lies behind may be anything, and slow
    UNROLL
    for (int i = 0; i < NV; i++) v[i] = v_exp(v[i] - most);
    v[NV - 1] = first_lanes<TAIL>(v[NV - 1], 0.f);
    F sum = v[0];
    UNROLL
    for (int i = 1; i < NV; i++) sum = sum + v[i];
    const F total = splat(across<SUM_OF>(sum));
    UNROLL
    for (int i = 0; i < NV; i++) put(y + i * LANES, v[i] / total, i == NV - 1 ? TAIL : LANES);
  }
}
template <int OUTER, int N, int INNER> INL void softmax_row(const float *x, float *y) {
  if constexpr (INNER == 1 && N <= 4 * LANES) {
    softmax_short<OUTER, N>(x, y);
    return;
  }
  for (int o = 0; o < OUTER; o++, x += N * INNER, y += N * INNER) {
    float top[(INNER + LANES - 1) / LANES * LANES], sum[(INNER + LANES - 1) / LANES * LANES];
    reduce_row<MAX_OF, 1, N, INNER>(x, top);
    if constexpr (INNER == 1) {
      for (int i = 0; i < N; i += LANES) put(y + i, v_exp(load(x + i) - splat(*top)), N - i < LANES ? N - i : LANES);
      reduce_row<SUM_OF, 1, N, 1>(y, sum);
      for (int i = 0; i < N; i += LANES) put(y + i, load(y + i) / splat(*sum), N - i < LANES ? N - i : LANES);
    } else {
      for (int i = 0; i < N; i++)
        for (int c = 0; c < INNER; c += LANES)
          put(y + i * INNER + c, v_exp(load(x + i * INNER + c) - load(top + c)), INNER - c < LANES ? INNER - c : LANES);
      reduce_row<SUM_OF, 1, N, INNER>(y, sum);
      for (int i = 0; i < N; i++)
        for (int c = 0; c < INNER; c += LANES)
          put(y + i * INNER + c, load(y + i * INNER + c) / load(sum + c), INNER - c < LANES ? INNER - c : LANES);
    }
  }
}
template <int OUTER, int N> INL void layernorm_row(const float *x, const float *gain, const float *bias, float eps, float *y) {
  for (int o = 0; o < OUTER; o++, x += N, y += N) {
    float mean[1], var[1];
    reduce_row<MEAN_OF, 1, N, 1>(x, mean);
    for (int i = 0; i < N; i += LANES) {
      F c = load(x + i) - splat(*mean);
      put(y + i, c * c, N - i < LANES ? N - i : LANES);
    }
    reduce_row<MEAN_OF, 1, N, 1>(y, var);
    const float spread = sqrtf(*var + eps);
    for (int i = 0; i < N; i += LANES)
      put(y + i, (load(x + i) - splat(*mean)) / splat(spread) * load(gain + i) + load(bias + i), N - i < LANES ? N - i : LANES);
  }
}
template <int OUTER, int N, int INNER, class T> INL void argmax_row(const T *x, i64 *y) {
  for (int o = 0; o < OUTER; o++)
    for (int c = 0; c < INNER; c++) {
      const T *at = x + o * N * INNER + c;
      int best = 0;
      for (int i = 1; i < N; i++)
        if (at[best * INNER] == at[best * INNER] && (at[i * INNER] > at[best * INNER] || at[i * INNER] != at[i * INNER])) best = i;
      y[o * INNER + c] = best;
    }
}
template <int OUTER, int N, int INNER, bool DESCENDING, class T>
INL void argsort_row(const T *x, i64 *y) { // stable; NaN counts as the largest
  for (int o = 0; o < OUTER; o++)
    for (int c = 0; c < INNER; c++) {
      const T *at = x + o * N * INNER + c;
      i64 *out = y + o * N * INNER + c;
      auto before = [&](T a, T b) {
        bool nan_a = a != a, nan_b = b != b;
        if (nan_a || nan_b) return DESCENDING ? nan_a && !nan_b : nan_b && !nan_a;
        return DESCENDING ? a > b : a < b;
      };
      for (int i = 0; i < N; i++) { // insertion: rows are short
        T v = at[i * INNER];
        int j = i;
        for (; j > 0 && before(v, at[out[(j - 1) * INNER] * INNER]); j--) out[j * INNER] = out[(j - 1) * INNER];
        out[j * INNER] = i;
      }
    }
}
template <bool PROD, int OUTER, int N, int INNER, class T> INL void running_row(const T *x, T *y) {
  for (int o = 0; o < OUTER; o++)
    for (int c = 0; c < INNER; c++) {
      i64 at = (i64)o * N * INNER + c;
      T acc = y[at] = x[at];
      for (int i = 1; i < N; i++) {
        at += INNER;
        acc = PROD ? acc * x[at] : acc + x[at];
        y[at] = acc;
      }
    }
}
"""


def check(step: Step) -> None:
    node = step.head
    assert node is not None
    if node.op in (Op.SOFTMAX, Op.LAYERNORM) and node.dtype != "float32":
        raise BuildError(f"the native backend has no {node.op.name} of {node.dtype}: {node!r}. Cast its operand to float32")


def split(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, int, int] | None:
    """(outer, n, inner) of a row reduced over `axes`; None when they are not adjacent, axes of 1 left aside."""
    wide = sorted(a for a in axes if shape[a] > 1)
    if not wide:
        return math.prod(shape), 1, 1
    between = [a for a in range(wide[0], wide[-1] + 1) if shape[a] > 1]
    if between != wide:
        return None
    return math.prod(shape[: wide[0]]), math.prod(shape[a] for a in wide), math.prod(shape[wide[-1] + 1 :])


AXES = (Op.SUM, Op.MEAN, Op.MAX, Op.MIN, Op.PROD)


def emit(code: Code, step: Step) -> None:
    node = step.head
    assert node is not None
    value = node.inputs[0]
    x, y = code.read(value), code.write(node)
    if node.op is Op.LAYERNORM:
        n = math.prod(node.inputs[1].shape)
        gain, bias = code.read(node.inputs[1]), code.read(node.inputs[2])
        call = (
            f"layernorm_row<{math.prod(value.shape) // n}, {n}>({x.row()}, {gain.row()}, {bias.row()}, {float(node['eps'])!r}f, {y.row()})"
        )
    else:
        axes = node["axes"] if node.op in AXES else (node["axis"],)
        cut = split(value.shape, axes)
        if cut is None:
            _scattered(code, node, x, y)
            return
        o, n, i = cut
        match node.op:
            case Op.SOFTMAX:
                call = f"softmax_row<{o}, {n}, {i}>"
            case Op.ARGMAX:
                call = f"argmax_row<{o}, {n}, {i}>"
            case Op.ARGSORT:
                call = f"argsort_row<{o}, {n}, {i}, {'true' if node['descending'] else 'false'}>"
            case Op.CUMSUM | Op.CUMPROD:
                call = f"running_row<{'true' if node.op is Op.CUMPROD else 'false'}, {o}, {n}, {i}>"
            case op:
                kind = "bool" if node.dtype == "bool" else ctype(value)
                call = f"reduce_row<{op.name}_OF, {o}, {n}, {i}>"
                if kind == "bool":
                    call = f"reduce_row<{'MIN_OF' if op in (Op.PROD, Op.MIN) else 'MAX_OF'}, {o}, {n}, {i}>"
        call += f"({x.row()}, {y.row()})"
    code.add(f"for (i64 m = 0; m < M; m++) {call};")


def _scattered(code: Code, node: Node, x: Ref, y: Ref) -> None:
    """A reduction over axes that are not adjacent, value by value."""
    shape, kind = node.inputs[0].shape, ctype(node)
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    kept = [i for i in range(len(shape)) if i not in node["axes"]]
    gone = [i for i in range(len(shape)) if i in node["axes"]]
    op = node.op
    if node.dtype == "bool":
        op = Op.MIN if op in (Op.PROD, Op.MIN) else Op.MAX
    first = {Op.SUM: "0", Op.MEAN: "0", Op.PROD: "1"}.get(op, "*at")
    out = " + ".join(f"i{a} * {math.prod(shape[b] for b in kept if b > a)}" for a in kept) or "0"
    with ExitStack() as loops:
        loops.enter_context(code.block("for (i64 m = 0; m < M; m++)"))
        for a in kept:
            loops.enter_context(code.block(f"for (i64 i{a} = 0; i{a} < {shape[a]}; i{a}++)"))
        code.add(f"const {kind} *at = {x.row()}{''.join(f' + i{a} * {strides[a]}' for a in kept)};")
        code.add(f"{kind} acc = {first};")
        with ExitStack() as inner:
            for a in gone:
                inner.enter_context(code.block(f"for (i64 i{a} = 0; i{a} < {shape[a]}; i{a}++)"))
            code.add(f"acc = both<{op.name}_OF, {kind}>(acc, at[{' + '.join(f'i{a} * {strides[a]}' for a in gone)}]);")
        mean = f" / {math.prod(shape[a] for a in gone)}" if op is Op.MEAN else ""
        code.add(f"({y.row()})[{out}] = acc{mean};")

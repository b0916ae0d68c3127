"""INPUT: a block of the caller's rows, copied into the arena, ids compared with the bounds that the input declares."""

from __future__ import annotations

from burnish.native.code import Code
from burnish.native.plan import Step, ctype, size

TEMPLATE = r"""
// `columns`: null, or where in the caller's row each of the half's columns of INNER values lies. `bounds`: the lowest value of each
// column, then the highest of each, as inputs.check_array has them.
template <class T, int COLUMNS, int INNER, bool BOUNDED>
INL void read_input(ranker &r, int half, i64 M, const T *bounds, T *y, i64 stride) {
  const ranker::Half &h = r.half[half];
  const T *x = (const T *)h.rows;
  for (i64 m = 0; m < M; m++, x += h.stride, y += stride) {
    if (h.columns)
      for (int c = 0; c < COLUMNS; c++)
        for (int i = 0; i < INNER; i++) y[c * INNER + i] = x[h.columns[c] * INNER + i];
    else
      memcpy(y, x, COLUMNS * INNER * sizeof(T));
    if constexpr (BOUNDED) {
      int bad = 0;
      for (int c = 0; c < COLUMNS; c++)
        for (int i = 0; i < INNER; i++) bad |= (y[c * INNER + i] < bounds[c]) | (y[c * INNER + i] > bounds[COLUMNS + c]);
      if (__builtin_expect(bad, 0) && !r.bad) {
        r.bad = RANKER_BAD_INPUT;
        r.bad_table = half;
        r.bad_row = r.first_row + m;
      }
    }
  }
}
"""


def emit(code: Code, step: Step) -> None:
    node = step.head
    assert node is not None
    half = node["half"]
    columns = half.shape[0] if half.shape else 1
    spec = next(spec for spec in code.plan.graph.inputs if spec.name == half.name)
    halves = [h for s in code.plan.graph.inputs for h in s.halves]
    bounded = spec.cardinality is not None and spec.dtype != "bool"
    bounds = f"({ctype(node)} *)nullptr"
    if bounded:
        bounds = code.pointer(ctype(node), "bounds", node, facts=spec.cardinality)
    y = code.write(node)
    code.add(
        f"read_input<{ctype(node)}, {columns}, {size(node) // columns}, {'true' if bounded else 'false'}>"
        f"(r, {halves.index(half)}, M, {bounds}, {y.name}, {y.stride});"
    )

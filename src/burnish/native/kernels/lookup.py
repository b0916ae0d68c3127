"""LOOKUP and BAG: rows of tables by id, float32, bfloat16, float16, int8 and int4 rows, pooled by sum, mean or max.

A table is never widened: its rows are, where they are written. Every id is compared with the table's rows, which the library reads from
the packed file, so a checkpoint with more rows fits the same code; an id outside is reported, and row 0 stands in for it meanwhile.
"""

from __future__ import annotations

import math

from burnish.errors import BuildError
from burnish.graph.node import Node
from burnish.graph.ops import Op
from burnish.native.code import Code
from burnish.native.plan import SIZES, Step, ctype, size, source

TEMPLATE = r"""
// Tables: get(id, c) gives LANES values of a row from column c on
struct TableF32 {
  const float *p;
  const float *unused;
  template <int W> INLINE F get(i64 id, int c) const { return load(p + id * W + c); }
};
struct TableBF16 {
  const uint16_t *p;
  const float *unused;
  template <int W> INLINE F get(i64 id, int c) const { return float_of(I(to<uint32_t>(load(p + id * W + c)) << 16)); }
};
struct TableF16 {
  const uint16_t *p;
  const float *unused;
  template <int W> INLINE F get(i64 id, int c) const { return widen_f16(load(p + id * W + c)); }
};
struct TableS8 {
  const int8_t *p;
  const float *scale;
  template <int W> INLINE F get(i64 id, int c) const { return to<float>(to<int32_t>(load(p + id * W + c))) * splat(scale[id]); }
};
struct TableS4 {
  const uint8_t *p;
  const float *scale;
  template <int W> INLINE F get(i64 id, int c) const { // the even column in the low nibble
    I v = {};
    const uint8_t *row = p + id * (W / 2) + c / 2;
    UNROLL
    for (int i = 0; i < LANES; i++) v[i] = (int32_t)((uint32_t)row[i / 2] << (i % 2 ? 24 : 28)) >> 28;
    return to<float>(v) * splat(scale[id]);
  }
};
INL i64 checked(ranker &r, i64 id, i64 rows, int table, i64 m) {
  if (__builtin_expect((uint64_t)id < (uint64_t)rows, 1)) return id;
  if (!r.bad) {
    r.bad = RANKER_BAD_ID;
    r.bad_table = table;
    r.bad_row = r.first_row + r.strip + m;
    r.bad_id = id;
  }
  return 0;
}
template <class T> struct TableOf {
  const T *p;
}; // values that are not floats, copied as they are
template <int W, class T> INL void lookup_row(const TableOf<T> &table, i64 id, T *y) { memcpy(y, table.p + id * W, W * sizeof(T)); }
template <int W, class T> INL void lookup_row(const T &table, i64 id, float *y) {
  UNROLL
  for (int c = 0; c < W / LANES * LANES && c < 256; c += LANES) store(y + c, table.template get<W>(id, c));
  ROLLED
  for (int c = 256; c < W / LANES * LANES; c += LANES) store(y + c, table.template get<W>(id, c));
  if constexpr (W % LANES != 0) store_some(y + W / LANES * LANES, table.template get<W>(id, W / LANES * LANES), W % LANES);
}
// Ask for the table rows of ids that the caller's rows `from` .. `from + count` hold, N of them from value `skip` of the half's row on.
// Tables that fit the nearest cache are left alone (a model has many), and so are ids outside: nothing here can fault.
template <int N, int COLUMNS_OF, int ROW_BYTES, class T>
INL void prefetch_rows(const ranker &r, int half, i64 from, i64 count, int skip, const char *table, i64 rows, const float *scales) {
  const ranker::Half &h = r.half[half];
  if (rows * ROW_BYTES < 1 << 14) return;
  const T *x = (const T *)h.rows + from * h.stride;
  for (i64 m = 0; m < count; m++, x += h.stride)
    for (int t = 0; t < N; t++) {
      const int at = skip + t;
      const uint64_t id = (uint64_t)(i64)x[h.columns ? h.columns[at / COLUMNS_OF] * COLUMNS_OF + at % COLUMNS_OF : at];
      if (id >= (uint64_t)rows) continue;
      const char *row = table + id * ROW_BYTES;
      UNROLL
      for (int c = 0; c < ROW_BYTES && c < 1024; c += 64) __builtin_prefetch(row + c);
      if (scales) __builtin_prefetch(scales + id);
    }
}
enum { BAG_SUM, BAG_MEAN, BAG_MAX };
template <int W, int LENGTH, int MODE, bool WEIGHTED, class T, class Id>
INL void bag_row(const T &table, const Id *ids, i64 rows, ranker &r, int number, i64 m, bool ignoring, i64 ignore, const float *weights,
                 float *y) {
  i64 kept[LENGTH];
  float factor[LENGTH];
  int n = 0;
  for (int l = 0; l < LENGTH; l++) {
    if (ignoring && (i64)ids[l] == ignore) continue;
    kept[n] = checked(r, ids[l], rows, number, m);
    if constexpr (WEIGHTED) factor[n] = weights[l];
    n++;
  }
  for (int c = 0; c < W; c += LANES) {
    F acc = F{} + (MODE == BAG_MAX && n ? -INFINITY : 0.f);
    for (int l = 0; l < n; l++) {
      F v = table.template get<W>(kept[l], c);
      if constexpr (WEIGHTED) v = v * splat(factor[l]);
      if constexpr (MODE == BAG_MAX)
        acc = ((v > acc) | (v != v)) ? v : acc;
      else
        acc = acc + v;
    }
    if constexpr (MODE == BAG_MEAN) acc = acc / splat((float)(n ? n : 1));
    int lanes = W - c < LANES ? W - c : LANES;
    put(y + c, acc, lanes);
  }
}
"""

KINDS = {"float32": ("TableF32", "float"), "bfloat16": ("TableBF16", "uint16_t"), "float16": ("TableF16", "uint16_t")}


def check(step: Step) -> None:
    node = step.head
    assert node is not None
    if node.dtype not in KINDS:
        raise BuildError(f"the native backend has no BAG of {node.dtype} rows: {node!r}. Cast the table to float32")


def emit(code: Code, step: Step) -> None:
    """A loop over the rows and ids."""
    node = step.head
    assert node is not None
    table, ids = node.inputs[:2]
    name, number = declare(code, table)
    x, y = code.read(ids), code.write(node)
    width = table.shape[1]
    if node.op is Op.LOOKUP:
        count = size(ids)
        code.add(f"// bn_lookup_{table_kind(table)}_{width}")
        with code.block(f"for (i64 m = 0; m < M; m++) for (int t = 0; t < {count}; t++)"):
            code.add(f"const i64 id = checked(r, {x.row()}[t], r.rows[{number}], {number}, m);")
            code.add(f"lookup_row<{width}>({name}, id, {y.row()} + t * {width});")
        return
    length = ids.shape[-1]
    count = size(ids) // length
    weights = code.read(node.inputs[2]) if len(node.inputs) > 2 else None
    mode, ignore = f"BAG_{node['mode'].upper()}", node["ignore"]
    code.add(f"// bn_bag_{table_kind(table)}_{width}_{node['mode']}")
    with code.block(f"for (i64 m = 0; m < M; m++) for (int t = 0; t < {count}; t++)"):
        code.add(
            f"bag_row<{width}, {length}, {mode}, {'true' if weights else 'false'}>({name}, {x.row()} + t * {length}, r.rows[{number}], r, "
            f"{number}, m, {'false' if ignore is None else 'true'}, {ignore or 0}, "
            f"{f'{weights.row()} + t * {length}' if weights else 'nullptr'}, {y.row()} + t * {width});"
        )


def table_kind(table: Node) -> str:
    """How the rows of a table lie in the packed file: f32, bf16, f16, s8, s4, or the dtype of rows that are not floats."""
    if _quantized(table):
        return "s8" if table.inputs[0].dtype == "int8" else "s4"
    return {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}.get(_stored(table)[1], table.dtype)


def _quantized(table: Node) -> bool:
    return table.op is Op.DEQUANTIZE and table.inputs[0].op is Op.WEIGHT


def _stored(table: Node) -> tuple[Node, str]:
    """The node whose array is packed, and its dtype there: the narrow rows under a CAST, else the table's own values."""
    base = table.inputs[0] if table.op is Op.CAST and table.dtype == "float32" else table
    if base.op is Op.WEIGHT and base.dtype in KINDS:
        return base, base.dtype
    return table, "float32" if table.dtype in KINDS else table.dtype


def declare(code: Code, table: Node) -> tuple[str, int]:
    """A local table object and the number of its rows' packed array."""
    name = code.fresh("table")
    if _quantized(table):
        kind, element = ("TableS8", "int8_t") if table.inputs[0].dtype == "int8" else ("TableS4", "uint8_t")
        number, scales = code.packed("table", table.inputs[0]), code.packed("table", table.inputs[1])
        code.add(f"const {kind} {name} = {{(const {element} *)r.w[{number}], (const float *)r.w[{scales}]}};")
        return name, number
    stored, dtype = _stored(table)
    number = code.packed("table", stored)
    if dtype in KINDS:
        kind, element = KINDS[dtype]
        code.add(f"const {kind} {name} = {{(const {element} *)r.w[{number}], nullptr}};")
    else:
        code.add(f"const TableOf<{ctype(table)}> {name} = {{(const {ctype(table)} *)r.w[{number}]}};")
    return name, number


def emit_prefetch(code: Code, step: Step) -> None:
    """For a lookup whose ids are an input's: ask for the table rows of the caller's rows `from` .. `from + count`."""
    node = step.head
    if node is None or node.op not in (Op.LOOKUP, Op.BAG):
        return
    table, ids = node.inputs[:2]
    value, skip = source(ids)
    if value.op is not Op.INPUT or value.side != step.side:
        return
    half = value["half"]
    halves = [h for spec in code.plan.graph.inputs for h in spec.halves]
    inner = math.prod(half.shape[1:])
    name, number = declare(code, table)
    bits = {"s8": 8, "s4": 4, "bf16": 16, "f16": 16}.get(table_kind(table), 8 * SIZES[ctype(table)])
    scales = f"{name}.scale" if _quantized(table) else "nullptr"
    code.add(
        f"prefetch_rows<{size(ids)}, {inner}, {bits * table.shape[1] // 8}, {ctype(value)}>(r, {halves.index(half)}, from, count, {skip}, "
        f"(const char *){name}.p, r.rows[{number}], {scales});"
    )

"""LINEAR, QLINEAR and QDOT: products with a constant weight, and the pointwise nodes behind them while they are in registers.

Names (docs/kernel_names.md): bn_linear_u8s8s32 and its kin. The weight is packed in panels of 64 outputs, in each panel
groups of 4 (int8), 2 (bfloat16) or 1 (float32) inputs beside each other, so that one load feeds one dot instruction; the last panel is only
as wide as it must be, in vectors of 16. Every output sums its products in the order of the inputs, whatever the tile, so a row has the
same bits in any company. A linear with few outputs runs its vectors along the inputs instead.
"""

from __future__ import annotations

import math

import numpy as np

from burnish.graph.node import Node
from burnish.graph.ops import Op
from burnish.native.code import Code
from burnish.native.kernels import pointwise
from burnish.native.plan import FEW, SLACK, Step, ctype, epilogue_stride, size

PANEL = 64  # outputs
HIGHEST = 6  # rows of a tile

TEMPLATE = r"""
// Dot: acc + x . b for LANES outputs and the `group` inputs of one step: x is a spread activation, b the weights. A tile is ROWS rows by
// VECTORS vectors of outputs: its sums, a vector of weights each and a spread activation fit the registers, which are 32 with AVX-512 and
// NEON, 16 elsewhere.
#if defined(__AVX512F__) || defined(__ARM_NEON)
struct Tile {
  static constexpr int ROWS = 6, VECTORS = 4;
};
#else
struct Tile {
  static constexpr int ROWS = 4, VECTORS = 2;
};
#endif
struct DotF32 : Tile {
  using A = float;
  using W = float;
  using Acc = F;
  using X = F;
  using B = F;
  static constexpr int group = 1;
  static INLINE X spread(const A *p) { return splat(*p); }
  static INLINE B weights(const W *w) { return load(w); }
  static INLINE void step(Acc &acc, X x, B b) { acc = muladd(x, b, acc); }
  static INLINE Acc start(F x) { return x; }
  static INLINE F total(Acc acc, F) { return acc; }
};
struct DotBF16 : Tile { // pairs of bfloat16 in one 32-bit lane
  using A = uint16_t;
  using W = uint16_t;
  using Acc = F;
  using X = I;
  using B = I;
  static constexpr int group = 2;
  static INLINE X spread(const A *p) {
    int32_t v;
    memcpy(&v, p, 4);
    return splat(v);
  }
  static INLINE B weights(const W *w) { return load((const int32_t *)w); }
  static INLINE void step(Acc &acc, X x, B b) {
#if defined(__AVX512BF16__)
    acc = (F)_mm512_dpbf16_ps((__m512)acc, (__m512bh)x, (__m512bh)b);
#else
    acc = muladd(float_of(x << 16), float_of(b << 16), acc);
    acc = muladd(float_of(x & (int32_t)0xffff0000), float_of(b & (int32_t)0xffff0000), acc);
#endif
  }
  static INLINE Acc start(F x) { return x; }
  static INLINE F total(Acc acc, F) { return acc; }
};
// DotU8: `shift` is taken from every activation before the product, and sums begin with what makes up for it: see zero_point_sums
#if defined(__AVX512VNNI__)
struct DotU8 : Tile {
  static constexpr int shift = 0;
  using A = uint8_t;
  using W = int8_t;
  using Acc = I;
  using X = I;
  using B = I;
  static constexpr int group = 4;
  static INLINE X spread(const A *p) {
    int32_t v;
    memcpy(&v, p, 4);
    return splat(v);
  }
  static INLINE B weights(const W *w) { return load((const int32_t *)w); }
  static INLINE void step(Acc &acc, X x, B b) { acc = (I)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)x, (__m512i)b); }
  static INLINE Acc start(I x) { return x; }
  static INLINE I total(Acc acc, I) { return acc; }
};
#elif defined(__AVX512F__) // bytes widened to 16 bits: products and pair sums are exact. Activations come widened: see products
struct DotU8 {
  static constexpr int ROWS = 6, VECTORS = 2, shift = 0; // two sums a lane
  using A = uint16_t;
  using W = int8_t;
  using X = __m512i;
  struct Acc {
    __m512i low, high;
  };
  using B = Acc;
  static constexpr int group = 4;
  static INLINE X spread(const A *p) {
    int64_t v;
    memcpy(&v, p, 8);
    return _mm512_set1_epi64(v);
  }
  static INLINE B weights(const W *w) {
    return {_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)w)),
            _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(w + 32)))};
  }
  static INLINE void step(Acc &acc, X x, B b) {
    acc.low = _mm512_add_epi32(acc.low, _mm512_madd_epi16(x, b.low));
    acc.high = _mm512_add_epi32(acc.high, _mm512_madd_epi16(x, b.high));
  }
  static INLINE Acc start(I) { return Acc{}; }
  static INLINE I total(Acc acc, I begun) { // lanes 2i and 2i+1 are the two halves of output i
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
                  odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    return begun +
           (I)_mm512_add_epi32(_mm512_permutex2var_epi32(acc.low, even, acc.high), _mm512_permutex2var_epi32(acc.low, odd, acc.high));
  }
};
#elif defined(__AVX2__)
struct DotU8 {
  static constexpr int ROWS = 6, VECTORS = 1, shift = 0;
  using A = uint16_t;
  using W = int8_t;
  using X = __m256i;
  struct Acc {
    __m256i low, high;
  };
  using B = Acc;
  static constexpr int group = 4;
  static INLINE X spread(const A *p) {
    int64_t v;
    memcpy(&v, p, 8);
    return _mm256_set1_epi64x(v);
  }
  static INLINE B weights(const W *w) {
    return {_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)w)), _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(w + 16)))};
  }
  static INLINE void step(Acc &acc, X x, B b) {
    acc.low = _mm256_add_epi32(acc.low, _mm256_madd_epi16(x, b.low));
    acc.high = _mm256_add_epi32(acc.high, _mm256_madd_epi16(x, b.high));
  }
  static INLINE Acc start(I) { return Acc{}; }
  static INLINE I total(Acc acc, I begun) { return begun + (I)_mm256_permute4x64_epi64(_mm256_hadd_epi32(acc.low, acc.high), 0xd8); }
};
#elif defined(__ARM_FEATURE_MATMUL_INT8) // usdot: unsigned by signed bytes
struct DotU8 : Tile {
  using A = uint8_t;
  using W = int8_t;
  using Acc = I;
  using X = uint8x16_t;
  using B = int8x16_t;
  static constexpr int group = 4, shift = 0;
  static INLINE X spread(const A *p) {
    int32_t v;
    memcpy(&v, p, 4);
    return (X)splat(v);
  }
  static INLINE B weights(const W *w) { return vld1q_s8(w); }
  static INLINE void step(Acc &acc, X x, B b) { acc = (I)vusdotq_s32((int32x4_t)acc, x, b); }
  static INLINE Acc start(I x) { return x; }
  static INLINE I total(Acc acc, I) { return acc; }
};
#elif defined(__ARM_NEON) // sdot and smull multiply signed bytes, which x - 128 is
struct DotU8 {
  using A = uint8_t;
  using W = int8_t;
  using X = int8x16_t;
  using B = int8x16_t;
  static constexpr int group = 4, shift = 128;
  static INLINE B weights(const W *w) { return vld1q_s8(w); }
  static INLINE X spread(const A *p) {
    int32_t v;
    memcpy(&v, p, 4);
    return (X)splat(v ^ (int32_t)0x80808080);
  }
#if defined(__ARM_FEATURE_DOTPROD)
  static constexpr int ROWS = 6, VECTORS = 4;
  using Acc = I;
  static INLINE void step(Acc &acc, X x, B b) { acc = (I)vdotq_s32((int32x4_t)acc, x, b); }
  static INLINE Acc start(I x) { return x; }
  static INLINE I total(Acc acc, I) { return acc; }
#else // a product fits 16 bits, and pairs are added to sums of 32: exact
  static constexpr int ROWS = 6, VECTORS = 2; // two sums a lane
  struct Acc {
    int32x4_t low, high;
  };
  static INLINE void step(Acc &acc, X x, B b) {
    acc.low = vpadalq_s16(acc.low, vmull_s8(vget_low_s8(x), vget_low_s8(b)));
    acc.high = vpadalq_s16(acc.high, vmull_high_s8(x, b));
  }
  static INLINE Acc start(I) { return Acc{}; }
  static INLINE I total(Acc acc, I begun) { return begun + (I)vpaddq_s32(acc.low, acc.high); }
#endif
};
#elif defined(__wasm_simd128__) // bytes widened to 16 bits, as with AVX2: the relaxed dot product takes 7 bits of one side only
struct DotU8 {
  static constexpr int ROWS = 4, VECTORS = 1, shift = 0; // two sums a lane
  using A = uint8_t;
  using W = int8_t;
  using X = v128_t;
  struct Acc {
    v128_t low, high;
  };
  using B = Acc;
  static constexpr int group = 4;
  static INLINE X spread(const A *p) { return wasm_u16x8_extend_low_u8x16(wasm_v128_load32_splat(p)); }
  static INLINE B weights(const W *w) { return {wasm_i16x8_load8x8(w), wasm_i16x8_load8x8(w + 8)}; }
  static INLINE void step(Acc &acc, X x, B b) {
    acc.low = wasm_i32x4_add(acc.low, wasm_i32x4_dot_i16x8(x, b.low));
    acc.high = wasm_i32x4_add(acc.high, wasm_i32x4_dot_i16x8(x, b.high));
  }
  static INLINE Acc start(I) { return Acc{}; }
  static INLINE I total(Acc acc, I begun) {
    return begun + (I)wasm_i32x4_shuffle(acc.low, acc.high, 0, 2, 4, 6) + (I)wasm_i32x4_shuffle(acc.low, acc.high, 1, 3, 5, 7);
  }
};
#else
struct DotU8 : Tile {
  static constexpr int shift = 0;
  using A = uint8_t;
  using W = int8_t;
  using Acc = I;
  using X = I;
  using B = I;
  static constexpr int group = 4;
  static INLINE X spread(const A *p) {
    int32_t v;
    memcpy(&v, p, 4);
    return splat(v);
  }
  static INLINE B weights(const W *w) { return load((const int32_t *)w); }
  static INLINE void step(Acc &acc, X x, B b) { // little-endian lanes: input j of the group is byte j
    UNROLL
    for (int j = 0; j < 4; j++) acc += ((x >> 8 * j) & 255) * ((b << (24 - 8 * j)) >> 24);
  }
  static INLINE Acc start(I x) { return x; }
  static INLINE I total(Acc acc, I) { return acc; }
};
#endif
// A tile of MR rows and NV vectors of outputs, from vector `first` of NALL; k runs over groups of inputs. WHOLE: no vector is cut short.
template <class Dot, int NALL, int KG, bool WHOLE, int MR, int NV, class Row, class Begin, class End>
INL void tile(int t, const typename Dot::W *w, int first, Row row, Begin begin, End end) {
  using W = typename Dot::W;
  constexpr int WIDE = 64 / LANES, G = Dot::group; // vectors of a panel
  typename Dot::Acc acc[MR][NV];
  const W *at[NV];
  int step[NV];
  const typename Dot::A *a[MR];
  UNROLL
  for (int j = 0; j < NV; j++) {
    int panel = (first + j) / WIDE, left = NALL - panel * WIDE, wide = left < WIDE ? left : WIDE;
    at[j] = w + (i64)panel * WIDE * LANES * G * KG + (first + j - panel * WIDE) * LANES * G;
    step[j] = wide * LANES * G;
  }
  UNROLL
  for (int i = 0; i < MR; i++) {
    a[i] = row(t + i);
    UNROLL
    for (int j = 0; j < NV; j++) acc[i][j] = Dot::start(begin((first + j) * LANES));
  }
  ROLLED
  for (int k = 0; k < KG; k++) {
    typename Dot::B b[NV];
    UNROLL
    for (int j = 0; j < NV; j++) b[j] = Dot::weights(at[j] + (i64)k * step[j]);
    UNROLL
    for (int i = 0; i < MR; i++) {
      auto x = Dot::spread(a[i] + k * G);
      UNROLL
      for (int j = 0; j < NV; j++) Dot::step(acc[i][j], x, b[j]);
    }
  }
  UNROLL
  for (int i = 0; i < MR; i++) UNROLL
  for (int j = 0; j < NV; j++) end(t + i, (first + j) * LANES, Dot::total(acc[i][j], begin((first + j) * LANES)), C<WHOLE>{});
}
template <class Dot, int NALL, int KG, bool WHOLE, int MR, int NV, class Row, class Begin, class End>
INL void columns(int T, int &t, const typename Dot::W *w, int first, Row row, Begin begin, End end) {
  for (; t + MR <= T; t += MR) tile<Dot, NALL, KG, WHOLE, MR, NV>(t, w, first, row, begin, end);
}
// Rows `from` to T by N outputs. row(t) points to the inputs of a row; begin(o) is what the sums of LANES outputs from o on begin with;
// end(t, o, sums, whole) takes them, all of them when `whole`, else those below N.
template <class Dot, int N, int KG, class Row, class Begin, class End>
INL void outputs(int from, int T, const typename Dot::W *w, Row row, Begin begin, End end) {
  constexpr int MR = Dot::ROWS, NV = Dot::VECTORS, NALL = (N + 15) / 16 * 16 / LANES, REST = NALL % NV;
  constexpr bool WHOLE = REST != 0 ? N >= (NALL - REST) * LANES : N % 16 == 0; // in the main loop: panels are padded to 16
  if (T - from == 1) { // one row: as many outputs in flight as the registers hold
    constexpr int LONG = NALL < MR * NV ? NALL : MR * NV > 16 ? 16 : MR * NV, LAST = NALL % LONG;
    ROLLED
    for (int v = 0; v + LONG <= NALL; v += LONG) tile<Dot, NALL, KG, N % 16 == 0, 1, LONG>(from, w, v, row, begin, end);
    if constexpr (LAST != 0) tile<Dot, NALL, KG, N % 16 == 0, 1, LAST>(from, w, NALL - LAST, row, begin, end);
    return;
  }
  ROLLED
  for (int v = 0; v + NV <= NALL; v += NV) {
    int t = from;
    columns<Dot, NALL, KG, WHOLE, MR, NV>(T, t, w, v, row, begin, end);
    if constexpr (MR > 4) columns<Dot, NALL, KG, WHOLE, 4, NV>(T, t, w, v, row, begin, end);
    if constexpr (MR > 2) columns<Dot, NALL, KG, WHOLE, 2, NV>(T, t, w, v, row, begin, end);
    columns<Dot, NALL, KG, WHOLE, 1, NV>(T, t, w, v, row, begin, end);
  }
  if constexpr (REST != 0) {
    int t = from;
    columns<Dot, NALL, KG, N % 16 == 0, MR, REST>(T, t, w, NALL - REST, row, begin, end);
    columns<Dot, NALL, KG, N % 16 == 0, 1, REST>(T, t, w, NALL - REST, row, begin, end);
  }
}
// T rows. Where products want activations of 16 bits, those of one tile's rows are widened into `wide` once for all outputs.
template <class Dot, int N, int KG, class Row, class Begin, class End>
INL void products(int T, const typename Dot::W *w, Row row, Begin begin, End end, char *wide = nullptr) {
  if constexpr (sizeof(*row(0)) == sizeof(typename Dot::A)) {
    outputs<Dot, N, KG>(0, T, w, row, begin, end);
  } else {
    constexpr int K = KG * Dot::group;
    auto *y = (typename Dot::A *)wide;
    ROLLED
    for (int t = 0; t < T; t += Dot::ROWS) {
      const int to_row = T - t < Dot::ROWS ? T : t + Dot::ROWS;
      for (int i = t; i < to_row; i++)
        for (int k = 0; k < K; k += LANES) store(y + (i - t) * K + k, to<typename Dot::A>(load(row(i) + k)));
      outputs<Dot, N, KG>(t, to_row, w, [&](int i) FORCE { return y + (i - t) * K; }, begin, end);
    }
  }
}
// A linear with few outputs: vectors along the K inputs. Weights (N, K rounded up to 64), zeros behind K.
// Here stands the last linear of most rankers: 64 sums, products rounded, so that a score has the same bits whatever the width of vectors.
template <int K> INL float dot_few(const float *a, const float *w) {
  constexpr int WHOLE = K / 16 * 16, PARTS = 16 / LANES;
  F acc[4][PARTS] = {};
  ROLLED
  for (int k = 0; k + 64 <= WHOLE; k += 64) UNROLL
  for (int j = 0; j < 4 * PARTS; j++) acc[j / PARTS][j % PARTS] += load(a + k + j * LANES) * load(w + k + j * LANES);
  UNROLL
  for (int j = 0; j < WHOLE % 64 / LANES; j++)
    acc[j / PARTS][j % PARTS] += load(a + WHOLE / 64 * 64 + j * LANES) * load(w + WHOLE / 64 * 64 + j * LANES);
  F part[PARTS];
  UNROLL
  for (int j = 0; j < PARTS; j++) part[j] = (acc[0][j] + acc[1][j]) + (acc[2][j] + acc[3][j]);
  UNROLL
  for (int n = PARTS / 2; n; n /= 2) UNROLL
  for (int j = 0; j < n; j++) part[j] += part[j + n];
  float sum = sum_of(part[0]);
  for (int k = WHOLE; k < K; k++) sum += a[k] * w[k];
  return sum;
}
template <int K> INL int32_t dot_few(const uint8_t *a, const int8_t *w) {
  int32_t sum = 0;
  int k = 0;
#if defined(__AVX512VNNI__)
  __m512i acc = _mm512_setzero_si512();
  for (; k + 64 <= K; k += 64) acc = _mm512_dpbusd_epi32(acc, _mm512_loadu_si512(a + k), _mm512_loadu_si512(w + k));
  if constexpr (K % 64 != 0) {
    acc = _mm512_dpbusd_epi32(acc, _mm512_maskz_loadu_epi8(~0ull >> (64 - K % 64), a + k), _mm512_loadu_si512(w + k));
    k = K;
  }
  sum = _mm512_reduce_add_epi32(acc);
#elif defined(__ARM_FEATURE_MATMUL_INT8)
  int32x4_t acc = vdupq_n_s32(0);
  for (; k + 16 <= K; k += 16) acc = vusdotq_s32(acc, vld1q_u8(a + k), vld1q_s8(w + k));
  sum = vaddvq_s32(acc);
#elif defined(__ARM_FEATURE_DOTPROD) // a . w = (a - 128) . w + 2 * (64 . w)
  int32x4_t acc = vdupq_n_s32(0), half = acc;
  for (; k + 16 <= K; k += 16) {
    const int8x16_t b = vld1q_s8(w + k);
    acc = vdotq_s32(acc, vreinterpretq_s8_u8(veorq_u8(vld1q_u8(a + k), vdupq_n_u8(128))), b);
    half = vdotq_s32(half, vdupq_n_s8(64), b);
  }
  sum = vaddvq_s32(acc) + 2 * vaddvq_s32(half);
#endif
  for (; k < K; k++) sum += (int32_t)a[k] * w[k];
  return sum;
}
// Rows of float32 rounded to bfloat16 with zeros up to the even width; a row's scratch is its own
template <int K> INL void to_bf16(const float *x, uint16_t *y) {
  constexpr int WHOLE = K / LANES * LANES;
  for (int k = 0; k < WHOLE; k += LANES) store(y + k, to<uint16_t>(V<uint32_t>(bits_of(v_round_bf16(load(x + k)))) >> 16));
  if constexpr (WHOLE != K) {
    V<uint16_t> last = to<uint16_t>(V<uint32_t>(bits_of(v_round_bf16(load(x + WHOLE)))) >> 16);
    uint16_t lanes[LANES];
    memcpy(lanes, &last, sizeof last);
    for (int k = WHOLE; k < K; k++) y[k] = lanes[k - WHOLE];
    if (K % 2) y[K] = 0;
  }
}
template <int K> INL void to_f16(const float *x, float *y) {
  for (int k = 0; k < K; k += LANES) put(y + k, v_round_f16(load(x + k)), K - k < LANES ? K - k : LANES);
}
"""


def name(node: Node) -> str:
    """The kernel's name: docs/kernel_names.md."""
    kind = {"u8": "u8s8s32" if node.op is Op.QDOT else "u8s8f32"}.get(kind_of(node), kind_of(node))
    return f"bn_linear_{kind}_1x{node.shape[-1]}c64" if few(node) else f"bn_linear_{kind}"


def kind_of(node: Node) -> str:
    """Which product: "u8", "bf16" or "f32" (float16 operands are rounded and multiplied as float32)."""
    if node.op is not Op.LINEAR:
        return "u8"
    return "bf16" if node["compute"] == "bfloat16" else "f32"


def few(node: Node) -> bool:
    return node.shape[-1] <= FEW and kind_of(node) != "bf16"


GROUP = {"f32": 1, "bf16": 2, "u8": 4}
ELEMENT = {"f32": "float", "bf16": "uint16_t", "u8": "int8_t"}
DOT = {"f32": "DotF32", "bf16": "DotBF16", "u8": "DotU8"}


def emit(code: Code, step: Step) -> None:
    """The product and its epilogue."""
    node = step.head
    assert node is not None
    x, w = node.inputs[0], node.inputs[1]
    n, k = w.shape
    kind = kind_of(node)
    group = GROUP[kind]
    reps = math.prod(node.shape[:-1])  # rows of the product in one row of the block
    a = code.read(x)
    code.add(f"// {name(node)}: {k} -> {n}" + (f", {reps} a row" if reps > 1 else ""))
    rounded = node.op is Op.LINEAR and node["compute"] in ("bfloat16", "float16")
    if rounded:
        padded = -(-k // 2) * 2
        element = "uint16_t" if kind == "bf16" else "float"
        code.add(f"{element} *x = ({element} *)(r.arena + SCRATCH);")
        code.scratch(code.plan.rows * reps * padded * (2 if kind == "bf16" else 4))
        rows = "q ? M : 1" if x.side != step.side else "M"
        fill = "to_bf16<{0}>({1}, {2})" if kind == "bf16" else "to_f16<{0}>({1}, {2})"
        with code.block(f"for (i64 m = 0; m < ({rows}); m++) for (int t = 0; t < {reps}; t++)"):
            code.add(fill.format(k, f"{a.row()} + t * {k}", f"x + (m * {reps} + t) * {padded}") + ";")
        stride = f"{reps * padded}" if x.side == step.side else f"(q * {reps * padded})"
        base, lead = "x", padded
    else:
        base, stride, lead = a.name, a.stride, k
    if reps == 1:
        row = f"{base} + (i64)t * {stride}"
    else:
        row = f"{base} + (i64)(t / {reps}) * {stride} + t % {reps} * {lead}"
    stored = "f16" if rounded and kind == "f32" else kind
    weight = code.pointer(ELEMENT[kind], f"{'few' if few(node) else 'panels'}_{stored}", w)
    epilogue = _Epilogue(code, step, reps, n)
    if few(node):
        with code.block(f"for (int t = 0; t < (int)M * {reps}; t++)"):
            code.add(f"const auto *in = {row};")
            code.add(f"V<{'int32_t' if kind == 'u8' else 'float'}> sums = {{}};")
            code.add(f"UNROLL for (int j = 0; j < {n}; j++) sums[j % LANES] = dot_few<{k}>(in, {weight} + j * {-(-k // 64) * 64});")
            code.add(f"constexpr int o = 0, lanes = {n}; (void)lanes;")
            epilogue.write("sums" if kind != "u8" else f"(sums + load({epilogue.zero}))")
        return
    code.add(f"auto row = [&](int t) FORCE {{ return {row}; }};")
    zero = "F{}" if kind != "u8" else f"load({epilogue.zero} + (DotU8::shift ? {n} : 0) + o)"
    code.add(f"auto begin = [&](int o) FORCE {{ return {zero}; }};")
    with code.block("auto end = [&](int t, int o, auto sums, auto whole) FORCE"):
        code.add(f"const int lanes = whole.value || {n} - o > LANES ? LANES : {n} - o; (void)lanes;")
        epilogue.write("sums")
    code.lines[-1] += ";"
    groups = -(-k // group)
    wide = ""
    if kind == "u8":
        code.scratch(HIGHEST * groups * group * 2 + SLACK)
        wide = ", r.arena + SCRATCH"
    code.add(f"products<{DOT[kind]}, {n}, {groups}>((int)M * {reps}, {weight}, row, begin, end{wide});")


class _Epilogue:
    """What follows a tile's sums: rescale, bias, init, the fused nodes, the stores. Pointers are declared before the loops."""

    def __init__(self, code: Code, step: Step, reps: int, n: int) -> None:
        node = step.head
        assert node is not None
        self.code, self.step, self.node, self.reps, self.n = code, step, node, reps, n
        self.init = None
        match node.op:
            case Op.LINEAR:
                self.bias = code.pointer("float", "plain", node.inputs[2])
                inits = node.inputs[3:]
            case Op.QLINEAR:
                self.scale, self.bias = (code.pointer("float", "plain", v) for v in node.inputs[2:4])
                inits = node.inputs[4:]
            case _:
                inits = node.inputs[2:]
        if node.op is not Op.LINEAR:
            self.zero = code.pointer("int32_t", "zero_point_sums", node.inputs[1], node)
        for init in inits:
            self.init = init
            code.read(init)
        for operand in pointwise.outside(step):
            code.read(operand)
        for member in step.body:
            if member.op is Op.QUANTIZE:
                code.pointer_once("float", "quantize", member)
        for member in step.nodes:
            if member in step.stored:
                code.write(member)

    def write(self, sums: str) -> None:
        code, node, step = self.code, self.node, self.step
        if self.reps > 1:
            code.add(f"const int m = t / {self.reps}, s = t % {self.reps};")
        else:
            code.add("const int m = t, s = 0; (void)s;")
        kind = ctype(node)
        value = sums
        if node.op is not Op.LINEAR:
            if self.init is not None:
                value = f"wrap_add({value}, {self._load(self.init)})"
        elif self.init is not None:
            value = f"({value} + {self._load(self.init)})"
        if node.op is Op.LINEAR:
            value = f"{value} + load({self.bias} + o)"
        elif node.op is Op.QLINEAR:
            value = f"to<float>({value}) * load({self.scale} + o) + load({self.bias} + o)"
        code.add(f"const V<{kind}> y = {value};")
        if node in step.stored:
            self._store(node, "y")
        pointwise.body(code, step, {node: "y"}, self._load, self._store)

    def _load(self, operand: Node) -> str:
        ref = self.code.read(operand)
        if size(operand) == size(self.node):
            apart, along = (self.n if self.reps > 1 else 0), 1
            if self.n == 1:
                along = 0
        elif size(operand) == 1:
            apart, along = 0, 0
        else:
            strides = epilogue_stride(operand.shape, self.node.shape)
            assert strides is not None
            apart, along = strides
        at = ref.row() + (f" + s * {apart}" if apart else "")
        return f"load({at} + o)" if along else f"splat(*({at}))"

    def _store(self, value: Node, name: str) -> None:
        code = self.code
        ref = code.write(value)
        at = ref.row() + (f" + s * {self.n}" if self.reps > 1 else "") + " + o"
        whole = self.n % 16 == 0 or (self.reps == 1 and code.padded(value))
        code.add(f"store({at}, {name});" if whole else f"put({at}, {name}, lanes);")


def pack_panels(w: np.ndarray, group: int) -> np.ndarray:
    """(N, K) -> the panels one behind another, each (K / group, outputs, group); K is padded to the group, N to 16, with zeros."""
    n, k = w.shape
    full = np.zeros((-(-n // 16) * 16, -(-k // group) * group), w.dtype)
    full[:n, :k] = w
    parts = []
    for start in range(0, full.shape[0], PANEL):
        panel = full[start : start + PANEL]  # (outputs, K)
        parts.append(panel.reshape(panel.shape[0], -1, group).transpose(1, 0, 2).ravel())
    return np.concatenate(parts)


def pack_few(w: np.ndarray) -> np.ndarray:
    """(N, K) -> (N, K rounded up to 64), zeros behind K."""
    n, k = w.shape
    full = np.zeros((n, -(-k // 64) * 64), w.dtype)
    full[:, :k] = w
    return full


def zero_point_sums(w: np.ndarray, zero_point: int) -> np.ndarray:
    """int8 (N, K) -> int32 (2, N): what sums begin with, -zero_point * sum_k w; and the same where activations come less 128."""
    sums = w.astype(np.int64).sum(axis=1)
    return np.stack([-zero_point * sums, (128 - zero_point) * sums]).astype(np.int32)


def twin(x: np.ndarray, packed: np.ndarray, n: int) -> np.ndarray:
    """The product as the kernel walks it: float32 or integers (M, K) with packed panels -> (M, N), inputs in order."""
    k = x.shape[1]
    out: np.ndarray = np.zeros((x.shape[0], n), np.int32 if packed.dtype == np.int8 else np.float32)
    group = 4 if packed.dtype == np.int8 else 1
    groups, at = -(-k // group), 0
    for start in range(0, -(-n // 16) * 16, PANEL):
        width = min(PANEL, -(-n // 16) * 16 - start)
        panel = packed[at : at + groups * width * group].reshape(groups, width, group)
        at += groups * width * group
        for i in range(k):
            used = min(width, n - start)
            out[:, start : start + used] += x[:, i : i + 1].astype(out.dtype) * panel[i // group, :used, i % group].astype(out.dtype)
    return out

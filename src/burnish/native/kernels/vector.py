"""Vectors of LANES values for every instruction set, and the functions on them. The head of every generated file.

One text for all instruction sets: clang's and gcc's vector extensions give 16, 8 or 4 lanes, and products are never contracted into fused
multiply-adds here, so every function has the same bits on all of them. `twin_*` are the same functions in numpy.
"""

from __future__ import annotations

import numpy as np

TEMPLATE = r"""
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__wasm_simd128__)
#include <wasm_simd128.h>
#elif defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#else // Armv7's NEON lacks the instructions that are named below; the compiler finds it under the vectors of 4 lanes
#undef __ARM_NEON
#endif
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
#define INLINE inline __attribute__((always_inline))
#define INL static INLINE
#define FORCE __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#define ROLLED _Pragma("clang loop unroll(disable)")
#else
#define UNROLL _Pragma("GCC unroll 64")
#define ROLLED _Pragma("GCC unroll 1")
#endif
typedef int64_t i64;
template <class T, int N> struct vector {
  typedef T type __attribute__((vector_size(sizeof(T) * N)));
};
template <class T> using V = typename vector<T, LANES>::type;
using F = V<float>;
using I = V<int32_t>;
template <int N> struct C {
  static constexpr int value = N;
};
template <bool B, class X, class Y> struct choose {
  using type = X;
};
template <class X, class Y> struct choose<false, X, Y> {
  using type = Y;
};
template <class T> INL V<T> load(const T *p) {
  V<T> v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class T> INL void store(T *p, V<T> v) { memcpy(p, &v, sizeof v); }
template <class T> INL V<T> splat(T x) { return x - V<T>{}; }
template <class To, class X> INL V<To> to(X v) { return __builtin_convertvector(v, V<To>); }
// the first n lanes only; n is a constant wherever this is called
template <class T> INL void store_some(T *p, V<T> v, int n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    I bits;
    memcpy(&bits, &v, sizeof v);
    _mm512_mask_storeu_epi32(p, (__mmask16)((1u << n) - 1), (__m512i)bits);
    return;
  }
  if constexpr (sizeof(T) == 1) {
    __m128i bits;
    memcpy(&bits, &v, sizeof v);
    _mm_mask_storeu_epi8(p, (__mmask16)((1u << n) - 1), bits);
    return;
  }
#endif
  T lanes[LANES];
  memcpy(lanes, &v, sizeof v);
  for (int i = 0; i < n; i++) p[i] = lanes[i];
}
template <class T> INL void put(T *p, V<T> v, int n) {
  if (n == LANES)
    store(p, v);
  else
    store_some(p, v, n);
}
// Integers of a model wrap as numpy's do, and lanes behind a row's end hold anything: signed overflow would be undefined
template <int BYTES> struct unsigned_of {
  using type = uint8_t;
};
template <> struct unsigned_of<4> {
  using type = uint32_t;
};
template <> struct unsigned_of<8> {
  using type = uint64_t;
};
template <class X> using Unsigned = V<typename unsigned_of<sizeof(X) / LANES>::type>;
template <class X> INL X wrap_add(X a, X b) { return (X)((Unsigned<X>)a + (Unsigned<X>)b); }
template <class X> INL X wrap_sub(X a, X b) { return (X)((Unsigned<X>)a - (Unsigned<X>)b); }
template <class X> INL X wrap_mul(X a, X b) { return (X)((Unsigned<X>)a * (Unsigned<X>)b); }
INL I bits_of(F x) {
  I v;
  memcpy(&v, &x, sizeof v);
  return v;
}
INL F float_of(I x) {
  F v;
  memcpy(&v, &x, sizeof v);
  return v;
}
INL F muladd(F a, F b, F c) { // fused where the machine can; for products only, never in quantized arithmetic
#if defined(__AVX512F__)
  return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__clang__) && defined(__ARM_NEON)
  return __builtin_elementwise_fma(a, b, c);
#else
  return a * b + c;
#endif
}
// the first n lanes, zeros behind; n is a constant wherever this is called
INL F load_some(const float *p, int n) {
#if defined(__AVX512F__)
  return (F)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
  F v = {};
  for (int i = 0; i < n; i++) v[i] = p[i];
  return v;
#endif
}
INL float sum_of(F x) { // lanes in a fixed order
  float lanes[LANES];
  memcpy(lanes, &x, sizeof x);
  UNROLL
  for (int n = LANES / 2; n; n /= 2) UNROLL
  for (int i = 0; i < n; i++) lanes[i] += lanes[i + n];
  return lanes[0];
}
INL F v_abs(F x) { return float_of(bits_of(x) & 0x7fffffff); }
INL F v_copysign(F x, F sign) { return float_of((bits_of(x) & 0x7fffffff) | (bits_of(sign) & (int32_t)0x80000000)); }
INL F v_rint(F x) {
  F big = v_copysign(F{} + 8388608.f, x);
  F near = v_copysign((x + big) - big, x);
  return v_abs(x) < 8388608.f ? near : x;
}
INL F v_floor(F x) {
  F n = v_rint(x);
  n = n > x ? n - 1.f : n;
  return v_copysign(n, x);
}
INL F v_sqrt(F x) {
#if defined(__AVX512F__)
  return (F)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
  return (F)_mm256_sqrt_ps((__m256)x);
#elif defined(__ARM_NEON)
  return (F)vsqrtq_f32((float32x4_t)x);
#elif defined(__wasm_simd128__)
  return (F)wasm_f32x4_sqrt((v128_t)x);
#else
  UNROLL
  for (int i = 0; i < LANES; i++) x[i] = sqrtf(x[i]);
  return x;
#endif
}
INL F power_of_two(I n) { return float_of((n + 127) << 23); }
INL F v_exp(F x) {
  F t = x < 89.f ? x : F{} + 89.f;
  t = t > -104.f ? t : F{} - 104.f;
  F big = t * 1.44269504088896341f + 12582912.f; // 1.5 * 2**23: rounds to an integer and leaves it in the low bits
  F n = big - 12582912.f;
  t = t - n * 0.693359375f;
  t = t - n * -2.12194440e-4f;
  F p = t * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * t + 8.3334519073e-3f;
  p = p * t + 4.1665795894e-2f;
  p = p * t + 1.6666665459e-1f;
  p = p * t + 5.0000001201e-1f;
  p = p * (t * t) + t + 1.f;
  I i = bits_of(big) - 0x4b400000, half = i >> 1;
  p = p * power_of_two(half) * power_of_two(i - half); // in two steps: the result may be subnormal
  return x != x ? x : p;
}
INL F v_log(F x) {
  I small = x < 1.17549435e-38f;
  F y = small ? x * 8388608.f : x;
  I bits = bits_of(y), e = ((bits >> 23) & 255) - 126 - (small & 23);
  F m = float_of((bits & 0x007fffff) | 0x3f000000);
  I low = m < 0.707106781186547524f;
  F n = to<float>(e + low); // low is -1 where true
  m = low ? m + m - 1.f : m - 1.f;
  F z = m * m;
  F p = m * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  p = p * m * z + n * -2.12194440e-4f - 0.5f * z;
  F r = m + p + n * 0.693359375f;
  r = x == F{} + INFINITY ? x : r;
  r = x == 0.f ? F{} - INFINITY : r;
  return x >= 0.f ? r : F{} + NAN;
}
INL F v_sigmoid(F x) {
  F e = v_exp(-v_abs(x));
  return (x >= 0.f ? F{} + 1.f : e) / (1.f + e);
}
INL F v_tanh(F x) {
  F a = v_abs(x), z = x * x;
  F p = z * -5.70498872745e-3f + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  F small = p * z * x + x, large = v_copysign(1.f - 2.f / (v_exp(a + a) + 1.f), x);
  return x != x ? x : (a < 0.625f ? small : large);
}
INL F v_sign(F x) {
  F one = v_copysign(F{} + 1.f, x);
  return x == 0.f ? x : (x != x ? x : one);
}
// Sine of |x| plus `quarter` right angles, |x| up to 8192: x less a multiple of pi / 4 in three parts, then one of two polynomials
INL F sine(F x, I sign, int quarter) {
  F a = v_abs(x);
  I j = to<int32_t>(a * 1.27323954473516f); // 4 / pi
  j = (j + 1) & ~1;
  F n = to<float>(j), t = a - n * 0.78515625f;
  t = t - n * 2.4187564849853515625e-4f;
  t = t - n * 3.77489497744594108e-8f;
  I turn = (j >> 1) + quarter;
  F z = t * t;
  F s = z * -1.9515295891e-4f + 8.3321608736e-3f;
  s = (s * z - 1.6666654611e-1f) * z * t + t;
  F c = z * 2.443315711809948e-5f - 1.388731625493765e-3f;
  c = (c * z + 4.166664568298827e-2f) * (z * z) - 0.5f * z + 1.f;
  F r = (turn & 1) != 0 ? c : s;
  return float_of(bits_of(r) ^ ((turn & 2) << 30) ^ sign);
}
// `r`, but for lanes whose x is beyond that what the C library computes: those alone, as other lanes may be other rows
template <class Far> INL F near_or(F r, F x, I near, Far far) {
  int32_t all = -1;
  UNROLL
  for (int i = 0; i < LANES; i++) all &= near[i];
  if (__builtin_expect(!all, 0))
    for (int i = 0; i < LANES; i++)
      if (!near[i]) r[i] = far(x[i]);
  return r;
}
INL F v_sin(F x) {
  const I near = v_abs(x) <= 8192.f;
  const F t = near ? x : F{};
  return near_or(sine(t, bits_of(t) & (int32_t)0x80000000, 0), x, near, [](float a) FORCE { return sinf(a); });
}
INL F v_cos(F x) {
  const I near = v_abs(x) <= 8192.f;
  return near_or(sine(near ? x : F{}, I{}, 1), x, near, [](float a) FORCE { return cosf(a); });
}
// |x| < 1: x times a polynomial in x * x; beyond: 1 - exp(-polynomial), both fitted to the least largest error in double precision
INL F v_erf(F x) {
  F a = v_abs(x), z = x * x;
  F p = z * 7.853851275285706e-05f - 0.0008010190795175731f;
  p = p * z + 0.00518832728266716f;
  p = p * z - 0.026853810995817184f;
  p = p * z + 0.1128358542919159f;
  p = p * z - 0.3761262595653534f;
  p = p * z + 1.1283791065216064f;
  F t = a < 4.f ? a : F{} + 4.f;
  F q = t * -0.00018557555449660867f + 0.0029396223835647106f;
  q = q * t - 0.021805377677083015f;
  q = q * t + 0.10303749144077301f;
  q = q * t + 0.6382255554199219f;
  q = q * t + 1.127040147781372f;
  q = q * t + 0.00035369989927858114f;
  F r = a < 1.f ? p * x : v_copysign(1.f - v_exp(-q), x);
  return x != x ? x : r;
}
INL F v_atan2(F y, F x) {
  UNROLL
  for (int i = 0; i < LANES; i++) x[i] = atan2f(y[i], x[i]);
  return x;
}
INL F v_pow(F x, F y) {
  UNROLL
  for (int i = 0; i < LANES; i++) x[i] = powf(x[i], y[i]);
  return x;
}
INL F v_fmod(F a, F b) { // the sign of the divisor, as numpy
  UNROLL
  for (int i = 0; i < LANES; i++) {
    float m = fmodf(a[i], b[i]);
    a[i] = m != 0 && ((m < 0) != (b[i] < 0)) ? m + b[i] : (m == 0 ? copysignf(0.f, b[i]) : m);
  }
  return a;
}
template <class X> INL X v_imod(X a, X b) {
  UNROLL
  for (int i = 0; i < LANES; i++) {
    auto d = b[i] == 0 ? 0 : b[i] == -1 ? 0 : a[i] % b[i];
    a[i] = d != 0 && ((d < 0) != (b[i] < 0)) ? d + b[i] : d;
  }
  return a;
}
INL F v_round_bf16(F x) { // to nearest even; NaN stays NaN
  I b = bits_of(x), r = (b + 0x7fff + ((b >> 16) & 1)) & (int32_t)0xffff0000;
  return x != x ? float_of(I{} + 0x7fc00000) : float_of(r);
}
INL F v_round_f16(F x) {
#if defined(__AVX512F__)
  return (F)_mm512_cvtph_ps(_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  return (F)_mm256_cvtph_ps(_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#else
  F a = v_abs(x);
  F step = float_of((bits_of(a < 6.103515625e-5f ? F{} + 6.103515625e-5f : a) & 0x7f800000)) *
           12288.f; // 1.5 * 2**13 ulps: rounds to 11 bits
  F r = (a + step) - step;
  r = r > 65504.f ? F{} + INFINITY : r;
  return x != x ? x : v_copysign(r, x);
#endif
}
INL F widen_f16(V<uint16_t> h) {
  V<uint32_t> u = __builtin_convertvector(h, V<uint32_t>);
  F normal = float_of(I((u & 0x7fff) << 13)) * 5.192296858534828e33f; // 2**112: the exponent's bias; subnormals come out right too
  I huge = I(u & 0x7c00) == 0x7c00;
  F r = huge ? float_of(I(((u & 0x3ff) << 13) | 0x7f800000)) : normal;
  return float_of(bits_of(r) | I((u & 0x8000) << 16));
}
// quantize/affine.py: low = -zero_point, high = 255 - zero_point. |t| < 2**22, so adding 1.5 * 2**23 rounds to the nearest even integer and
// leaves it in the low bits; its lowest byte is all that is kept
INL V<uint8_t> quantize(F x, F multiplier, F low, F high, I zero_point) {
  F t = x * multiplier;
  t = t > low ? t : low;
  t = t < high ? t : high;
  return to<uint8_t>(bits_of(t + 12582912.f) + zero_point);
}
"""


def twin_exp(x: np.ndarray) -> np.ndarray:
    """v_exp, bit for bit: float32 -> float32."""
    f = np.float32
    t = np.where(x > f(-104), np.where(x < f(89), x, f(89)), f(-104)).astype(f)
    n = np.rint(t * f(1.44269504088896341))
    t = (t - n * f(0.693359375)) - n * f(-2.12194440e-4)
    p = t * f(1.9875691500e-4) + f(1.3981999507e-3)
    for c in (8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * t + f(c)
    p = p * (t * t) + t + f(1)
    i = n.astype(np.int32)
    with np.errstate(over="ignore", under="ignore"):
        y = p * np.exp2((i >> 1).astype(f)) * np.exp2((i - (i >> 1)).astype(f))
    return np.where(np.isnan(x), x, y).astype(f)

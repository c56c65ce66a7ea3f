// exp, sigmoid and tanh on the vectors of one instruction-set level.
//
// Each function states its largest error, in units in the last place (ULP) of the exact result or
// as an absolute number. The ranges include infinities; a NaN gives a NaN. The bounds were measured
// on millions of inputs per function, and tests/csrc/check_activations.cpp enforces them. Far from
// 0 the float functions lose digits without FMA, because the product n * ln 2 is then rounded.
#pragma once

#include "vector.h"

namespace fastrnn::FASTRNN_LEVEL {

template <class V, class C>
FASTRNN_INLINE V splat(C value) {
  return value - V{};  // value + V{} would turn -0.0 into +0.0
}

// v cut to [low, high]; a NaN remains a NaN.
FASTRNN_INLINE VecF clamp(VecF v, float low, float high) {
#if defined(__AVX512F__)
  return _mm512_max_ps(_mm512_set1_ps(low), _mm512_min_ps(_mm512_set1_ps(high), v));
#elif defined(__AVX__)
  return _mm256_max_ps(_mm256_set1_ps(low), _mm256_min_ps(_mm256_set1_ps(high), v));
#else
  v = v > high ? splat<VecF>(high) : v;
  return v < low ? splat<VecF>(low) : v;
#endif
}
FASTRNN_INLINE VecD clamp(VecD v, double low, double high) {
  v = v > high ? splat<VecD>(high) : v;
  return v < low ? splat<VecD>(low) : v;
}

// exp(v) = scale + scale * p, where v = n ln 2 + r, scale = 2^n and p = exp(r) - 1. There are two
// parts because tanh of a small number needs exp(v) - 1 = (scale - 1) + scale * p without
// cancellation.
template <class V>
struct Exp {
  V scale, p;
};

// float: v is cut to [-87, 80]; beyond that, tanh no longer changes. Errors:
//   -1 to 1:    1 ULP in exp(v), 2 ULP in exp(v) - 1
//   -20 to 20:  2 ULP in both with FMA, 18 ULP without
//   -87 to 80:  5 ULP in both with FMA, 70 ULP without
FASTRNN_INLINE Exp<VecF> exp(VecF v) {
  v = clamp(v, -87.0f, 80.0f);
  const float magic = 12582912.0f;  // 1.5 * 2^23: the low bits of the sum are the rounded integer
  const VecF shifted = v * 1.44269504088896341f + magic;
  const VecF n = shifted - magic;
  const VecF r = v - n * 0.693147180559945309f;
  VecF q = splat<VecF>(1.395049114e-3f);  // (exp(r) - 1 - r) / r^2 for |r| <= ln 2 / 2, minimax
  q = q * r + 8.368889363e-3f;
  q = q * r + 4.166620580e-2f;
  q = q * r + 1.666651884e-1f;
  q = q * r + 5.000000095e-1f;
  return {(VecF)(((VecI)shifted - 0x4b400000 + 127) << 23), q * (r * r) + r};
}

// double: v is cut to [-708, 700]; beyond that, tanh no longer changes. Errors over that range:
// 1 ULP in exp(v), 2 ULP in exp(v) - 1.
FASTRNN_INLINE Exp<VecD> exp(VecD v) {
  v = clamp(v, -708.0, 700.0);
  const double magic = 6755399441055744.0;  // 1.5 * 2^52
  const VecD shifted = v * 1.44269504088896340736 + magic;
  const VecD n = shifted - magic;
  VecD r = v - n * 6.93147180369123816490e-1;  // ln 2 in two parts
  r = r - n * 1.90821492927058770002e-10;
  // Taylor series; the first omitted term is below 2^-56.
  const double factorials[] = {1.0 / 6227020800.0, 1.0 / 479001600.0, 1.0 / 39916800.0,
                               1.0 / 3628800.0,    1.0 / 362880.0,    1.0 / 40320.0,
                               1.0 / 5040.0,       1.0 / 720.0,       1.0 / 120.0,
                               1.0 / 24.0,         1.0 / 6.0,         1.0 / 2.0};
  VecD q = splat<VecD>(factorials[0]);
  for (int i = 1; i < 12; ++i) q = q * r + factorials[i];
  return {(VecD)(((VecL)shifted - 0x4338000000000000 + 1023) << 52), q * (r * r) + r};
}

// 1 / (1 + exp(-v)). Errors:
//   float, v >= -1:      2 ULP
//   float, v >= -20:     4 ULP with FMA, 20 ULP without
//   float, -80 to -20:   6 ULP with FMA, 70 ULP without
//   float, v < -80:      2e-35 absolute, the value at -80
//   double, v >= -700:   2.5 ULP
//   double, v < -700:    1e-304 absolute, the value at -700
// On Zen 4 the division is no slower than an approximate reciprocal with a Newton step.
template <class V>
FASTRNN_INLINE V sigmoid(V v) {
  const Exp<V> e = exp(-v);
  return 1 / ((e.scale + 1) + e.scale * e.p);
}

// (exp(2 v) - 1) / (exp(2 v) + 1). Error: 3 ULP, float and double, everywhere. tanh(-0) is +0.
template <class V>
FASTRNN_INLINE V tanh(V v) {
  const Exp<V> e = exp(v + v);
  return ((e.scale - 1) + e.scale * e.p) / ((e.scale + 1) + e.scale * e.p);
}

#if defined(__AVX512DQ__)
// The float functions with AVX-512 instructions take a quarter fewer operations: vreduceps removes
// the integer part of the exponent and vscalefps restores it without overflow, so that v need not
// be cut to a range.

// Errors: 2.5 ULP for v >= -1, 18 ULP for v >= -20, 64 ULP from -80 to -20, and 1e-38 absolute for
// v < -80.
FASTRNN_INLINE VecF sigmoid(VecF v) {
  const VecF t = v * -1.44269504088896341f;
  const VecF f = _mm512_reduce_ps(t, 1 /* down: 0 <= f < 1 */);
  VecF p = splat<VecF>(2.170225535e-4f);  // 2^f, minimax
  p = p * f + 1.243968786e-3f;
  p = p * f + 9.678840993e-3f;
  p = p * f + 5.548334199e-2f;
  p = p * f + 2.402298363e-1f;
  p = p * f + 6.931469838e-1f;
  p = p * f + 1.0f;
  return 1.0f / (1.0f + (VecF)_mm512_scalef_ps(p, t));
}

// Error: 4 ULP everywhere. tanh(-0) is +0.
FASTRNN_INLINE VecF tanh(VecF v) {
  const VecF t = _mm512_min_ps(_mm512_set1_ps(126.0f), v * 2.88539008177792681f);  // NaN remains
  const VecF f = _mm512_reduce_ps(t, 0 /* to nearest: |f| <= 1/2 */);
  const VecF scale = _mm512_scalef_ps(_mm512_set1_ps(1.0f), t - f);
  VecF q = splat<VecF>(1.540351248e-4f);  // (2^f - 1) / f, minimax
  q = q * f + 1.339073545e-3f;
  q = q * f + 9.618237495e-3f;
  q = q * f + 5.550357434e-2f;
  q = q * f + 2.402264979e-1f;
  q = q * f + 6.931471879e-1f;
  const VecF p = q * f;
  return ((scale - 1.0f) + scale * p) / ((scale + 1.0f) + scale * p);
}
#endif

}  // namespace fastrnn::FASTRNN_LEVEL

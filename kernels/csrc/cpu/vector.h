// Vectors of one instruction-set level and the arithmetic on them: GCC and clang vector extensions,
// so one text serves SSE2, AVX2, AVX-512 and NEON. Intrinsics stand only where those fall short.
#pragma once

#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../inline.h"

namespace fastrnn::FASTRNN_LEVEL {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64, kRegisters = 32;
#elif defined(__AVX__)
inline constexpr int kVectorBytes = 32, kRegisters = 16;
#elif defined(__aarch64__)
inline constexpr int kVectorBytes = 16, kRegisters = 32;
#else
inline constexpr int kVectorBytes = 16, kRegisters = 16;
#endif

struct bfloat16 {
  uint16_t bits;
};

// What a storage type is computed in.
template <class Storage>
struct ComputeOf {
  using type = Storage;
};
template <>
struct ComputeOf<bfloat16> {
  using type = float;
};
template <class Storage>
using Compute = typename ComputeOf<Storage>::type;

template <class C>
inline constexpr int kLanes = kVectorBytes / int(sizeof(C));

typedef float VecF __attribute__((vector_size(kVectorBytes)));
typedef double VecD __attribute__((vector_size(kVectorBytes)));
typedef int32_t VecI __attribute__((vector_size(kVectorBytes)));
typedef uint32_t VecU __attribute__((vector_size(kVectorBytes)));
typedef int64_t VecL __attribute__((vector_size(kVectorBytes)));
typedef uint16_t VecH __attribute__((vector_size(kVectorBytes / 2)));

template <class C>
struct VecOf;
template <>
struct VecOf<float> {
  using type = VecF;
};
template <>
struct VecOf<double> {
  using type = VecD;
};
template <class C>
using Vec = typename VecOf<C>::type;

// --- loads and stores -------------------------------------------------------------------------

FASTRNN_INLINE VecF load(const float *p) {
  VecF v;
  memcpy(&v, p, sizeof v);
  return v;
}
FASTRNN_INLINE VecD load(const double *p) {
  VecD v;
  memcpy(&v, p, sizeof v);
  return v;
}
FASTRNN_INLINE VecF load(const bfloat16 *p) {
  VecH half;
  memcpy(&half, p, sizeof half);
  const VecU wide = __builtin_convertvector(half, VecU) << 16;
  return (VecF)wide;
}

FASTRNN_INLINE void store(float *p, VecF v) { memcpy(p, &v, sizeof v); }
FASTRNN_INLINE void store(double *p, VecD v) { memcpy(p, &v, sizeof v); }
FASTRNN_INLINE void store(bfloat16 *p, VecF v) {  // to nearest, ties to even; NaN stays NaN
  const VecU u = (VecU)v;
  const VecU rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const VecU bits = (v == v) ? rounded : ((u >> 16) | 0x40u);
  const VecH half = __builtin_convertvector(bits, VecH);
  memcpy(p, &half, sizeof half);
}

// The first n lanes only (0 < n <= lanes); lanes not loaded are zero.
template <class S>
FASTRNN_INLINE Vec<Compute<S>> load_n(const S *p, int64_t n) {
  constexpr int lanes = kLanes<Compute<S>>;
  if (n >= lanes) return load(p);
  S part[lanes] = {};
  memcpy(part, p, size_t(n) * sizeof(S));
  return load(part);
}
template <class S>
FASTRNN_INLINE void store_n(S *p, Vec<Compute<S>> v, int64_t n) {
  constexpr int lanes = kLanes<Compute<S>>;
  if (n >= lanes) return store(p, v);
  S part[lanes];
  store(part, v);
  memcpy(p, part, size_t(n) * sizeof(S));
}

// Whether store_past_caches exists for a storage type: it pays for whole cache lines only.
template <class S>
inline constexpr bool kWholeLines = sizeof(S) * kLanes<Compute<S>> == 64;

#if defined(__AVX512F__)
// For results that no cache could hold until they are read, and whose old content need not be
// fetched. p is aligned to 64 bytes; another thread sees them after a fence.
FASTRNN_INLINE void store_past_caches(float *p, VecF v) { _mm512_stream_ps(p, (__m512)v); }
FASTRNN_INLINE void store_past_caches(double *p, VecD v) { _mm512_stream_pd(p, (__m512d)v); }
FASTRNN_INLINE void fence() { _mm_sfence(); }
#else
FASTRNN_INLINE void fence() {}
#endif

FASTRNN_INLINE float widen(float v) { return v; }
FASTRNN_INLINE double widen(double v) { return v; }
FASTRNN_INLINE float widen(bfloat16 v) {
  const uint32_t u = uint32_t(v.bits) << 16;
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
}

// --- exp, sigmoid, tanh ------------------------------------------------------------------------

template <class V, class C>
FASTRNN_INLINE V splat(C value) {
  return value - V{};  // not value + V{}: -0.0 would become +0.0
}

// v between the limits; a NaN stays one.
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

// exp(v) = scale + scale * p with p = exp(r) - 1, v = n ln 2 + r and scale = 2^n. In two parts, since
// exp(v) - 1 = (scale - 1) + scale * p is right to the last digits near 0, which tanh of a small
// number needs. v is cut to [-87, 80] (float) and [-708, 700] (double), beyond which neither sigmoid
// nor tanh changes.
template <class V>
struct Exp {
  V scale, p;
};

FASTRNN_INLINE Exp<VecF> exp(VecF v) {
  v = clamp(v, -87.0f, 80.0f);
  const float magic = 12582912.0f;  // 1.5 * 2^23: the sum's last bits are the rounded integer
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

FASTRNN_INLINE Exp<VecD> exp(VecD v) {
  v = clamp(v, -708.0, 700.0);
  const double magic = 6755399441055744.0;  // 1.5 * 2^52
  const VecD shifted = v * 1.44269504088896340736 + magic;
  const VecD n = shifted - magic;
  VecD r = v - n * 6.93147180369123816490e-1;  // ln 2 in two parts
  r = r - n * 1.90821492927058770002e-10;
  const double factorials[] = {  // Taylor: the first term left out is below 2^-56
      1.0 / 6227020800.0, 1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0, 1.0 / 362880.0,
      1.0 / 40320.0,      1.0 / 5040.0,      1.0 / 720.0,      1.0 / 120.0,     1.0 / 24.0,
      1.0 / 6.0,          1.0 / 2.0};
  VecD q = splat<VecD>(factorials[0]);
  for (int i = 1; i < 12; ++i) q = q * r + factorials[i];
  return {(VecD)(((VecL)shifted - 0x4338000000000000 + 1023) << 52), q * (r * r) + r};
}

// A division costs no more than an approximate reciprocal with a Newton step, measured on Zen 4.
template <class V>
FASTRNN_INLINE V sigmoid(V v) {  // 1 / (1 + exp(-v))
  const Exp<V> e = exp(-v);
  return 1 / ((e.scale + 1) + e.scale * e.p);
}

template <class V>
FASTRNN_INLINE V tanh(V v) {  // (exp(2 v) - 1) / (exp(2 v) + 1)
  const Exp<V> e = exp(v + v);
  return ((e.scale - 1) + e.scale * e.p) / ((e.scale + 1) + e.scale * e.p);
}

#if defined(__AVX512DQ__)
// The same with what AVX-512 has for it: vreduceps takes the integer part away, vscalefps puts it
// back without overflow, so nothing has to be cut to a range; a quarter fewer operations.
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

FASTRNN_INLINE VecF tanh(VecF v) {
  const VecF t = _mm512_min_ps(_mm512_set1_ps(126.0f), v * 2.88539008177792681f);  // keeps a NaN
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

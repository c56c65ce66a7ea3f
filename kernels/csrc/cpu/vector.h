// The vectors of one instruction-set level: types, loads and stores. They use the vector extensions
// of GCC and clang, so the same source serves SSE2, AVX2, AVX-512 and NEON, and intrinsics only
// where the extensions are not enough. activations.h has the functions on them.
#pragma once

#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <type_traits>

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

// The type in which a storage type is computed.
template <class S>
using Compute = std::conditional_t<std::is_same_v<S, bfloat16>, float, S>;

// Two consecutive numbers of a row, which some processors multiply and add up at once.
struct Pair {
  bfloat16 first, second;
};
#if defined(__AVX512BF16__)
inline constexpr bool kPairs = true;
#else
inline constexpr bool kPairs = false;
#endif

// What a product reads of a row at a time, how many numbers that is, and the type of its sums.
template <class S>
using Operand = std::conditional_t<kPairs && std::is_same_v<S, bfloat16>, Pair, Compute<S>>;
template <class E>
inline constexpr int kNumbers = std::is_same_v<E, Pair> ? 2 : 1;
template <class E>
constexpr int64_t operands(int64_t numbers) {
  return (numbers + kNumbers<E> - 1) / kNumbers<E>;
}
template <class E>
using Sum = std::conditional_t<std::is_same_v<E, Pair>, float, E>;

template <class E>
inline constexpr int kLanes = kVectorBytes / int(sizeof(E));

typedef float VecF __attribute__((vector_size(kVectorBytes)));
typedef double VecD __attribute__((vector_size(kVectorBytes)));
typedef int32_t VecI __attribute__((vector_size(kVectorBytes)));
typedef uint32_t VecU __attribute__((vector_size(kVectorBytes)));
typedef int64_t VecL __attribute__((vector_size(kVectorBytes)));
typedef int16_t VecS __attribute__((vector_size(kVectorBytes)));
typedef uint16_t VecH __attribute__((vector_size(kVectorBytes / 2)));

template <class E>
using Vec = std::conditional_t<std::is_same_v<E, double>, VecD,
                               std::conditional_t<std::is_same_v<E, Pair>, VecU, VecF>>;

// --- loads and stores

FASTRNN_INLINE float widen(float v) { return v; }
FASTRNN_INLINE double widen(double v) { return v; }
FASTRNN_INLINE float widen(bfloat16 v) {
  const uint32_t u = uint32_t(v.bits) << 16;
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
}

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

FASTRNN_INLINE VecU load(const Pair *p) {
  VecU v;
  memcpy(&v, p, sizeof v);
  return v;
}

FASTRNN_INLINE void store(float *p, VecF v) { memcpy(p, &v, sizeof v); }
FASTRNN_INLINE void store(double *p, VecD v) { memcpy(p, &v, sizeof v); }
// To nearest, ties to even; a NaN remains a NaN.
FASTRNN_INLINE VecH to_bfloat16(VecF v) {
#if defined(__AVX512BF16__)
  return (VecH)_mm512_cvtneps_pbh((__m512)v);
#else
  const VecU u = (VecU)v;
  const VecU rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const VecU bits = (v == v) ? rounded : ((u >> 16) | 0x40u);
  return __builtin_convertvector(bits, VecH);
#endif
}
FASTRNN_INLINE void store(bfloat16 *p, VecF v) {
  const VecH half = to_bfloat16(v);
  memcpy(p, &half, sizeof half);
}
FASTRNN_INLINE void store(Pair *p, VecF v) { store(&p->first, v); }

// Load and store only the first n lanes (n >= 1); the other lanes load as zero.
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

// The last n numbers of v, and zeros before them.
template <class E>
FASTRNN_INLINE Vec<E> keep_last(Vec<E> v, int64_t n) {
  using Ints = std::conditional_t<std::is_same_v<E, double>, VecL,
                                  std::conditional_t<kNumbers<E> == 2, VecS, VecI>>;
  constexpr int numbers = kLanes<E> * kNumbers<E>;
  Ints place{};
  for (int j = 0; j < numbers; ++j) place[j] = j;
  using Int = std::remove_reference_t<decltype(place[0])>;
  return (Vec<E>)((Ints)v & (place >= Int(numbers - n)));
}

// A vector of operands: the numbers of a row from k on.
template <class E, class S>
FASTRNN_INLINE Vec<E> load_operands(const S *row, int64_t k) {
  if constexpr (kNumbers<E> == 2)
    return load(reinterpret_cast<const Pair *>(row + k));
  else
    return load(row + k);
}
// One operand: the numbers of a row from k on, and a zero for a number beyond its `width`.
template <class E, class S>
FASTRNN_INLINE E operand(const S *row, int64_t k, int64_t width) {
  if constexpr (kNumbers<E> == 2)
    return {row[k], k + 1 < width ? row[k + 1] : S{}};
  else
    return widen(row[k]);
}

// The first n lanes of two rows (the second may be null: zeros) as operands of a product over rows.
template <class E, class S>
FASTRNN_INLINE Vec<E> join_rows(const S *first, const S *second, int64_t n) {
  if constexpr (kNumbers<E> == 2) {
    const VecU low = (VecU)load_n(first, n) >> 16;
    return second ? low | (VecU)load_n(second, n) : low;
  } else {
    return load_n(first, n);
  }
}

inline constexpr int kLineBytes = 64;  // of a cache line

// Whether `vectors` consecutive vectors of a storage type are whole cache lines and stream_store
// exists.
template <class S, int vectors>
inline constexpr bool kStreams =
    kVectorBytes >= 32 && sizeof(S) * kLanes<Compute<S>> * vectors % kLineBytes == 0;

// Stores that bypass the caches, for results too large to stay cached until they are read. They
// also avoid fetching the old contents. The lines should be written as a whole, p must be aligned
// to the vector, and other threads see the results after fence().
#if defined(__AVX512F__)
FASTRNN_INLINE void stream_store(float *p, VecF v) { _mm512_stream_ps(p, (__m512)v); }
FASTRNN_INLINE void stream_store(double *p, VecD v) { _mm512_stream_pd(p, (__m512d)v); }
FASTRNN_INLINE void stream_store(bfloat16 *p, VecF v) {
  _mm256_stream_si256((__m256i *)p, (__m256i)to_bfloat16(v));
}
#elif defined(__AVX__)
FASTRNN_INLINE void stream_store(float *p, VecF v) { _mm256_stream_ps(p, (__m256)v); }
FASTRNN_INLINE void stream_store(double *p, VecD v) { _mm256_stream_pd(p, (__m256d)v); }
FASTRNN_INLINE void stream_store(bfloat16 *p, VecF v) {
  _mm_stream_si128((__m128i *)p, (__m128i)to_bfloat16(v));
}
#endif
FASTRNN_INLINE void fence() {
#if defined(__AVX__)
  _mm_sfence();
#endif
}

// store_n of one of `vectors` consecutive vectors, bypassing the caches if `streams`.
template <int vectors, class S>
FASTRNN_INLINE void put(S *p, Vec<Compute<S>> v, int64_t n, bool streams) {
  if constexpr (kStreams<S, vectors>) {
    if (streams && n == kLanes<Compute<S>>) return stream_store(p, v);
  }
  store_n(p, v, n);
}

// a * b + c, rounded once: see cells.h.
#if defined(__AVX512F__)
FASTRNN_INLINE VecF multiply_add(VecF a, VecF b, VecF c) { return _mm512_fmadd_ps(a, b, c); }
FASTRNN_INLINE VecD multiply_add(VecD a, VecD b, VecD c) { return _mm512_fmadd_pd(a, b, c); }
#elif defined(__FMA__)
FASTRNN_INLINE VecF multiply_add(VecF a, VecF b, VecF c) { return _mm256_fmadd_ps(a, b, c); }
FASTRNN_INLINE VecD multiply_add(VecD a, VecD b, VecD c) { return _mm256_fmadd_pd(a, b, c); }
#elif defined(__aarch64__)
FASTRNN_INLINE VecF multiply_add(VecF a, VecF b, VecF c) { return vfmaq_f32(c, a, b); }
FASTRNN_INLINE VecD multiply_add(VecD a, VecD b, VecD c) { return vfmaq_f64(c, a, b); }
#endif

// sum + a * b, where a may be one operand for all lanes.
FASTRNN_INLINE VecF add_product(VecF sum, VecF a, VecF b) { return sum + a * b; }
FASTRNN_INLINE VecF add_product(VecF sum, float a, VecF b) { return sum + a * b; }
FASTRNN_INLINE VecD add_product(VecD sum, VecD a, VecD b) { return sum + a * b; }
FASTRNN_INLINE VecD add_product(VecD sum, double a, VecD b) { return sum + a * b; }
#if defined(__AVX512BF16__)
FASTRNN_INLINE VecF add_product(VecF sum, VecU a, VecU b) {
  return (VecF)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
FASTRNN_INLINE VecF add_product(VecF sum, Pair a, VecU b) {
  int32_t bits;
  memcpy(&bits, &a, sizeof bits);
  return add_product(sum, (VecU)_mm512_set1_epi32(bits), b);
}
#endif

}  // namespace fastrnn::FASTRNN_LEVEL

// Number types and their sigmoid and tanh, and the part of a product that each thread computes.
// Shared by the kernels and by the emulated GPU of the tests.
#pragma once

#include <math.h>

#include "../cells.h"
#include "plan.h"

namespace fastrnn::cuda {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

struct alignas(16) Words {
  uint32_t v[4];
};

// Neighbouring elements that are read and written together.
template <class S, int N>
struct alignas(sizeof(S) * N) Packet {
  S v[N];
};

// A float. kFast selects the sigmoid and tanh that are accurate enough for 16-bit results.
template <bool kFast>
struct Number {
  float v;
  Number() = default;
  FASTRNN_INLINE Number(float value) : v(value) {}
  friend FASTRNN_INLINE Number operator+(Number a, Number b) { return a.v + b.v; }
  friend FASTRNN_INLINE Number operator-(Number a, Number b) { return a.v - b.v; }
  friend FASTRNN_INLINE Number operator*(Number a, Number b) { return a.v * b.v; }
};

// --- sigmoid and tanh
//
// Each function states its largest error. The ranges include infinities; a NaN gives a NaN.
// tests/csrc/check_cuda_activations.cpp enforces the bounds with emulated instructions that are off
// by as much as the PTX ISA permits.

// The approximate instructions of the machine: on a GPU ex2.approx.ftz, rcp.approx.ftz and
// tanh.approx. The PTX ISA permits errors of 2 ULP, 1 ULP and 2^-11 relative. The first two flush
// subnormals to zero.
FASTRNN_INLINE float exp2_approximate(float v);
FASTRNN_INLINE float reciprocal_approximate(float v);
FASTRNN_INLINE float tanh_approximate(float v);

// Fast tanh: 2^-11 relative.
FASTRNN_INLINE Number<true> tanh(Number<true> x) { return tanh_approximate(x.v); }

// Fast sigmoid: 2.45e-4 absolute.
FASTRNN_INLINE Number<true> sigmoid(Number<true> x) {
  return 0.5f * tanh_approximate(0.5f * x.v) + 0.5f;
}

// float32 sigmoid: 6 ULP for x >= -1, 22 ULP for x >= -20, 68 ULP from -80 to -20, and 2e-38
// absolute for x < -80.
FASTRNN_INLINE Number<false> sigmoid(Number<false> x) {
  return reciprocal_approximate(1.0f + exp2_approximate(x.v * -1.4426950408889634f));
}

// float32 tanh: 1 ULP for |x| <= 0.4, 12 ULP elsewhere. It is a polynomial near 0, where
// 1 - 2 / (1 + exp(2 x)) cancels.
FASTRNN_INLINE Number<false> tanh(Number<false> x) {
  const float z = x.v * x.v;
  float p = 1.875122e-2f * z - 5.356414e-2f;
  p = p * z + 1.3331235e-1f;
  p = p * z - 3.3333299e-1f;
  const float far =
      1.0f - 2.0f * reciprocal_approximate(1.0f + exp2_approximate(x.v * 2.8853900817779268f));
  return fabsf(x.v) < 0.4f ? p * z * x.v + x.v : far;
}

// How a dtype is multiplied: by tensor cores (mma.m16n8), or by float32 FMAs.
//
// A warp's product is [units of a tile] x [rows of a tile]. Lane 4 p + q reads the 16 bytes at
// offset 16 q of each chunk, of a unit's weights or of a row of states. It ends up with the sums of
// units wide * p + w in rows wide * q + j, for w, j < wide. One j is called an *item*. An
// instruction may combine the columns of a chunk in any order that weights and states share.
template <class Storage, bool kTensor_>
struct Math {
  using S = Storage;
  static constexpr bool kTensor = kTensor_;
  static constexpr Shape kShape = {int(sizeof(S)), kTensor ? 2 : 1};
  static constexpr int kWide = kShape.wide, kUnits = kShape.units(), kRows = kShape.rows(),
                       kChunks = kShape.chunks(), kColumns = kShape.columns(),
                       kLaneColumns = 16 / int(sizeof(S));
  using Value = Number<sizeof(S) == 2>;
  using Pack = Packet<S, kWide>;
};

// N sums of a lane over its chunks. With tensor cores, v[n][2 w + j] belongs to row wide * q + j
// and unit w. Without, v[n][r] belongs to row r of the tile and covers only this lane's columns.
template <int N>
struct Sums {
  float v[N][4] = {};
};

}  // namespace fastrnn::cuda

// Numbers and what a thread owns of a product. Shared by the kernels and by the tests' emulator.
#pragma once

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

// Neighbouring elements that are read and written at once.
template <class S, int N>
struct alignas(sizeof(S) * N) Packet {
  S v[N];
};

// A float whose sigmoid and tanh are rounded to float32 or, fast, to 16 bits.
template <bool kFast>
struct Number {
  float v;
  Number() = default;
  FASTRNN_INLINE Number(float value) : v(value) {}
  friend FASTRNN_INLINE Number operator+(Number a, Number b) { return a.v + b.v; }
  friend FASTRNN_INLINE Number operator-(Number a, Number b) { return a.v - b.v; }
  friend FASTRNN_INLINE Number operator*(Number a, Number b) { return a.v * b.v; }
};

// How a dtype is multiplied: by tensor cores (mma.m16n8), or by FMAs, exact in float32.
//
// A warp's product is [units of a tile] x [rows of a tile]. Lane 4 p + q reads the 16 bytes at 16 q of
// each chunk of a column of weights or of a row of states, and ends with the sums of units
// wide * p + w in rows wide * q + j, for w, j < wide: an *item* is one j. Which of a chunk's columns
// meet in one instruction does not matter as long as weights and states agree.
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

// A lane's sums over its chunks, N of them: of rows wide * q + j and units w, at [2 w + j]; without
// tensor cores of the four rows of the tile, from this lane's columns only.
template <int N>
struct Sums {
  float v[N][4] = {};
};

}  // namespace fastrnn::cuda

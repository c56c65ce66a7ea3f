// Products with weights as they lie in memory, for calls that are too short to repay packing them.
#pragma once

#include "product.h"
#include "transpose.h"

namespace fastrnn::FASTRNN_LEVEL {

// Adds up the lanes of N vectors, in groups of lanes that are kDistance apart. If N is the number
// of lanes, element i of the result is the sum of row[i].
template <class C, int N, int kDistance = 1>
FASTRNN_INLINE Vec<C> sum_lanes(const Vec<C> *row) {
  if constexpr (N == 1) {
    return row[0];
  } else {
    using All = std::make_integer_sequence<int, kLanes<C>>;
    Vec<C> half[N / 2];
    for (int i = 0; i < N / 2; ++i)
      half[i] = exchange<C, kDistance, false>(row[2 * i], row[2 * i + 1], All{}) +
                exchange<C, kDistance, true>(row[2 * i], row[2 * i + 1], All{});
    return sum_lanes<C, N / 2, 2 * kDistance>(half);
  }
}

// The rows of weights that are read together: their sums, for R rows of the other operand, take
// three quarters of the registers.
template <class C>
constexpr int rows_together(int R) {
  int rows = kLanes<C>;
  while (rows > 1 && rows * R > kRegisters * 3 / 4) rows /= 2;
  return rows;
}

// Element j of acc[i][g] += the product of row i of a and row j of w's block g, both of `depth`
// numbers (at least a vector); blocks are `block` elements apart. Elements beyond a block's `units`
// rows are undefined. The order of the sums does not depend on R.
template <int R, int G, class E, class S>
FASTRNN_INLINE void multiply_in_place(Vec<Sum<E>> (&acc)[R][G], Lhs<E> a, const S *w, int64_t block,
                                      int64_t units, int64_t depth) {
  using C = Sum<E>;
  constexpr int lanes = kLanes<C>, kRows = rows_together<C>(R), kWidth = lanes * kNumbers<E>;
  using Number = std::conditional_t<kNumbers<E> == 2, S, E>;
  const auto in = [&](int i, int64_t k) {
    return load_operands<E>(reinterpret_cast<const Number *>(a.at(i, 0)), k);
  };
  for (int g = 0; g < G; ++g) {
    Vec<C> part[R][lanes / kRows];
    for (int q = 0; q < lanes / kRows; ++q) {
      const S *row[kRows];
      for (int j = 0; j < kRows; ++j) {
        const int64_t unit = q * kRows + j;
        row[j] = w + g * block + (unit < units ? unit : units - 1) * depth;
      }
      Vec<C> sum[R][kRows] = {};
      int64_t k = 0;
      for (; k + kWidth <= depth; k += kWidth) {
        Vec<E> x[R];
        for (int i = 0; i < R; ++i) x[i] = in(i, k);
        for (int j = 0; j < kRows; ++j) {
          const Vec<E> v = load_operands<E>(row[j], k);
          for (int i = 0; i < R; ++i) sum[i][j] = add_product(sum[i][j], x[i], v);
        }
      }
      if (k < depth) {
        const int64_t last = depth - kWidth;
        Vec<E> x[R];
        for (int i = 0; i < R; ++i) x[i] = keep_last<E>(in(i, last), depth - k);
        for (int j = 0; j < kRows; ++j) {
          const Vec<E> v = keep_last<E>(load_operands<E>(row[j], last), depth - k);
          for (int i = 0; i < R; ++i) sum[i][j] = add_product(sum[i][j], x[i], v);
        }
      }
      for (int i = 0; i < R; ++i) part[i][q] = sum_lanes<C, kRows>(sum[i]);
    }
    for (int i = 0; i < R; ++i) acc[i][g] += sum_lanes<C, lanes / kRows, kRows>(part[i]);
  }
}

}  // namespace fastrnn::FASTRNN_LEVEL

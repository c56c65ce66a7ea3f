// Matrix products with the accumulators in registers: the inner loop of every CPU kernel.
#pragma once

#include <initializer_list>

#include "vector.h"

namespace fastrnn::FASTRNN_LEVEL {

constexpr int64_t kSmallOperand = 16 << 10;  // bytes of a matrix that stays in the L1 cache
constexpr int kShallow = 8;  // the depth up to which a gradient of weights is written row by row

template <int N>
struct Int {
  static constexpr int value = N;
};

// The rows of a tile that is `vectors` vectors wide. The accumulators take three quarters of the
// registers; elements of both operands share the others.
constexpr int tile_rows(int vectors) {
  const int rows = kRegisters * 3 / 4 / vectors;
  return rows > 8 ? 8 : rows;
}

// Calls f(Int<n>) for n from 1 to Max.
template <int Max, class F>
FASTRNN_INLINE void with_constant(int n, F &&f) {
  if constexpr (Max > 1) {
    if (n < Max) return with_constant<Max - 1>(n, f);
  }
  f(Int<Max>{});
}

// Splits n rows into tiles of nearly equal height <= Max, and calls f(Int<height>, first row).
template <int Max, class F>
FASTRNN_INLINE void for_tiles(int64_t n, F &&f) {
  const int64_t tiles = (n + Max - 1) / Max;
  int64_t row = 0;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t end = n * (i + 1) / tiles;
    with_constant<Max>(int(end - row), [&](auto height) { f(height, row); });
    row = end;
  }
}

// The left-hand matrix. Operand (i, k) is at data[i * ld + k]; if Transposed, at data[k * ld + i].
template <class E, bool Transposed = false>
struct Lhs {
  const E *data;
  int64_t ld;
  FASTRNN_INLINE const E *at(int64_t i, int64_t k) const {
    return Transposed ? data + k * ld + i : data + i * ld + k;
  }
  FASTRNN_INLINE Lhs from(int64_t i, int64_t k) const { return {at(i, k), ld}; }
};

// The right-hand matrix: vector v of row k is at data[k * row + v * vector].
template <class E>
struct Rhs {
  const E *data;
  int64_t row, vector;
};

// acc[i][v] += sum over k of a(i, k) * b(k, v). depth >= 1: the loop then needs no test before its
// first iteration, and the compiler keeps acc in registers.
template <int R, int V, class E, bool Transposed>
FASTRNN_INLINE void multiply(Vec<Sum<E>> (&acc)[R][V], Lhs<E, Transposed> a, Rhs<E> b,
                             int64_t depth) {
  const E *row = b.data;
  int64_t k = 0;
  do {
    Vec<E> w[V];
    for (int v = 0; v < V; ++v) w[v] = load(row + v * b.vector);
    for (int i = 0; i < R; ++i) {
      const E s = *a.at(i, k);
      for (int v = 0; v < V; ++v) acc[i][v] = add_product(acc[i][v], s, w[v]);
    }
    row += b.row;
  } while (++k < depth);
}

// out[i, v] = sum over k of a(i, k) * b(k, v), for `rows` rows i and `vectors` vectors v; added to
// out if `accumulate`. k runs over `segments` segments of length `depth`, which start a_segment
// columns of a and b_segment operands of b apart. The last vector of each row of out has `last`
// elements.
template <class E, bool Transposed, class Out = Sum<E>>
struct Product {
  using C = Sum<E>;
  // Where registers are few, tall tiles read the right-hand operand, which is larger, less often.
  static constexpr int kWidest = kRegisters < 32 ? 2 : 4;

  Out *out;
  int64_t ld_out;
  bool accumulate;
  Lhs<E, Transposed> a;
  Rhs<E> b;
  int64_t rows, vectors, depth;
  int64_t last = kLanes<C>;
  int segments = 1;
  int64_t a_segment = 0, b_segment = 0;

  template <int R, int V>
  __attribute__((noinline)) void tile(int64_t row, int64_t v0) const {
    Out *o = out + row * ld_out + v0 * kLanes<C>;
    const int64_t end = v0 + V == vectors ? last : kLanes<C>;  // elements of the tile's last vector
    Vec<C> acc[R][V] = {};
    if (accumulate)
      for (int i = 0; i < R; ++i) {
        for (int v = 0; v < V - 1; ++v) acc[i][v] = load(o + i * ld_out + v * kLanes<C>);
        acc[i][V - 1] = load_n(o + i * ld_out + (V - 1) * kLanes<C>, end);
      }
    for (int i = 0; i < R; ++i)  // what the tile below will load or store
      for (int j : {0, V * kLanes<C> - 1}) __builtin_prefetch(o + (i + R) * ld_out + j, 1);
    for (int s = 0; s < segments; ++s)
      multiply(acc, a.from(row, s * a_segment),
               Rhs<E>{b.data + v0 * b.vector + s * b_segment, b.row, b.vector}, depth);
    for (int i = 0; i < R; ++i) {
      for (int v = 0; v < V - 1; ++v) store(o + i * ld_out + v * kLanes<C>, acc[i][v]);
      store_n(o + i * ld_out + (V - 1) * kLanes<C>, acc[i][V - 1], end);
    }
  }

  // Computes out row by row. If the depth is small, writing it is most of the work, and memory
  // takes consecutive rows up to three times as fast as the rows of a tile.
  template <int Depth>
  __attribute__((noinline)) void row_by_row() const {
    for (int64_t row = 0; row < rows; ++row) {
      E s[Depth];
      for (int k = 0; k < Depth; ++k) s[k] = *a.at(row, k);
      const E *w = b.data;
      Out *o = out + row * ld_out;
      for (int64_t v = 0; v < vectors; ++v, o += kLanes<C>, w += b.vector) {
        const int64_t n = v + 1 < vectors ? kLanes<C> : last;
        Vec<C> sum{};
        if (accumulate) sum = load_n(o, n);
        for (int k = 0; k < Depth; ++k) sum = add_product(sum, s[k], load(w + k * b.row));
        store_n(o, sum, n);
      }
    }
  }

  // Calls f(Int<width>, first vector) for blocks of the right-hand operand.
  template <class F>
  FASTRNN_INLINE void for_blocks(F &&f) const {
    for (int64_t v0 = 0; v0 < vectors; v0 += kWidest)
      with_constant<kWidest>(int(vectors - v0 < kWidest ? vectors - v0 : kWidest),
                             [&](auto width) { f(width, v0); });
  }

  // A small right-hand operand stays in cache, so out is written from top to bottom. Of a large
  // operand, one block at a time stays in cache for all rows.
  __attribute__((noinline)) void run() const {
    if (depth < 1) return;
    if constexpr (Transposed)
      if (depth <= kShallow && segments == 1)
        return with_constant<kShallow>(int(depth),
                                       [&](auto count) { row_by_row<decltype(count)::value>(); });
    if (bytes(vectors) <= kSmallOperand)
      for_tiles<tile_rows(kWidest)>(rows, [&](auto height, int64_t row) {
        for_blocks([&](auto width, int64_t v0) {
          tile<decltype(height)::value, decltype(width)::value>(row, v0);
        });
      });
    else
      for_blocks([&](auto width, int64_t v0) {
        constexpr int V = decltype(width)::value;
        // Where registers are few, a tile has so few rows that the block must come from the L1
        // cache: a part of its depth at a time.
        const bool parts = kRegisters < 32 && std::is_same_v<Out, C> && rows > 2 * tile_rows(V) &&
                           bytes(V) > kSmallOperand;
        if (!parts) return all_rows<V>(v0);
        const int64_t step = kSmallOperand / int64_t(V * sizeof(Vec<C>));
        const int together = depth < step ? int(step / depth) : 1;  // segments
        Product part = *this;
        for (int s = 0; s < segments; s += together)
          for (int64_t k = 0; k < depth; k += step) {
            part.segments = segments - s < together ? segments - s : together;
            part.depth = depth - k < step ? depth - k : step;
            part.a = a.from(0, s * a_segment + k);
            part.b.data = b.data + s * b_segment + k * b.row;
            part.template all_rows<V>(v0);
            part.accumulate = true;
          }
      });
  }

  template <int V>
  FASTRNN_INLINE void all_rows(int64_t v0) const {
    for_tiles<tile_rows(V)>(
        rows, [&](auto height, int64_t row) { tile<decltype(height)::value, V>(row, v0); });
  }

  // The size of `width` vectors of the right-hand operand.
  FASTRNN_INLINE int64_t bytes(int64_t width) const {
    return depth * segments * width * int64_t(sizeof(Vec<C>));
  }
};

// out[i, j] += sum over k of a[i, k] * b[k, j], for j < width, with few rows i. It reads b row by
// row, as it lies in memory.
template <class C, class A, class S>
__attribute__((noinline)) void add_few_rows(C *out, int64_t ld_out, const A *a, int64_t ld_a,
                                            const S *b, int64_t ld_b, int64_t rows, int64_t width,
                                            int64_t depth) {
  for (int64_t k = 0; k < depth; k += 8)
    with_constant<8>(int(depth - k < 8 ? depth - k : 8), [&](auto count) {
      constexpr int K = decltype(count)::value;
      for (int64_t j = 0; j < width; j += kLanes<C>) {
        const int64_t n = width - j;
        Vec<C> w[K];
        for (int q = 0; q < K; ++q) w[q] = load_n(b + (k + q) * ld_b + j, n);
        for (int64_t i = 0; i < rows; ++i) {
          Vec<C> sum = load_n(out + i * ld_out + j, n);
          for (int q = 0; q < K; ++q) sum += widen(a[i * ld_a + k + q]) * w[q];
          store_n(out + i * ld_out + j, sum, n);
        }
      }
    });
}

}  // namespace fastrnn::FASTRNN_LEVEL

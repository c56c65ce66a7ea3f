// Packs weights into panels, and computes a step for a few rows in one panel. A panel is one vector
// of hidden units with all its gates.
#pragma once

#include "activations.h"
#include "job.h"
#include "product.h"
#include "transpose.h"

#include "../cells.h"

namespace fastrnn::FASTRNN_LEVEL {

template <class Cell, class S>
struct Panel {
  using C = Compute<S>;
  using E = Operand<S>;
  static constexpr int G = Cell::kGates, lanes = kLanes<C>;

  // The size of a packed panel of a matrix [G*H, K].
  static FASTRNN_INLINE int64_t packed_size(int64_t K) { return operands<E>(K) * G * lanes; }

  // A packed panel as the right-hand side of a product, from a gate on. It is [depth][G][lanes];
  // where registers are few, [G][depth][lanes], for tiles of half of the gates (see Forward) and
  // because far caches are read faster in several streams.
  static FASTRNN_INLINE Rhs<E> rhs(const E *packed, int64_t depth, int gate = 0) {
    constexpr bool kApart = kRegisters < 32;
    return {packed + gate * (kApart ? depth * lanes : lanes), kApart ? lanes : G * lanes,
            kApart ? depth * lanes : lanes};
  }

  // Packs panel p of a matrix [G*H, K]; units beyond H are zero. It takes 64 columns at a time so
  // that the cache lines being written stay in the L1 cache.
  static void pack_weights(E *out, const S *w, int64_t H, int64_t K, int64_t p) {
    const int64_t units = H - p * lanes < lanes ? H - p * lanes : lanes;
    const int64_t whole = K / kNumbers<E>, depth = operands<E>(K);
    const Rhs<E> to = rhs(out, depth);
    for (int64_t k0 = 0; k0 < depth; k0 += 64) {
      const int64_t k1 = k0 + 64 < depth ? k0 + 64 : depth;
      for (int g = 0; g < G; ++g) {
        const S *gate = w + (g * H + p * lanes) * K;
        int64_t k = k0;
        for (; k + lanes <= k1 && k + lanes <= whole; k += lanes)
          pack_block(out + k * to.row + g * to.vector, to.row, gate + k * kNumbers<E>, K, units);
        for (; k < k1; ++k)
          for (int64_t j = 0; j < lanes; ++j)
            out[k * to.row + g * to.vector + j] =
                j < units ? operand<E>(gate + j * K, k * kNumbers<E>, K) : E{};
      }
    }
  }

  // Packs as many operands as there are lanes, of one gate, into vectors that are `distance` apart.
  // It prefetches the operands that follow the 64 being packed: hardware does not see that far
  // along so many rows.
  static FASTRNN_INLINE void pack_block(E *out, int64_t distance, const S *w, int64_t K,
                                        int64_t units) {
    Vec<C> row[lanes];  // a pair of bfloat16 numbers moves as a float
    const auto read = [&](int j) { return (Vec<C>)load_operands<E>(w + j * K, 0); };
    if (units == lanes)
      for (int j = 0; j < lanes; ++j) {
        row[j] = read(j);
        __builtin_prefetch(w + j * K + 64 * kNumbers<E>);
      }
    else
      for (int j = 0; j < lanes; ++j) row[j] = j < units ? read(j) : Vec<C>{};
    transpose<C>(row);
    for (int i = 0; i < lanes; ++i)
      memcpy(out + column_in<C>(i) * distance, &row[i], sizeof row[i]);
  }

  // Packs panel p of the sum of both biases into [4][lanes]. The fourth row of a GRU is the
  // recurrent bias of n, which r multiplies.
  static void pack_biases(C *out, const S *b_ih, const S *b_hh, int64_t H, int64_t p) {
    const int64_t units = H - p * lanes < lanes ? H - p * lanes : lanes;
    for (int g = 0; g < 4; ++g) {
      Vec<C> sum{};
      if (b_ih) {
        const bool recurrent = !Cell::kHasCell && g == 3;
        if (!recurrent) sum += load_n(b_ih + g * H + p * lanes, units);
        if (Cell::kHasCell || g != 2)
          sum += load_n(b_hh + (recurrent ? 2 : g) * H + p * lanes, units);
      }
      store(out + g * lanes, sum);
    }
  }

  // Readies acc, which holds biases and input products of R rows, for the recurrent product. For a
  // GRU, the input's part of n moves to input_n and acc[2] becomes the recurrent bias.
  template <int R>
  static FASTRNN_INLINE void part_input(Vec<C> (&acc)[R][G], C (&input_n)[R][lanes],
                                        const C *bias) {
    if constexpr (!Cell::kHasCell) {
      for (int i = 0; i < R; ++i) {
        store(input_n[i], acc[i][2]);
        acc[i][2] = load(bias + 3 * lanes);
      }
    }
  }

  // The first part of the cell's arithmetic for one row, given its sums: see cells.h.
  static FASTRNN_INLINE void open(const Vec<C> (&acc)[G], const C (&input_n)[lanes], Vec<C> &c,
                                  Vec<C> (&gate)[4]) {
    gate[0] = acc[0];
    gate[1] = acc[1];
    if constexpr (Cell::kHasCell) {
      gate[2] = acc[2];
      gate[3] = acc[3];
    } else {
      gate[2] = load(input_n);
      gate[3] = acc[2];
    }
    Cell::open(gate, c);
  }
};

// All weights of a layer as the forward kernels read them.
template <class Cell, class S>
struct PackedWeights {
  using C = Compute<S>;
  using E = Operand<S>;
  static constexpr int G = Cell::kGates, lanes = kLanes<C>;

  PackedWeights(char *block, int64_t H, int64_t I) {
    Arena arena(block);
    const int64_t panels = (H + lanes - 1) / lanes;
    bias = arena.take<C>(panels * 4 * lanes);
    w_ih = arena.take<E>(panels * Panel<Cell, S>::packed_size(I));
    w_hh = arena.take<E>(panels * Panel<Cell, S>::packed_size(H));
    bytes = arena.used();
  }

  // See Kernel::prepack.
  static size_t prepack(const fastrnn_problem &p, const fastrnn_forward_arrays *a, char *block) {
    const int64_t H = p.hidden_size, I = p.input_size;
    const PackedWeights to(block, H, I);
    for (int64_t panel = 0; block && panel * lanes < H; ++panel) {
      const auto source = [](const void *data) { return static_cast<const S *>(data); };
      Panel<Cell, S>::pack_biases(to.bias + panel * 4 * lanes, source(a->b_ih), source(a->b_hh), H,
                                  panel);
      const auto pack = [&](E *packed, const void *w, int64_t K) {
        using CellPanel = Panel<Cell, S>;
        CellPanel::pack_weights(packed + panel * CellPanel::packed_size(K), source(w), H, K, panel);
      };
      pack(to.w_ih, a->w_ih, I);
      pack(to.w_hh, a->w_hh, H);
    }
    return to.bytes;
  }

  C *bias;
  E *w_ih, *w_hh;
  size_t bytes;
};

}  // namespace fastrnn::FASTRNN_LEVEL

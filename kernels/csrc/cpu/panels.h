// Packs weights into panels, and computes a step for a few rows in one panel. A panel is one vector
// of hidden units with all its gates.
#pragma once

#include "activations.h"
#include "product.h"

#include "../cells.h"

namespace fastrnn::FASTRNN_LEVEL {

template <class Cell, class S>
struct Panel {
  using C = Compute<S>;
  static constexpr int G = Cell::kGates, lanes = kLanes<C>;

  // Packs panel p of a matrix [G*H, K] into [K][G][lanes]; units beyond H are zero. It takes
  // sixteen columns at a time so that the cache lines being written stay in the L1 cache.
  static void pack_weights(C *out, const S *w, int64_t H, int64_t K, int64_t p) {
    const int64_t units = H - p * lanes < lanes ? H - p * lanes : lanes;
    for (int64_t k0 = 0; k0 < K; k0 += 16) {
      const int64_t k1 = k0 + 16 < K ? k0 + 16 : K;
      for (int g = 0; g < G; ++g) {
        for (int64_t j = 0; j < units; ++j) {
          const S *row = w + (g * H + p * lanes + j) * K;
          for (int64_t k = k0; k < k1; ++k) out[(k * G + g) * lanes + j] = widen(row[k]);
        }
        for (int64_t j = units; j < lanes; ++j)
          for (int64_t k = k0; k < k1; ++k) out[(k * G + g) * lanes + j] = 0;
      }
    }
  }

  // Packs panel p of the sum of both biases into [4][lanes]. The fourth row of a GRU is the
  // recurrent bias of n, which r multiplies.
  static void pack_biases(C *out, const S *b_ih, const S *b_hh, int64_t H, int64_t p) {
    for (int g = 0; g < 4; ++g) {
      for (int64_t j = 0; j < lanes; ++j) {
        const int64_t unit = p * lanes + j;
        C sum = 0;
        if (b_ih && unit < H) {
          if (g < G) sum += widen(b_ih[g * H + unit]);
          if (Cell::kHasCell || g < 2) sum += widen(b_hh[g * H + unit]);
          if (!Cell::kHasCell && g == 3) sum = widen(b_hh[2 * H + unit]);
        }
        out[g * lanes + j] = sum;
      }
    }
  }

  // Adds the recurrent product of R rows to acc, which holds biases and input products. For a GRU,
  // the input's part of n moves to input_n and acc[2] becomes the recurrent part.
  template <int R>
  static FASTRNN_INLINE void recur(Vec<C> (&acc)[R][G], C (&input_n)[R][lanes], const C *bias,
                                   Lhs<C> h, Rhs<C> w, int64_t H) {
    if constexpr (!Cell::kHasCell) {
      for (int i = 0; i < R; ++i) {
        store(input_n[i], acc[i][2]);
        acc[i][2] = load(bias + 3 * lanes);
      }
    }
    multiply(acc, h, w, H);
  }

  // Returns the new h of one row, given its sums. c: the old cell state on entry, the new one on
  // return. gate: returns the activated gates.
  static FASTRNN_INLINE Vec<C> activate(const Vec<C> (&acc)[G], const C (&input_n)[lanes], Vec<C> h,
                                        Vec<C> &c, Vec<C> (&gate)[4]) {
    gate[0] = acc[0];
    gate[1] = acc[1];
    if constexpr (Cell::kHasCell) {
      gate[2] = acc[2];
      gate[3] = acc[3];
    } else {
      gate[2] = load(input_n);
      gate[3] = acc[2];
    }
    return Cell::forward(gate, h, c);
  }
};

}  // namespace fastrnn::FASTRNN_LEVEL

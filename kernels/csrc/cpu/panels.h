// Weights in panels, and the products and gates of a few rows in one panel: a panel is one vector of
// hidden units with all its gates.
#pragma once

#include "product.h"

#include "../cells.h"

namespace fastrnn::FASTRNN_LEVEL {

template <class Cell, class S>
struct Panel {
  using C = Compute<S>;
  static constexpr int G = Cell::kGates, W = kLanes<C>;

  // Panel p of a matrix [G*H, K], to [K][G][W]; units beyond H are zero. Sixteen columns at a time,
  // so that the lines written stay in the first cache.
  static void pack_weights(C *out, const S *w, int64_t H, int64_t K, int64_t p) {
    const int64_t units = H - p * W < W ? H - p * W : W;
    for (int64_t k0 = 0; k0 < K; k0 += 16) {
      const int64_t k1 = k0 + 16 < K ? k0 + 16 : K;
      for (int g = 0; g < G; ++g) {
        for (int64_t j = 0; j < units; ++j) {
          const S *row = w + (g * H + p * W + j) * K;
          for (int64_t k = k0; k < k1; ++k) out[(k * G + g) * W + j] = widen(row[k]);
        }
        for (int64_t j = units; j < W; ++j)
          for (int64_t k = k0; k < k1; ++k) out[(k * G + g) * W + j] = 0;
      }
    }
  }

  // Panel p of both biases, to [4][W]. A GRU's fourth is the recurrent half of n, which r multiplies.
  static void pack_biases(C *out, const S *b_ih, const S *b_hh, int64_t H, int64_t p) {
    for (int g = 0; g < 4; ++g) {
      for (int64_t j = 0; j < W; ++j) {
        const int64_t unit = p * W + j;
        C sum = 0;
        if (b_ih && unit < H) {
          if (g < G) sum += widen(b_ih[g * H + unit]);
          if (Cell::kHasCell || g < 2) sum += widen(b_hh[g * H + unit]);
          if (!Cell::kHasCell && g == 3) sum = widen(b_hh[2 * H + unit]);
        }
        out[g * W + j] = sum;
      }
    }
  }

  // R rows' sums of biases and input products become those of the whole step; a GRU's n keeps the
  // input's part apart, in input_n.
  template <int R>
  static FASTRNN_INLINE void recur(Vec<C> (&acc)[R][G], C (&input_n)[R][W], const C *bias, Left<C> h,
                                   Right<C> w, int64_t H) {
    if constexpr (!Cell::kHasCell) {
      for (int i = 0; i < R; ++i) {
        store(input_n[i], acc[i][2]);
        acc[i][2] = load(bias + 3 * W);
      }
    }
    multiply(acc, h, w, H);
  }

  // One row's new state from its sums; c: in the old cell state, out the new; gate: activated.
  static FASTRNN_INLINE Vec<C> activate(const Vec<C> (&acc)[G], const C (&input_n)[W], Vec<C> h,
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

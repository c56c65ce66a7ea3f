// A stack of layers as a model of binary pixels: read or draw a pixel, step every layer, and take the
// next pixel's logit from the last state. A thread runs a block of sequences from its first step to
// its last without a meeting; the block's states stay in cache, and no layer's output is written.
#pragma once

#include "job.h"
#include "panels.h"

namespace fastrnn::FASTRNN_LEVEL {

template <class Cell>
class Pixels {
  using C = float;
  using Panels = Panel<Cell, C>;
  static constexpr int G = Panels::G, W = Panels::W, kTile = tile_rows(G);

 public:
  static PixelScratch scratch(const fastrnn_pixel_problem &p) {
    const Pixels sizes(p, nullptr, nullptr, nullptr);
    return {sizeof(C) * size_t(sizes.P * W + p.layers * sizes.weight_slot()),
            sizeof(C) * size_t(p.layers * sizes.state_slot() + 2 * kPixelRows)};
  }

  static void pack(const fastrnn_pixel_problem &p, const fastrnn_pixel_arrays &a, char *weights) {
    Pixels(p, &a, weights, nullptr).pack();
  }

  // The sequences from first on, at most kPixelRows of them.
  static void run(const fastrnn_pixel_problem &p, const fastrnn_pixel_arrays &a, char *weights,
                  char *block, int64_t first, int64_t count) {
    Pixels(p, &a, weights, block).run(first, count);
  }

 private:
  Pixels(const fastrnn_pixel_problem &p, const fastrnn_pixel_arrays *a, char *weights, char *block)
      : a_(a), lengths_(p.lengths), L(p.layers), T(p.steps), B(p.batch), H(p.hidden_size),
        P((H + W - 1) / W), head_(reinterpret_cast<C *>(weights)),
        states_(reinterpret_cast<C *>(block)) {}

  // Each layer has as much room as one that reads states.
  int64_t weight_slot() const { return P * (2 * H * G + 4) * W; }
  int64_t state_slot() const { return 3 * kPixelRows * P * W; }

  int64_t inputs(int64_t l) const { return l ? H : 1; }
  int64_t lanes(int64_t p) const { return H - p * W < W ? H - p * W : W; }
  C *w_hh(int64_t l) const { return head_ + P * W + l * weight_slot(); }  // [P][H][G][W]
  C *w_ih(int64_t l) const { return w_hh(l) + P * H * G * W; }            // [P][inputs][G][W]
  C *bias(int64_t l) const { return w_ih(l) + P * H * G * W; }            // [P][4][W]
  C *h(int64_t l, int64_t step) const {                                   // [kPixelRows][P * W]
    return states_ + l * state_slot() + (step & 1) * kPixelRows * P * W;
  }
  C *c(int64_t l) const { return states_ + l * state_slot() + 2 * kPixelRows * P * W; }
  C *logit() const { return states_ + L * state_slot(); }  // [kPixelRows]
  C *pixel() const { return logit() + kPixelRows; }        // [kPixelRows]

  void pack() const {
    for (int64_t l = 0; l < L; ++l) {
      const float *const *w = a_->weights + 4 * l;
      for (int64_t p = 0; p < P; ++p) {
        Panels::pack_weights(w_ih(l) + p * inputs(l) * G * W, w[0], H, inputs(l), p);
        Panels::pack_weights(w_hh(l) + p * H * G * W, w[1], H, H, p);
        Panels::pack_biases(bias(l) + p * 4 * W, w[2], w[3], H, p);
      }
    }
    for (int64_t p = 0; p < P; ++p) store(head_ + p * W, load_n(a_->head_weight + p * W, lanes(p)));
  }

  void run(int64_t first, int64_t count) {
    memset(states_, 0, sizeof(C) * size_t(L * state_slot() + 2 * kPixelRows));
    for (int64_t b = 0; b < count; ++b) {
      logit()[b] = a_->logit[first + b];
      copy_states(0, first, b, [](C *ours, float *theirs, int64_t n) {
        store(ours, load_n(theirs, n));
      });
    }
    for (int64_t t = 0, running = count;; ++t) {
      for (; running && length(first + running - 1) == t; --running) {
        const int64_t b = running - 1;
        a_->logit[first + b] = logit()[b];
        copy_states(t, first, b, [](C *ours, float *theirs, int64_t n) {
          store_n(theirs, load(ours), n);
        });
      }
      if (!running) return;
      next_pixels(t, first, running);
      for (int64_t l = 0; l < L; ++l) step(l, t, running);
      next_logits(t, first, running);
    }
  }

  int64_t length(int64_t b) const { return lengths_ ? lengths_[b] : T; }

  // The states of a block's row b at a step, and where the caller has them.
  template <class F>
  void copy_states(int64_t step, int64_t first, int64_t b, F &&copy) const {
    for (int64_t l = 0; l < L; ++l) {
      for (int64_t p = 0; p < P; ++p) {
        const int64_t ours = (b * P + p) * W, theirs = (l * B + first + b) * H + p * W;
        copy(h(l, step) + ours, a_->h + theirs, lanes(p));
        if constexpr (Cell::kHasCell) copy(c(l) + ours, a_->c + theirs, lanes(p));
      }
    }
  }

  void next_pixels(int64_t t, int64_t first, int64_t running) const {
    for (int64_t b = 0; b < running; ++b) {
      const int64_t at = (first + b) * T + t;
      if (a_->thresholds) a_->pixels[at] = logit()[b] > a_->thresholds[at];
      pixel()[b] = a_->pixels[at];
    }
  }

  void step(int64_t l, int64_t t, int64_t running) const {
    const Left<C> x = l ? Left<C>{h(l - 1, t + 1), P * W} : Left<C>{pixel(), 1};
    for (int64_t p = 0; p < P; ++p)
      for_tiles<kTile>(running, [&](auto rows, int64_t b) {
        tile<decltype(rows)::value>(l, t, p, b, x.from(b, 0));
      });
  }

  template <int R>
  __attribute__((noinline)) void tile(int64_t l, int64_t t, int64_t p, int64_t b, Left<C> x) const {
    Vec<C> acc[R][G];
    C input_n[R][W];
    const C *biases = bias(l) + p * 4 * W, *old = h(l, t);
    for (int i = 0; i < R; ++i)
      for (int g = 0; g < G; ++g) acc[i][g] = load(biases + g * W);
    const int64_t depth = inputs(l);
    multiply(acc, x, Right<C>{w_ih(l) + p * depth * G * W, G * W, W}, depth);
    Panels::template recur<R>(acc, input_n, biases, Left<C>{old + b * P * W, P * W},
                              Right<C>{w_hh(l) + p * H * G * W, G * W, W}, H);
    for (int i = 0; i < R; ++i) {
      const int64_t state = ((b + i) * P + p) * W;
      Vec<C> gate[4], cell{};
      if constexpr (Cell::kHasCell) cell = load(c(l) + state);
      store(h(l, t + 1) + state,
            Panels::activate(acc[i], input_n[i], load(old + state), cell, gate));
      if constexpr (Cell::kHasCell) store(c(l) + state, cell);
    }
  }

  void next_logits(int64_t t, int64_t first, int64_t running) const {
    const C *last = h(L - 1, t + 1);
    for (int64_t b = 0; b < running; ++b) {
      Vec<C> products{};
      for (int64_t p = 0; p < P; ++p)
        products += load(last + (b * P + p) * W) * load(head_ + p * W);
      C sum = *a_->head_bias;
      for (int j = 0; j < W; ++j) sum += products[j];
      logit()[b] = a_->logits[(first + b) * T + t] = sum;
    }
  }

  const fastrnn_pixel_arrays *a_;
  const int64_t *lengths_;
  const int64_t L, T, B, H, P;
  C *head_, *states_;  // the weights' and the block's scratch; the head's weights stand first
};

}  // namespace fastrnn::FASTRNN_LEVEL

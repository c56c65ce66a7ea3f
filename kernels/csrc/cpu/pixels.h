// A stack of layers as a model of binary pixels. Each step reads or draws a pixel, runs every
// layer, and computes the logit of the next pixel from the last state. A thread runs a block of
// sequences from the first step to the last without a barrier. The states of the block stay in
// cache, and the outputs of the layers are not stored.
#pragma once

#include "job.h"
#include "panels.h"

namespace fastrnn::FASTRNN_LEVEL {

template <class Cell>
class Pixels {
  using C = float;
  using CellPanel = Panel<Cell, C>;
  static constexpr int G = CellPanel::G, lanes = CellPanel::lanes, kTile = tile_rows(G);

 public:
  static PixelScratch scratch(const fastrnn_pixel_problem &p) {
    const Pixels sizes(p, nullptr, nullptr, nullptr);
    return {sizeof(C) * size_t(sizes.panels_ * lanes + p.layers * sizes.weight_slot()),
            sizeof(C) * size_t(p.layers * sizes.state_slot() + 2 * kPixelRows)};
  }

  static void pack(const fastrnn_pixel_problem &p, const fastrnn_pixel_arrays &a, char *weights) {
    Pixels(p, &a, weights, nullptr).pack();
  }

  // Runs `count` sequences, at most kPixelRows, starting with `first`.
  static void run(const fastrnn_pixel_problem &p, const fastrnn_pixel_arrays &a, char *weights,
                  char *block, int64_t first, int64_t count) {
    Pixels(p, &a, weights, block).run(first, count);
  }

 private:
  Pixels(const fastrnn_pixel_problem &p, const fastrnn_pixel_arrays *a, char *weights, char *block)
      : arrays_(a), lengths_(p.lengths), L(p.layers), T(p.steps), B(p.batch), H(p.hidden_size),
        panels_((H + lanes - 1) / lanes), head_(reinterpret_cast<C *>(weights)),
        states_(reinterpret_cast<C *>(block)) {}

  // Every layer gets as much memory as one that reads states, even the first, which reads pixels.
  int64_t weight_slot() const { return panels_ * (2 * H * G + 4) * lanes; }
  int64_t state_slot() const { return 3 * kPixelRows * panels_ * lanes; }

  int64_t inputs(int64_t l) const { return l ? H : 1; }
  int64_t units_in(int64_t p) const { return H - p * lanes < lanes ? H - p * lanes : lanes; }
  // Where a layer's packed panels begin, see Panel::rhs.
  C *w_hh(int64_t l) const { return head_ + panels_ * lanes + l * weight_slot(); }
  C *w_ih(int64_t l) const { return w_hh(l) + panels_ * H * G * lanes; }
  C *bias(int64_t l) const { return w_ih(l) + panels_ * H * G * lanes; }  // [panels][4][lanes]
  C *h(int64_t l, int64_t step) const {  // [kPixelRows][panels * lanes]
    return states_ + l * state_slot() + (step & 1) * kPixelRows * panels_ * lanes;
  }
  C *c(int64_t l) const { return states_ + l * state_slot() + 2 * kPixelRows * panels_ * lanes; }
  C *logit() const { return states_ + L * state_slot(); }  // [kPixelRows]
  C *pixel() const { return logit() + kPixelRows; }        // [kPixelRows]

  void pack() const {
    for (int64_t l = 0; l < L; ++l) {
      const float *const *w = arrays_->weights + 4 * l;
      for (int64_t p = 0; p < panels_; ++p) {
        CellPanel::pack_weights(w_ih(l) + p * inputs(l) * G * lanes, w[0], H, inputs(l), p);
        CellPanel::pack_weights(w_hh(l) + p * H * G * lanes, w[1], H, H, p);
        CellPanel::pack_biases(bias(l) + p * 4 * lanes, w[2], w[3], H, p);
      }
    }
    for (int64_t p = 0; p < panels_; ++p)
      store(head_ + p * lanes, load_n(arrays_->head_weight + p * lanes, units_in(p)));
  }

  void run(int64_t first, int64_t count) {
    memset(states_, 0, sizeof(C) * size_t(L * state_slot() + 2 * kPixelRows));
    for (int64_t b = 0; b < count; ++b) {
      logit()[b] = arrays_->logit[first + b];
      copy_states(0, first, b,
                  [](C *ours, float *theirs, int64_t n) { store(ours, load_n(theirs, n)); });
    }
    for (int64_t t = 0, running = count;; ++t) {
      for (; running && length(first + running - 1) == t; --running) {
        const int64_t b = running - 1;
        arrays_->logit[first + b] = logit()[b];
        copy_states(t, first, b,
                    [](C *ours, float *theirs, int64_t n) { store_n(theirs, load(ours), n); });
      }
      if (!running) return;
      next_pixels(t, first, running);
      for (int64_t l = 0; l < L; ++l) step(l, t, running);
      next_logits(t, first, running);
    }
  }

  int64_t length(int64_t b) const { return lengths_ ? lengths_[b] : T; }

  // Calls copy(address in the block, caller's address, size) for the states of row b of the block.
  template <class F>
  void copy_states(int64_t step, int64_t first, int64_t b, F &&copy) const {
    for (int64_t l = 0; l < L; ++l) {
      for (int64_t p = 0; p < panels_; ++p) {
        const int64_t ours = (b * panels_ + p) * lanes,
                      theirs = (l * B + first + b) * H + p * lanes;
        copy(h(l, step) + ours, arrays_->h + theirs, units_in(p));
        if constexpr (Cell::kHasCell) copy(c(l) + ours, arrays_->c + theirs, units_in(p));
      }
    }
  }

  void next_pixels(int64_t t, int64_t first, int64_t running) const {
    for (int64_t b = 0; b < running; ++b) {
      const int64_t at = (first + b) * T + t;
      if (arrays_->thresholds) arrays_->pixels[at] = logit()[b] > arrays_->thresholds[at];
      pixel()[b] = arrays_->pixels[at];
    }
  }

  void step(int64_t l, int64_t t, int64_t running) const {
    const Lhs<C> x = l ? Lhs<C>{h(l - 1, t + 1), panels_ * lanes} : Lhs<C>{pixel(), 1};
    for (int64_t p = 0; p < panels_; ++p)
      for_tiles<kTile>(running, [&](auto rows, int64_t b) {
        tile<decltype(rows)::value>(l, t, p, b, x.from(b, 0));
      });
  }

  template <int R>
  __attribute__((noinline)) void tile(int64_t l, int64_t t, int64_t p, int64_t b, Lhs<C> x) const {
    Vec<C> acc[R][G];
    C input_n[R][lanes];
    const C *biases = bias(l) + p * 4 * lanes, *old = h(l, t);
    for (int i = 0; i < R; ++i)
      for (int g = 0; g < G; ++g) acc[i][g] = load(biases + g * lanes);
    const int64_t depth = inputs(l);
    multiply(acc, x, CellPanel::rhs(w_ih(l) + p * depth * G * lanes, depth), depth);
    CellPanel::template part_input<R>(acc, input_n, biases);
    multiply(acc, Lhs<C>{old + b * panels_ * lanes, panels_ * lanes},
             CellPanel::rhs(w_hh(l) + p * H * G * lanes, H), H);
    Vec<C> cell[R], gate[R][4];
    for (int i = 0; i < R; ++i) {
      if constexpr (Cell::kHasCell) cell[i] = load(c(l) + ((b + i) * panels_ + p) * lanes);
      CellPanel::open(acc[i], input_n[i], cell[i], gate[i]);
    }
    for (int i = 0; i < R; ++i) {
      const int64_t state = ((b + i) * panels_ + p) * lanes;
      store(h(l, t + 1) + state, Cell::close(gate[i], load(old + state), cell[i]));
      if constexpr (Cell::kHasCell) store(c(l) + state, cell[i]);
    }
  }

  void next_logits(int64_t t, int64_t first, int64_t running) const {
    const C *last = h(L - 1, t + 1);
    for (int64_t b = 0; b < running; ++b) {
      Vec<C> products{};
      for (int64_t p = 0; p < panels_; ++p)
        products += load(last + (b * panels_ + p) * lanes) * load(head_ + p * lanes);
      C sum = *arrays_->head_bias;
      for (int j = 0; j < lanes; ++j) sum += products[j];
      logit()[b] = arrays_->logits[(first + b) * T + t] = sum;
    }
  }

  const fastrnn_pixel_arrays *arrays_;
  const int64_t *lengths_;
  const int64_t L, T, B, H, panels_;
  C *head_, *states_;  // scratch for weights, starting with those of the head; scratch of the block
};

}  // namespace fastrnn::FASTRNN_LEVEL

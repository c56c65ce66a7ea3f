// One layer in one direction, backward through time.
//
// Steps are processed in chunks. Within a chunk, each step turns the gradient of h into gate
// gradients, which are the gradients before the activations, and multiplies them by the recurrent
// weights. The gate gradients stay in scratch memory, in cache, until the end of the chunk. There
// the gradients of weights, biases and input are computed as products over all rows of the chunk.
//
// With a projection, h is W_hr m, and a step begins with the gradient of m.
#pragma once

#include <algorithm>

#include "activations.h"
#include "weight_gradients.h"

#include "../cells.h"

namespace fastrnn::FASTRNN_LEVEL {

template <class Cell, class S>
class Backward : WeightGradients<Cell, S> {
  using Base = WeightGradients<Cell, S>;
  using typename Base::C;
  using typename Base::D;
  using typename Base::E;
  using Base::arrays_, Base::batch_begin_, Base::batch_end_, Base::chunk_steps_, Base::column_,
      Base::columns_, Base::dc_, Base::dh_, Base::dm_, Base::features_in, Base::G, Base::group_,
      Base::H, Base::I, Base::input_panels_, Base::job_, Base::kBlocks, Base::kInputBlock,
      Base::kJoinsRows, Base::lanes, Base::ld_d_, Base::ld_h_, Base::ld_m_, Base::ld_x_, Base::own_,
      Base::P, Base::packs_, Base::padded_hidden_, Base::padded_input_, Base::padded_state_,
      Base::panel_begin_, Base::panel_end_, Base::projects_, Base::recurs_, Base::rows,
      Base::state_begin_, Base::state_end_, Base::thread_, Base::units_in, Base::walk_, Base::w_hh_,
      Base::w_hr_, Base::w_ih_, Base::clear, Base::features, Base::first_feature, Base::first_unit,
      Base::store_joined, Base::store_weights, Base::units, Base::w_hr, Base::weight_gradients;

 public:
  static size_t scratch(const Job &job) { return Backward(job, 0, nullptr).used_; }
  static void run(const Job &job, int thread) { Backward(job, thread, job.scratch).run(); }

 private:
  using Base::Base;

  void run() {
    if (packs_) pack();
    load_states();
    clear();
    this->barrier_all();
    for (int64_t end = walk_.steps; end > 0;) {
      const int64_t first = end > chunk_steps_ ? end - chunk_steps_ : 0;
      int64_t n = 0;
      for (int64_t s = end - 1; s >= first; --s) n += step(s, n);
      weight_gradients(n, end == walk_.steps);
      if (arrays_.dx) input_gradients(n);
      this->barrier_group();  // the next chunk overwrites what other threads may still read
      end = first;
    }
    store_states();
    this->barrier_all();
    store_weights();
  }

  // Packs w_hh and w_ih into [columns / lanes][G][depth][lanes], and w_hr into
  // [H / lanes][P][lanes]. Operand k of a column is multiplied by operand k of a row of gradients.
  // The blocks of w_hh go into the order of the gate gradients.
  void pack() {
    const S *w_hh = static_cast<const S *>(arrays_.w_hh);
    const S *w_ih = static_cast<const S *>(arrays_.w_ih);
    const int64_t depth = operands<E>(H);
    for (int g = 0; g < G; ++g) {
      const int64_t at = g * depth * lanes;
      if (recurs_) pack(w_hh_ + at, G * depth, w_hh + Cell::recurrent_block(g) * H * P, H, P);
      if (arrays_.dx) pack(w_ih_ + at, G * depth, w_ih + g * H * I, H, I);
    }
    if (projects_) pack(w_hr_, P, w_hr(), P, H);
  }

  // Packs this thread's share of a matrix [rows, width] into panels of one vector, which begin
  // `distance` vectors apart. It takes a few panels at a time, so that it reads whole cache lines.
  template <class To>
  void pack(To *out, int64_t distance, const S *w, int64_t rows, int64_t width) const {
    constexpr int64_t kPanels = 8;
    const int64_t panels = (width + lanes - 1) / lanes, threads = job_.grid.threads();
    const int64_t last = panels * (thread_ + 1) / threads;
    for (int64_t p = panels * thread_ / threads; p < last; p += kPanels) {
      const int64_t end = std::min(p + kPanels, last);
      for (int64_t k = 0; k < operands<To>(rows); ++k) {
        const S *row = w + k * kNumbers<To> * width;
        const S *next = (k + 1) * kNumbers<To> <= rows ? row + width : nullptr;
        for (int64_t q = p; q < end; ++q)
          store_joined(out + (q * distance + k) * lanes, row, next, q * lanes, width);
      }
    }
  }

  void load_states() {
    const S *dh_n = static_cast<const S *>(arrays_.dh_n),
            *dc_n = static_cast<const S *>(arrays_.dc_n);
    for (int64_t b = batch_begin_; b < batch_end_; ++b) {
      for (int64_t q = state_begin_; q < state_end_; ++q)
        store(dh_ + b * padded_state_ + q * lanes,
              load_n(dh_n + b * P + q * lanes, features_in(q)));
      if constexpr (Cell::kHasCell)
        for (int64_t p = panel_begin_; p < panel_end_; ++p)
          store(dc_ + b * padded_hidden_ + p * lanes,
                load_n(dc_n + b * H + p * lanes, units_in(p)));
    }
  }

  void store_states() const {
    S *dh0 = static_cast<S *>(arrays_.dh0), *dc0 = static_cast<S *>(arrays_.dc0);
    for (int64_t b = batch_begin_; b < batch_end_; ++b) {
      for (int64_t q = state_begin_; q < state_end_ && dh0; ++q)
        store_n(dh0 + b * P + q * lanes, load(dh_ + b * padded_state_ + q * lanes), features_in(q));
      if constexpr (Cell::kHasCell)
        for (int64_t p = panel_begin_; p < panel_end_ && dc0; ++p)
          store_n(dc0 + b * H + p * lanes, load(dc_ + b * padded_hidden_ + p * lanes), units_in(p));
    }
  }

  // Computes step s; its rows follow the n rows that the chunk already holds. Returns their number.
  int64_t step(int64_t s, int64_t n) {
    const int64_t t = walk_.time(s), count = rows(t), ran = this->clip(walk_.continued(s));
    const int64_t row = walk_.offset(t) + batch_begin_;
    const int64_t before = s > 0 ? walk_.offset(walk_.time(s - 1)) + batch_begin_ : 0;
    const S *y = static_cast<const S *>(arrays_.y), *h0 = static_cast<const S *>(arrays_.h0);
    if constexpr (!kJoinsRows) {
      this->widen_rows(own_.h + n * ld_h_, ld_h_, y + before * P, P, ran);
      this->widen_rows(own_.h + (n + ran) * ld_h_, ld_h_, h0 + (batch_begin_ + ran) * P, P,
                       count - ran);
      this->widen_rows(own_.x + n * ld_x_, ld_x_, static_cast<const S *>(arrays_.x) + row * I, I,
                       count);
    }
    if (projects_) projected_gradients(row, n, count);
    for (int64_t r = 0; r < count; ++r) {
      own_.row[n + r] = row + r;
      const S *c = nullptr;  // the cell state before the step
      if constexpr (Cell::kHasCell)
        c = r < ran ? static_cast<const S *>(arrays_.cells) + (before + r) * H
                    : static_cast<const S *>(arrays_.c0) + (batch_begin_ + r) * H;
      const S *h = r < ran ? y + (before + r) * P : h0 + (batch_begin_ + r) * P;
      if constexpr (kJoinsRows) own_.h_row[n + r] = h;
      pointwise(row + r, batch_begin_ + r, h, c, n + r);
    }
    this->barrier_group();
    // What the product adds to the other rows is needed for dh0 only.
    const int64_t products = arrays_.dh0 ? count : ran;
    if (!products) return count;
    C *dh = dh_ + batch_begin_ * padded_state_ + first_feature();
    const D *d = group_.d + n * ld_d_;
    if (!packs_) {
      for (int g = 0; g < G; ++g)
        add_few_rows(dh, padded_state_, d + g * padded_hidden_, ld_d_,
                     static_cast<const S *>(arrays_.w_hh) + Cell::recurrent_block(g) * H * P +
                         first_feature(),
                     P, products, features(), H);
      return count;
    }
    add_weighted(dh, padded_state_, true, d, w_hh_, state_begin_, products,
                 state_end_ - state_begin_);
    return count;
  }

  // out = d times panels of packed weights from panel `first` on, or adds that to out. The rows of
  // d begin at the first of the G blocks that the weights belong to.
  void add_weighted(C *out, int64_t ld, bool accumulate, const D *d, const E *packed, int64_t first,
                    int64_t rows, int64_t panels) const {
    const int64_t depth = operands<E>(H), panel_size = G * depth * lanes;
    Product<E, false>{out,
                      ld,
                      accumulate,
                      {reinterpret_cast<const E *>(d), ld_d_ / kNumbers<E>},
                      {packed + first * panel_size, lanes, panel_size},
                      rows,
                      panels,
                      depth,
                      lanes,
                      G,
                      padded_hidden_ / kNumbers<E>,
                      depth * lanes}
        .run();
  }

  // Adds dy to dh_ and multiplies the sum by w_hr, which gives the gradients of a step's m. The sum
  // is kept for the gradient of w_hr. The step's rows begin at `row`, and at n in the chunk.
  void projected_gradients(int64_t row, int64_t n, int64_t count) const {
    const S *dy = static_cast<const S *>(arrays_.dy);
    for (int64_t r = 0; r < count; ++r)
      for (int64_t q = state_begin_; q < state_end_; ++q) {
        C *carried = dh_ + (batch_begin_ + r) * padded_state_ + q * lanes;
        Vec<C> dh = load(carried);
        if (dy) dh += load_n(dy + (row + r) * P + q * lanes, features_in(q));
        store(group_.dh + (n + r) * ld_h_ + q * lanes, dh);
        store(carried, Vec<C>{});
      }
    this->barrier_group();
    C *dm = dm_ + batch_begin_ * padded_hidden_ + first_unit();
    const Lhs<C> dh{group_.dh + n * ld_h_, ld_h_};
    const int64_t panels = panel_end_ - panel_begin_;
    if (packs_) {
      const Rhs<C> w{w_hr_ + panel_begin_ * P * lanes, lanes, P * lanes};
      Product<C, false>{dm, padded_hidden_, false, dh, w, count, panels, P}.run();
      return;
    }
    for (int64_t r = 0; r < count; ++r)
      memset(dm + r * padded_hidden_, 0, size_t(panels * lanes) * sizeof(C));
    add_few_rows(dm, padded_hidden_, dh.data, ld_h_, w_hr() + first_unit(), H, count, units(), P);
  }

  // Computes the gate gradients of one row, which is row n of the chunk. On entry dh_ and dc_ hold
  // the gradients of the new state (with a projection, dm_ holds those of m); on return, those of
  // the old state, except for the recurrent product.
  void pointwise(int64_t row, int64_t b, const S *h_old, const S *c_old, int64_t n) const {
    D *d = group_.d + n * ld_d_;
    C *carried = (projects_ ? dm_ : dh_) + b * padded_hidden_;
    for (int64_t p = panel_begin_; p < panel_end_; ++p) {
      const int64_t units = units_in(p), unit = p * lanes;
      Vec<C> gate[4], gradient[4], h{}, c{}, c_new{}, dc{};
      const S *gates = static_cast<const S *>(arrays_.gates) + this->gates_at(row, p);
      for (int g = 0; g < 4; ++g) gate[g] = load_n(gates + g * units, units);
      if constexpr (Cell::kHasCell) {
        c = load_n(c_old + unit, units);
        c_new = load_n(static_cast<const S *>(arrays_.cells) + row * H + unit, units);
        dc = load(dc_ + b * padded_hidden_ + unit);
      } else {
        h = load_n(h_old + unit, units);
      }
      if (projects_) store(group_.m + n * ld_m_ + unit, gate[3] * tanh(c_new));
      Vec<C> dh = load(carried + unit);
      if (arrays_.dy && !projects_)
        dh += load_n(static_cast<const S *>(arrays_.dy) + row * H + unit, units);
      Cell::backward(gate, h, c, c_new, dh, dc, gradient);
      for (int g = 0; g < kBlocks; ++g) store(d + g * padded_hidden_ + unit, gradient[g]);
      store(carried + unit, dh);
      if constexpr (Cell::kHasCell) store(dc_ + b * padded_hidden_ + unit, dc);
    }
  }

  void input_gradients(int64_t n) {
    const int64_t from = n * column_ / columns_, to = n * (column_ + 1) / columns_;
    const int64_t ld = ld_d_;
    const D *d = group_.d + from * ld + kInputBlock * padded_hidden_;
    if (packs_)
      add_weighted(own_.dx, padded_input_, false, d, w_ih_, 0, to - from, input_panels_);
    else {
      memset(own_.dx, 0, size_t((to - from) * padded_input_) * sizeof(C));
      for (int g = 0; g < G; ++g)
        add_few_rows(own_.dx, padded_input_, d + g * padded_hidden_, ld,
                     static_cast<const S *>(arrays_.w_ih) + g * H * I, I, to - from, I, H);
    }
    for (int64_t r = from; r < to; ++r)
      for (int64_t p = 0; p < input_panels_; ++p)
        store_n(static_cast<S *>(arrays_.dx) + own_.row[r] * I + p * lanes,
                load(own_.dx + (r - from) * padded_input_ + p * lanes), I - p * lanes);
  }
};

}  // namespace fastrnn::FASTRNN_LEVEL

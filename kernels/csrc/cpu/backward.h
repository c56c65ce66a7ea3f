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
#include "backward_scratch.h"
#include "product.h"

#include "../cells.h"

namespace fastrnn::FASTRNN_LEVEL {

template <class Cell, class S>
class Backward : BackwardScratch<Cell, S> {
  using Base = BackwardScratch<Cell, S>;
  using typename Base::C;
  using Base::arrays_, Base::batch_begin_, Base::batch_end_, Base::chunk_rows_, Base::chunk_steps_,
      Base::column_, Base::columns_, Base::dc_, Base::dh_, Base::dm_, Base::first_group_, Base::G,
      Base::group_, Base::group_distance_, Base::H, Base::I, Base::in_place_, Base::input_panels_,
      Base::job_, Base::kBlocks, Base::kInputBlock, Base::lanes, Base::ld_d_, Base::ld_h_,
      Base::ld_m_, Base::ld_x_, Base::narrow_, Base::own_, Base::P, Base::packs_,
      Base::padded_hidden_, Base::padded_input_, Base::padded_state_, Base::panel_begin_,
      Base::panel_end_, Base::panels_, Base::projects_, Base::recurs_, Base::rows,
      Base::state_begin_, Base::state_end_, Base::state_panels_, Base::thread_, Base::units_in,
      Base::features_in, Base::walk_, Base::w_hh_, Base::w_hr_, Base::w_ih_;

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

  // Packs w_hh and w_ih into [columns / lanes][G*H][lanes], and w_hr into [H / lanes][P][lanes].
  // Row k of a panel is multiplied by element k of a row of gradients. The blocks of w_hh go into
  // the order of the gate gradients.
  void pack() {
    const S *w_hh = static_cast<const S *>(arrays_.w_hh);
    for (int g = 0; g < G && recurs_; ++g)
      pack(w_hh_ + g * H * lanes, G * H, w_hh + Cell::recurrent_block(g) * H * P, H, P);
    if (projects_) pack(w_hr_, P, w_hr(), P, H);
    if (arrays_.dx) pack(w_ih_, G * H, static_cast<const S *>(arrays_.w_ih), G * H, I);
  }

  // Packs this thread's share of a matrix [rows, width] into panels of one vector, which begin
  // `distance` vectors apart. It takes a few panels at a time, so that it reads whole cache lines.
  void pack(C *out, int64_t distance, const S *w, int64_t rows, int64_t width) const {
    constexpr int64_t kPanels = 8;
    const int64_t panels = (width + lanes - 1) / lanes, threads = job_.grid.threads();
    const int64_t last = panels * (thread_ + 1) / threads;
    for (int64_t p = panels * thread_ / threads; p < last; p += kPanels) {
      const int64_t end = std::min(p + kPanels, last);
      for (int64_t k = 0; k < rows; ++k)
        for (int64_t q = p; q < end; ++q)
          store(out + (q * distance + k) * lanes,
                load_n(w + k * width + q * lanes, width - q * lanes));
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

  // Zeroes the sums, a share per thread of the group, and sets the constant parts of scratch.
  void clear() {
    if (!in_place_) clear_share(group_.dw_hh, G * H * padded_state_);
    if (projects_ && !in_place_) clear_share(group_.dw_hr, P * padded_hidden_);
    if (narrow_)
      clear_share(group_.dw_ih, (I + 1) * kBlocks * padded_hidden_);
    else
      clear_share(group_.db, kBlocks * padded_hidden_);
    if (!narrow_ && !in_place_) clear_share(group_.dw_ih, G * H * padded_input_);
    memset(own_.h, 0, size_t(chunk_rows_ * ld_h_) * sizeof(C));
    memset(own_.x, 0, size_t(chunk_rows_ * ld_x_) * sizeof(C));
    for (int64_t r = 0; r < chunk_rows_; ++r) (narrow_ ? own_.x[r * ld_x_ + I] : own_.ones[r]) = 1;
  }
  void clear_share(C *data, int64_t count) const {
    const int64_t from = count * column_ / columns_, to = count * (column_ + 1) / columns_;
    memset(data + from, 0, size_t(to - from) * sizeof(C));
  }

  // Computes step s; its rows follow the n rows that the chunk already holds. Returns their number.
  int64_t step(int64_t s, int64_t n) {
    const int64_t t = walk_.time(s), count = rows(t), ran = this->clip(walk_.continued(s));
    const int64_t row = walk_.offset(t) + batch_begin_;
    const int64_t before = s > 0 ? walk_.offset(walk_.time(s - 1)) + batch_begin_ : 0;
    const S *y = static_cast<const S *>(arrays_.y), *h0 = static_cast<const S *>(arrays_.h0);
    this->widen_rows(own_.h + n * ld_h_, ld_h_, y + before * P, P, ran);
    this->widen_rows(own_.h + (n + ran) * ld_h_, ld_h_, h0 + (batch_begin_ + ran) * P, P,
                     count - ran);
    this->widen_rows(own_.x + n * ld_x_, ld_x_, static_cast<const S *>(arrays_.x) + row * I, I,
                     count);
    if (projects_) projected_gradients(row, n, count);
    for (int64_t r = 0; r < count; ++r) {
      own_.row[n + r] = row + r;
      const S *c = nullptr;  // the cell state before the step
      if constexpr (Cell::kHasCell)
        c = r < ran ? static_cast<const S *>(arrays_.cells) + (before + r) * H
                    : static_cast<const S *>(arrays_.c0) + (batch_begin_ + r) * H;
      pointwise(row + r, batch_begin_ + r, c, n + r);
    }
    this->barrier_group();
    // What the product adds to the other rows is needed for dh0 only.
    const int64_t products = arrays_.dh0 ? count : ran;
    if (!products) return count;
    C *dh = dh_ + batch_begin_ * padded_state_ + first_feature();
    const C *d = group_.d + n * ld_d_;
    if (!packs_) {
      for (int g = 0; g < G; ++g)
        add_product(dh, padded_state_, d + g * padded_hidden_, ld_d_,
                    static_cast<const S *>(arrays_.w_hh) + Cell::recurrent_block(g) * H * P +
                        first_feature(),
                    P, products, features(), H);
      return count;
    }
    Product<C, false>{dh,
                      padded_state_,
                      true,
                      {d, ld_d_},
                      {w_hh_ + state_begin_ * G * H * lanes, lanes, G * H * lanes},
                      products,
                      state_end_ - state_begin_,
                      H,
                      lanes,
                      G,
                      padded_hidden_,
                      H * lanes}
        .run();
    return count;
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
    add_product(dm, padded_hidden_, dh.data, ld_h_, w_hr() + first_unit(), H, count, units(), P);
  }
  const S *w_hr() const { return static_cast<const S *>(job_.w_hr); }

  // Computes the gate gradients of one row, which is row n of the chunk. On entry dh_ and dc_ hold
  // the gradients of the new state (with a projection, dm_ holds those of m); on return, those of
  // the old state, except for the recurrent product.
  void pointwise(int64_t row, int64_t b, const S *c_old, int64_t n) const {
    const C *h_old = own_.h + n * ld_h_;
    C *d = group_.d + n * ld_d_, *carried = (projects_ ? dm_ : dh_) + b * padded_hidden_;
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
        h = load(h_old + unit);
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

  // The part of each gate's hidden units, and of the elements of h, that this thread handles.
  int64_t first_unit() const { return panel_begin_ * lanes; }
  int64_t units() const { return std::min(panel_end_ * lanes, H) - first_unit(); }
  int64_t first_feature() const { return state_begin_ * lanes; }
  int64_t features() const { return std::min(state_end_ * lanes, P) - first_feature(); }

  // Adds the n rows of the chunk to the sums; in place, the first chunk starts them.
  void weight_gradients(int64_t n, bool first) {
    const int64_t unit0 = first_unit(), ld = kBlocks * padded_hidden_;
    if (in_place_)
      add_weights(static_cast<S *>(arrays_.dw_hh), P, static_cast<S *>(arrays_.dw_ih), I,
                  static_cast<S *>(job_.dw_hr), H, n, !first);
    else
      add_weights(group_.dw_hh, padded_state_, group_.dw_ih, padded_input_, group_.dw_hr,
                  padded_hidden_, n, true);
    for (int g = 0; g < kBlocks; ++g) {
      const Rhs<C> d{group_.d + g * padded_hidden_ + unit0, ld_d_, lanes};
      const int64_t panels = panel_end_ - panel_begin_;
      if (narrow_)  // the rows are the inputs and a 1, so one product sums weights and biases
        Product<C, true>{group_.dw_ih + g * padded_hidden_ + unit0,
                         ld,
                         true,
                         {own_.x, ld_x_},
                         d,
                         I + 1,
                         panels,
                         n}
            .run();
      else
        Product<C, true>{
            group_.db + g * padded_hidden_ + unit0, ld, true, {own_.ones, 1}, d, 1, panels, n}
            .run();
    }
  }

  // Adds products over n rows to dw_hh [G*H, P], to dw_ih [G*H, I] unless that is stored
  // transposed, and with a projection to dw_hr [P, H]. Their rows are ld_hh, ld_ih and ld_hr apart.
  // Without `accumulate`, it stores the products instead.
  template <class Out>
  void add_weights(Out *dw_hh, int64_t ld_hh, Out *dw_ih, int64_t ld_ih, Out *dw_hr, int64_t ld_hr,
                   int64_t n, bool accumulate) const {
    const int64_t ld = ld_d_;
    if (projects_)
      Product<C, true, Out>{dw_hr + first_feature() * ld_hr,
                            ld_hr,
                            accumulate,
                            {group_.dh + first_feature(), ld_h_},
                            {group_.m, ld_m_, lanes},
                            features(),
                            panels_,
                            n,
                            ld_hr - (panels_ - 1) * lanes}
          .run();
    const C *d = group_.d + first_unit();
    for (int g = 0; g < G; ++g) {
      const int block = in_place_ ? Cell::recurrent_block(g) : g;
      Product<C, true, Out>{dw_hh + (block * H + first_unit()) * ld_hh,
                            ld_hh,
                            accumulate,
                            {d + g * padded_hidden_, ld},
                            {own_.h, ld_h_, lanes},
                            units(),
                            state_panels_,
                            n,
                            ld_hh - (state_panels_ - 1) * lanes}
          .run();
      if (!narrow_)
        Product<C, true, Out>{dw_ih + (g * H + first_unit()) * ld_ih,
                              ld_ih,
                              accumulate,
                              {d + (kInputBlock + g) * padded_hidden_, ld},
                              {own_.x, ld_x_, lanes},
                              units(),
                              input_panels_,
                              n,
                              ld_ih - (input_panels_ - 1) * lanes}
            .run();
    }
  }

  void input_gradients(int64_t n) {
    const int64_t from = n * column_ / columns_, to = n * (column_ + 1) / columns_;
    const int64_t ld = ld_d_;
    const C *d = group_.d + from * ld + kInputBlock * padded_hidden_;
    if (packs_)
      Product<C, false>{
          own_.dx,        padded_input_, false, {d, ld}, {w_ih_, lanes, G * H * lanes},
          to - from,      input_panels_, H,     lanes,   G,
          padded_hidden_, H * lanes}
          .run();
    else {
      memset(own_.dx, 0, size_t((to - from) * padded_input_) * sizeof(C));
      for (int g = 0; g < G; ++g)
        add_product(own_.dx, padded_input_, d + g * padded_hidden_, ld,
                    static_cast<const S *>(arrays_.w_ih) + g * H * I, I, to - from, I, H);
    }
    for (int64_t r = from; r < to; ++r)
      for (int64_t p = 0; p < input_panels_; ++p)
        store_n(static_cast<S *>(arrays_.dx) + own_.row[r] * I + p * lanes,
                load(own_.dx + (r - from) * padded_input_ + p * lanes), I - p * lanes);
  }

  // Adds up the row groups and stores the results in torch's order of gates. Each thread handles a
  // share of the hidden units.
  void store_weights() const {
    const int threads = job_.grid.threads();
    const int64_t unit0 = H * thread_ / threads, unit1 = H * (thread_ + 1) / threads;
    S *dw_ih = static_cast<S *>(arrays_.dw_ih), *dw_hh = static_cast<S *>(arrays_.dw_hh);
    S *db_ih = static_cast<S *>(arrays_.db_ih), *db_hh = static_cast<S *>(arrays_.db_hh);
    for (int g = 0; g < G; ++g) {
      const int to = Cell::recurrent_block(g);
      for (int64_t k = unit0; k < unit1; ++k) {
        for (int64_t q = 0; q < state_panels_ && !in_place_; ++q)
          store_n(dw_hh + (to * H + k) * P + q * lanes,
                  sum(first_group_.dw_hh + (g * H + k) * padded_state_ + q * lanes),
                  features_in(q));
        const int64_t column = (kInputBlock + g) * padded_hidden_ + k;
        if (narrow_)
          for (int64_t j = 0; j < I; ++j)
            narrow_to(dw_ih + (g * H + k) * I + j,
                      first_group_.dw_ih + j * kBlocks * padded_hidden_ + column);
        else
          for (int64_t p = 0; p < input_panels_ && !in_place_; ++p)
            store_n(dw_ih + (g * H + k) * I + p * lanes,
                    sum(first_group_.dw_ih + (g * H + k) * padded_input_ + p * lanes),
                    I - p * lanes);
        narrow_to(db_ih + g * H + k, first_group_.db + column);
        if (db_hh) narrow_to(db_hh + to * H + k, first_group_.db + g * padded_hidden_ + k);
      }
    }
    if (!projects_ || in_place_) return;
    S *dw_hr = static_cast<S *>(job_.dw_hr);
    for (int64_t k = P * thread_ / threads; k < P * (thread_ + 1) / threads; ++k)
      for (int64_t p = 0; p < panels_; ++p)
        store_n(dw_hr + k * H + p * lanes, sum(first_group_.dw_hr + k * padded_hidden_ + p * lanes),
                units_in(p));
  }
  Vec<C> sum(const C *first) const {
    Vec<C> total = load(first);
    for (int g = 1; g < job_.grid.row_groups; ++g) total += load(first + g * group_distance_);
    return total;
  }
  void narrow_to(S *out, const C *first) const {
    C total = *first;
    for (int g = 1; g < job_.grid.row_groups; ++g) total += first[g * group_distance_];
    store_n(out, splat<Vec<C>>(total), 1);
  }
};

}  // namespace fastrnn::FASTRNN_LEVEL

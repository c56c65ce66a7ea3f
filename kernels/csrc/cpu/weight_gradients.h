// The gradients of weights and biases: products over the rows of a chunk, and sums of these.
#pragma once

#include <algorithm>

#include "backward_scratch.h"
#include "product.h"

#include "../cells.h"

namespace fastrnn::FASTRNN_LEVEL {

template <class Cell, class S>
class WeightGradients : protected BackwardScratch<Cell, S> {
 protected:
  using Base = BackwardScratch<Cell, S>;
  using Base::Base;
  using typename Base::C;
  using typename Base::E;
  using Base::arrays_, Base::chunk_rows_, Base::column_, Base::columns_, Base::features_in,
      Base::first_group_, Base::G, Base::group_, Base::group_distance_, Base::H, Base::I,
      Base::in_place_, Base::input_panels_, Base::job_, Base::kBlocks, Base::kInputBlock,
      Base::kJoinsRows, Base::lanes, Base::ld_d_, Base::ld_h_, Base::ld_m_, Base::ld_x_,
      Base::narrow_, Base::own_, Base::P, Base::padded_hidden_, Base::padded_input_,
      Base::padded_state_, Base::panel_begin_, Base::panel_end_, Base::panels_, Base::projects_,
      Base::state_begin_, Base::state_end_, Base::state_panels_, Base::thread_, Base::units_in;

  // Stores a vector of operands of a product over rows: columns from `at` on, of one row or two.
  template <class To>
  static FASTRNN_INLINE void store_joined(To *out, const S *row, const S *next, int64_t at,
                                          int64_t width) {
    const Vec<To> joined = join_rows<To>(row + at, next ? next + at : nullptr, width - at);
    memcpy(out, &joined, sizeof joined);
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
    const int64_t rows = operands<E>(chunk_rows_);
    memset(own_.h, 0, size_t(rows * ld_h_) * sizeof(E));
    memset(own_.x, 0, size_t(rows * ld_x_) * sizeof(E));
    for (int64_t r = 0; r < rows; ++r) (narrow_ ? own_.x[r * ld_x_ + I] : own_.ones[r]) = one();
  }
  static E one() {
    if constexpr (kJoinsRows)
      return {{0x3f80}, {0x3f80}};  // 1 in bfloat16
    else
      return 1;
  }
  void clear_share(C *data, int64_t count) const {
    const int64_t from = count * column_ / columns_, to = count * (column_ + 1) / columns_;
    memset(data + from, 0, size_t(to - from) * sizeof(C));
  }

  const S *w_hr() const { return static_cast<const S *>(job_.w_hr); }

  // The part of each gate's hidden units, and of the elements of h, that this thread handles.
  int64_t first_unit() const { return panel_begin_ * lanes; }
  int64_t units() const { return std::min(panel_end_ * lanes, H) - first_unit(); }
  int64_t first_feature() const { return state_begin_ * lanes; }
  int64_t features() const { return std::min(state_end_ * lanes, P) - first_feature(); }

  // The gate gradients of the chunk as an operand of products over rows.
  const E *rows_of_d() const {
    if constexpr (kJoinsRows)
      return group_.joined_d;
    else
      return group_.d;
  }

  // Joins the n rows of the chunk two by two: of the gate gradients, this thread's units. The last
  // of an odd number of rows is joined with zeros.
  void join_rows_of_chunk(int64_t n) const {
    const S *x = static_cast<const S *>(arrays_.x);
    for (int64_t r = 0; r < n; r += 2) {
      const bool two = r + 1 < n;
      const S *d = group_.d + r * ld_d_;
      E *joined_d = group_.joined_d + r / 2 * ld_d_;
      for (int g = 0; g < kBlocks; ++g)
        for (int64_t p = panel_begin_; p < panel_end_; ++p)
          store_joined(joined_d + g * padded_hidden_ + p * lanes, d, two ? d + ld_d_ : nullptr,
                       g * padded_hidden_ + p * lanes, ld_d_);
      for (int64_t q = 0; q < state_panels_; ++q)
        store_joined(own_.h + r / 2 * ld_h_ + q * lanes, own_.h_row[r],
                     two ? own_.h_row[r + 1] : nullptr, q * lanes, P);
      const S *row = x + own_.row[r] * I, *next = two ? x + own_.row[r + 1] * I : nullptr;
      E *joined_x = own_.x + r / 2 * ld_x_;
      for (int64_t j = 0; j < I && narrow_; ++j) joined_x[j] = {row[j], next ? next[j] : S{}};
      for (int64_t p = 0; p < input_panels_ && !narrow_; ++p)
        store_joined(joined_x + p * lanes, row, next, p * lanes, I);
    }
  }

  // Adds the n rows of the chunk to the sums; in place, the first chunk starts them.
  void weight_gradients(int64_t n, bool first) {
    if constexpr (kJoinsRows) join_rows_of_chunk(n);
    const int64_t unit0 = first_unit(), ld = kBlocks * padded_hidden_, depth = operands<E>(n);
    if (in_place_)
      add_weights(static_cast<S *>(arrays_.dw_hh), P, static_cast<S *>(arrays_.dw_ih), I,
                  static_cast<S *>(job_.dw_hr), H, n, !first);
    else
      add_weights(group_.dw_hh, padded_state_, group_.dw_ih, padded_input_, group_.dw_hr,
                  padded_hidden_, n, true);
    for (int g = 0; g < kBlocks; ++g) {
      const Rhs<E> d{rows_of_d() + g * padded_hidden_ + unit0, ld_d_, lanes};
      const int64_t panels = panel_end_ - panel_begin_;
      if (narrow_)  // the rows are the inputs and a 1, so one product sums weights and biases
        Product<E, true>{group_.dw_ih + g * padded_hidden_ + unit0,
                         ld,
                         true,
                         {own_.x, ld_x_},
                         d,
                         I + 1,
                         panels,
                         depth}
            .run();
      else
        Product<E, true>{
            group_.db + g * padded_hidden_ + unit0, ld, true, {own_.ones, 1}, d, 1, panels, depth}
            .run();
    }
  }

  // Adds products over n rows to dw_hh [G*H, P], to dw_ih [G*H, I] unless that is stored
  // transposed, and with a projection to dw_hr [P, H]. Their rows are ld_hh, ld_ih and ld_hr apart.
  // Without `accumulate`, it stores the products instead.
  template <class Out>
  void add_weights(Out *dw_hh, int64_t ld_hh, Out *dw_ih, int64_t ld_ih, Out *dw_hr, int64_t ld_hr,
                   int64_t n, bool accumulate) const {
    const int64_t ld = ld_d_, depth = operands<E>(n);
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
    const E *d = rows_of_d() + first_unit();
    for (int g = 0; g < G; ++g) {
      const int block = in_place_ ? Cell::recurrent_block(g) : g;
      Product<E, true, Out>{dw_hh + (block * H + first_unit()) * ld_hh,
                            ld_hh,
                            accumulate,
                            {d + g * padded_hidden_, ld},
                            {own_.h, ld_h_, lanes},
                            units(),
                            state_panels_,
                            depth,
                            ld_hh - (state_panels_ - 1) * lanes}
          .run();
      if (!narrow_)
        Product<E, true, Out>{dw_ih + (g * H + first_unit()) * ld_ih,
                              ld_ih,
                              accumulate,
                              {d + (kInputBlock + g) * padded_hidden_, ld},
                              {own_.x, ld_x_, lanes},
                              units(),
                              input_panels_,
                              depth,
                              ld_ih - (input_panels_ - 1) * lanes}
            .run();
    }
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

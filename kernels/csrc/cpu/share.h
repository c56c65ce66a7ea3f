// The share of a job that one thread computes: a range of the batch and a range of panels. A panel
// is one vector of hidden units.
#pragma once

#include "job.h"
#include "vector.h"

namespace fastrnn::FASTRNN_LEVEL {

// Whether a layer of this cell can have a projection. If not, the compiler drops the code for it.
template <class Cell>
constexpr bool kMayProject = Cell::kHasCell;

template <class S>
class Share {
 protected:
  using C = Compute<S>;
  using E = Operand<S>;
  static constexpr int lanes = kLanes<C>;  // units per panel; zeros pad the last panel

  Share(const Job &job, int thread)
      : job_(job), walk_(job.walk), thread_(thread), I(job.problem->input_size),
        H(job.problem->hidden_size), P(job.w_hr ? job.proj_size : H),
        panels_((H + lanes - 1) / lanes), state_panels_((P + lanes - 1) / lanes),
        row_group_(thread / job.grid.column_groups), column_(thread % job.grid.column_groups),
        columns_(job.grid.column_groups), panel_begin_(panels_ * column_ / columns_),
        panel_end_(panels_ * (column_ + 1) / columns_),
        state_begin_(state_panels_ * column_ / columns_),
        state_end_(state_panels_ * (column_ + 1) / columns_),
        batch_begin_(job.row_starts[row_group_]), batch_end_(job.row_starts[row_group_ + 1]) {}

  // The number of this share's sequences that run at time t.
  int64_t rows(int64_t t) const { return clip(walk_.rows(t)); }
  int64_t clip(int64_t sequences) const {
    const int64_t n = (sequences < batch_end_ ? sequences : batch_end_) - batch_begin_;
    return n > 0 ? n : 0;
  }
  // The largest numbers of sequences and panels of any thread; all threads get as much scratch.
  int64_t max_sequences() const {
    int64_t most = 1;
    for (int g = 0; g < job_.grid.row_groups; ++g) {
      const int64_t n = job_.row_starts[g + 1] - job_.row_starts[g];
      if (n > most) most = n;
    }
    return most;
  }
  int64_t max_panels() const { return (panels_ + columns_ - 1) / columns_; }

  // The number of real (not padding) hidden units in panel p.
  int64_t units_in(int64_t p) const { return H - p * lanes < lanes ? H - p * lanes : lanes; }
  // The same for the elements of h in panel q.
  int64_t features_in(int64_t q) const { return P - q * lanes < lanes ? P - q * lanes : lanes; }

  // Where the saved gates of panel p begin in an array of rows of 4 * H elements: the panels follow
  // each other, and within one, the four gates, so that a panel's gates are whole cache lines.
  int64_t gates_at(int64_t row, int64_t p) const { return 4 * (row * H + p * lanes); }

  // Waits for all threads, and for the threads of this row group.
  void barrier_all() const { job_.barriers[0].wait(job_.grid.threads()); }
  void barrier_group() const {
    if (columns_ > 1) job_.barriers[1 + row_group_].wait(columns_);
  }

  // Converts n rows of `width` numbers to operands, one row behind the other.
  static void operand_rows(E *out, const S *in, int64_t width, int64_t n) {
    for (int64_t i = 0; i < n; ++i, in += width)
      for (int64_t k = 0; k < width; k += kNumbers<E>) *out++ = operand<E>(in, k, width);
  }

  // Converts n rows of `width` elements; the rows of `out` are `ld` elements apart.
  static void widen_rows(C *out, int64_t ld, const S *in, int64_t width, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < width; ++j) out[i * ld + j] = widen(in[i * width + j]);
  }

  const Job &job_;
  const Walk walk_;
  const int thread_;
  const int64_t I, H, P, panels_, state_panels_;  // P: elements of h; a projection's size, or H
  const int row_group_, column_, columns_;
  const int64_t panel_begin_, panel_end_, state_begin_, state_end_, batch_begin_, batch_end_;
};

}  // namespace fastrnn::FASTRNN_LEVEL

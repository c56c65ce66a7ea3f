// One thread's share of a job: a range of the batch and a range of panels of hidden units.
#pragma once

#include "job.h"
#include "vector.h"

namespace fastrnn::FASTRNN_LEVEL {

template <class S>
class Share {
 protected:
  using C = Compute<S>;
  static constexpr int W = kLanes<C>;  // hidden units in a panel; the last panel is padded with zeros

  Share(const Job &job, int thread)
      : job_(job), walk_(job.walk), thread_(thread), I(job.problem->input_size),
        H(job.problem->hidden_size), P((H + W - 1) / W),
        row_group_(thread / job.grid.column_groups), column_(thread % job.grid.column_groups),
        columns_(job.grid.column_groups), panel0_(P * column_ / columns_),
        panel1_(P * (column_ + 1) / columns_), b0_(job.row_starts[row_group_]),
        b1_(job.row_starts[row_group_ + 1]) {}

  // How many of this share's sequences run at time t.
  int64_t rows(int64_t t) const { return clip(walk_.rows(t)); }
  int64_t clip(int64_t sequences) const {
    const int64_t n = (sequences < b1_ ? sequences : b1_) - b0_;
    return n > 0 ? n : 0;
  }
  // The most sequences and panels that any thread has: scratch is laid out alike for all.
  int64_t most_sequences() const {
    int64_t most = 1;
    for (int g = 0; g < job_.grid.row_groups; ++g) {
      const int64_t n = job_.row_starts[g + 1] - job_.row_starts[g];
      if (n > most) most = n;
    }
    return most;
  }
  int64_t most_panels() const { return (P + columns_ - 1) / columns_; }

  int64_t lanes(int64_t p) const { return H - p * W < W ? H - p * W : W; }

  void everybody_meets() const { job_.barriers[0].wait(job_.grid.threads()); }
  void group_meets() const {
    if (columns_ > 1) job_.barriers[1 + row_group_].wait(columns_);
  }

  // Rows of `width` elements, to rows `ld` apart.
  static void widen_rows(C *out, int64_t ld, const S *in, int64_t width, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < width; ++j) out[i * ld + j] = widen(in[i * width + j]);
  }

  const Job &job_;
  const Walk walk_;
  const int thread_;
  const int64_t I, H, P;
  const int row_group_, column_, columns_;
  const int64_t panel0_, panel1_, b0_, b1_;
};

}  // namespace fastrnn::FASTRNN_LEVEL

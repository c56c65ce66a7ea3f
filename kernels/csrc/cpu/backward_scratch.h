// The arrays that a backward pass works in, and where each of them lies in scratch memory.
#pragma once

#include "share.h"

namespace fastrnn::FASTRNN_LEVEL {

constexpr int64_t kChunkBytes = 512 << 10;  // of gate gradients per chunk and row group
constexpr int64_t kMinChunkRows = 192;      // fewer would move the sums of large weights too often
constexpr int64_t kMaxChunkRows = 1024;
constexpr int64_t kNarrowGradient = 8;  // widest input for which dw_ih is stored transposed
constexpr int64_t kFewRows = 12;        // up to this many rows, packing the weights does not pay

template <class Cell, class S>
class BackwardScratch : protected Share<S> {
 protected:
  using Base = Share<S>;
  using typename Base::C;
  using typename Base::E;
  // What gate gradients are stored as: the numbers of which operands consist.
  using D = std::conditional_t<kNumbers<E> == 2, S, C>;
  using Base::H, Base::I, Base::P, Base::job_, Base::lanes, Base::panels_, Base::state_panels_,
      Base::walk_;
  static constexpr int G = Cell::kGates;
  // A row of gate gradients has four blocks of padded_hidden columns. The product with W_hh uses
  // the first G blocks, the product with W_ih the last G.
  static constexpr bool kJoinsRows = kNumbers<E> == 2;
  static constexpr int kBlocks = 4, kInputBlock = kBlocks - G;

  BackwardScratch(const Job &job, int thread, char *block)
      : Base(job, thread), arrays_(*job.backward), padded_hidden_(panels_ * lanes),
        padded_state_(state_panels_ * lanes), input_panels_((I + lanes - 1) / lanes),
        padded_input_(input_panels_ * lanes), packs_(walk_.batch * walk_.steps > kFewRows),
        recurs_(walk_.steps > 1 || arrays_.dh0), narrow_(I <= kNarrowGradient),
        projects_(kMayProject<Cell> && job.w_hr), ld_x_(narrow_ ? I + 1 : padded_input_ + kLine),
        ld_h_(padded_state_ + kLine), ld_m_(padded_hidden_ + kLine),
        ld_d_(kBlocks * padded_hidden_ + kLine) {
    const int64_t sequences = this->max_sequences();
    int64_t chunk = kChunkBytes / (kBlocks * padded_hidden_ * int64_t(sizeof(C)));
    chunk = chunk < kMinChunkRows ? kMinChunkRows : chunk > kMaxChunkRows ? kMaxChunkRows : chunk;
    const int64_t steps = chunk / sequences;
    chunk_steps_ = steps < 1 ? 1 : steps < walk_.steps ? steps : walk_.steps;
    const int64_t rows = chunk_steps_ * sequences;
    in_place_ = job.grid.row_groups == 1 &&
                (std::is_same_v<S, C> || chunk_steps_ == walk_.steps);  // sums are not in bfloat16

    Arena arena(block);
    const int64_t panel_size = G * operands<E>(H) * lanes, row_operands = operands<E>(rows);
    w_hh_ = arena.take<E>(packs_ && recurs_ ? state_panels_ * panel_size : 0);
    w_ih_ = arena.take<E>(packs_ && arrays_.dx ? input_panels_ * panel_size : 0);
    w_hr_ = arena.take<C>(packs_ && projects_ ? panels_ * P * lanes : 0);
    dh_ = arena.take<C>(walk_.batch * padded_state_);
    dc_ = arena.take<C>(Cell::kHasCell ? walk_.batch * padded_hidden_ : 0);
    dm_ = arena.take<C>(projects_ ? walk_.batch * padded_hidden_ : 0);
    for (int g = 0; g < job.grid.row_groups; ++g) {
      GroupScratch group;
      group.d = arena.take<D>(rows * ld_d_);
      group.joined_d = arena.take<E>(kJoinsRows ? row_operands * ld_d_ : 0);
      group.dh = arena.take<C>(projects_ ? rows * ld_h_ : 0);
      group.m = arena.take<C>(projects_ ? rows * ld_m_ : 0);
      group.dw_hh = arena.take<C>(in_place_ ? 0 : G * H * padded_state_);
      group.dw_hr = arena.take<C>(projects_ && !in_place_ ? P * padded_hidden_ : 0);
      group.dw_ih = arena.take<C>(narrow_     ? (I + 1) * kBlocks * padded_hidden_
                                  : in_place_ ? 0
                                              : G * H * padded_input_);
      group.db = narrow_ ? group.dw_ih + I * kBlocks * padded_hidden_
                         : arena.take<C>(kBlocks * padded_hidden_);
      if (g == 0) first_group_ = group;
      if (g == 1) group_distance_ = group.db - first_group_.db;
      if (g == this->row_group_) group_ = group;
    }
    for (int t = 0; t < job.grid.threads(); ++t) {
      ThreadScratch own;
      own.h = arena.take<E>(row_operands * ld_h_);
      own.x = arena.take<E>(row_operands * ld_x_);
      own.ones = arena.take<E>(narrow_ ? 0 : row_operands);
      own.dx = arena.take<C>(arrays_.dx ? rows * padded_input_ : 0);
      own.row = arena.take<int64_t>(rows);
      own.h_row = arena.take<const S *>(kJoinsRows ? rows : 0);
      if (t == thread) own_ = own;
    }
    chunk_rows_ = rows;
    used_ = arena.used();
  }

  struct GroupScratch {
    D *d;         // [chunk rows][4][padded_hidden]: gate gradients
    E *joined_d;  // the same, two rows in one; unless joined, d is used
    C *dh, *m;    // of a projection: [chunk rows][padded_state], the gradients of h, and [chunk
                  // rows][padded_hidden], what is projected to h
    C *dw_hh;     // [G*H][padded_state], unless in place
    C *dw_hr;     // of a projection: [P][padded_hidden], unless in place
    C *dw_ih;  // [G*H][padded_input], unless in place; narrow: [I + 1][4][padded_hidden], last row:
               // biases
    C *db;     // [4][padded_hidden]
  };
  struct ThreadScratch {
    // h, x and ones are for products over rows. Where operands are pairs, a row holds two of these.
    E *h;             // [chunk rows][padded_state]: h before each step
    E *x;             // [chunk rows][padded_input]; narrow: [chunk rows][I + 1], last column: 1
    E *ones;          // [chunk rows], unless narrow
    C *dx;            // [chunk rows][padded_input]
    int64_t *row;     // [chunk rows]: the row in the caller's arrays
    const S **h_row;  // [chunk rows]: where h before each step is, if rows are to be joined
  };

  const fastrnn_backward_arrays arrays_;
  const int64_t padded_hidden_, padded_state_, input_panels_, padded_input_;
  const bool packs_;   // the weights, which are otherwise read as they lie
  const bool recurs_;  // whether there is a product with w_hh
  const bool narrow_;
  const bool projects_;  // whether h is a projection of the step's results
  // Rows of scratch memory start a cache line further than a power of two apart, so that the cache
  // can hold a column of them.
  static constexpr int64_t kLine = 64 / int64_t(sizeof(C));
  const int64_t ld_x_, ld_h_, ld_m_, ld_d_;
  bool in_place_;  // whether gradients of weights are summed in the caller's arrays
  int64_t chunk_steps_, chunk_rows_, group_distance_ = 0;
  size_t used_;
  // Shared by all threads:
  E *w_hh_, *w_ih_;
  C *w_hr_, *dh_, *dc_, *dm_;
  GroupScratch first_group_{}, group_{};
  ThreadScratch own_{};
};

}  // namespace fastrnn::FASTRNN_LEVEL

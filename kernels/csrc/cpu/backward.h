// One layer in one direction, backward through time.
//
// Steps are processed in chunks. Within a chunk, each step turns the gradient of h into gate
// gradients, which are the gradients before the activations, and multiplies them by the recurrent
// weights. The gate gradients stay in scratch memory, in cache, until the end of the chunk. There
// the gradients of weights, biases and input are computed as products over all rows of the chunk.
#pragma once

#include "activations.h"
#include "product.h"
#include "share.h"

#include "../cells.h"

namespace fastrnn::FASTRNN_LEVEL {

constexpr int64_t kChunkBytes = 512 << 10;  // of gate gradients per chunk and row group
constexpr int64_t kMinChunkRows = 64;       // fewer rows make inefficient products
constexpr int64_t kMaxChunkRows = 1024;
constexpr int64_t kNarrowGradient = 8;  // widest input for which dw_ih is stored transposed
constexpr int64_t kFewRows = 12;        // so few do not pay for packing the weights

template <class Cell, class S>
class Backward : Share<S> {
  using Base = Share<S>;
  using typename Base::C;
  using Base::batch_begin_, Base::batch_end_, Base::column_, Base::columns_, Base::H, Base::I,
      Base::job_, Base::units_in, Base::panels_, Base::panel_begin_, Base::panel_end_,
      Base::row_group_, Base::rows, Base::thread_, Base::lanes, Base::walk_;
  static constexpr int G = Cell::kGates;
  // A row of gate gradients has four blocks of padded_hidden columns. The product with W_hh uses
  // the first G blocks, the product with W_ih the last G.
  static constexpr int kBlocks = 4, kInputBlock = kBlocks - G;

 public:
  static size_t scratch(const Job &job) { return Backward(job, 0, nullptr).used_; }
  static void run(const Job &job, int thread) { Backward(job, thread, job.scratch).run(); }

 private:
  Backward(const Job &job, int thread, char *block)
      : Base(job, thread), arrays_(*job.backward), padded_hidden_(panels_ * lanes),
        input_panels_((I + lanes - 1) / lanes), padded_input_(input_panels_ * lanes),
        packs_(walk_.batch * walk_.steps > kFewRows), narrow_(I <= kNarrowGradient),
        ld_x_(narrow_ ? I + 1 : padded_input_ + kLine), ld_h_(padded_hidden_ + kLine),
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
    w_hh_ = arena.take<C>(packs_ ? panels_ * G * H * lanes : 0);
    w_ih_ = arena.take<C>(packs_ && arrays_.dx ? input_panels_ * G * H * lanes : 0);
    dh_ = arena.take<C>(walk_.batch * padded_hidden_);
    dc_ = arena.take<C>(Cell::kHasCell ? walk_.batch * padded_hidden_ : 0);
    for (int g = 0; g < job.grid.row_groups; ++g) {
      GroupScratch group;
      group.d = arena.take<C>(rows * ld_d_);
      group.dw_hh = arena.take<C>(in_place_ ? 0 : G * H * padded_hidden_);
      group.dw_ih = arena.take<C>(narrow_     ? (I + 1) * kBlocks * padded_hidden_
                                  : in_place_ ? 0
                                              : G * H * padded_input_);
      group.db = narrow_ ? group.dw_ih + I * kBlocks * padded_hidden_
                         : arena.take<C>(kBlocks * padded_hidden_);
      if (g == 0) first_group_ = group;
      if (g == 1) group_distance_ = group.d - first_group_.d;
      if (g == row_group_) group_ = group;
    }
    for (int t = 0; t < job.grid.threads(); ++t) {
      ThreadScratch own;
      own.h = arena.take<C>(rows * ld_h_);
      own.x = arena.take<C>(rows * ld_x_);
      own.ones = arena.take<C>(narrow_ ? 0 : rows);
      own.dx = arena.take<C>(arrays_.dx ? rows * padded_input_ : 0);
      own.row = arena.take<int64_t>(rows);
      if (t == thread) own_ = own;
    }
    chunk_rows_ = rows;
    used_ = arena.used();
  }

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

  // Packs weights into [columns / lanes][G*H][lanes]: row k of a panel is multiplied by gate
  // gradient k. The blocks of w_hh go into the order of the gate gradients.
  void pack() {
    const S *w_hh = static_cast<const S *>(arrays_.w_hh),
            *w_ih = static_cast<const S *>(arrays_.w_ih);
    for (int64_t p = thread_; p < panels_; p += job_.grid.threads())
      for (int g = 0; g < G; ++g)
        for (int64_t k = 0; k < H; ++k)
          store(w_hh_ + ((p * G + g) * H + k) * lanes,
                load_n(w_hh + (Cell::recurrent_block(g) * H + k) * H + p * lanes, units_in(p)));
    if (arrays_.dx)
      for (int64_t p = thread_; p < input_panels_; p += job_.grid.threads())
        for (int64_t k = 0; k < G * H; ++k)
          store(w_ih_ + (p * G * H + k) * lanes, load_n(w_ih + k * I + p * lanes, I - p * lanes));
  }

  void load_states() {
    const S *dh_n = static_cast<const S *>(arrays_.dh_n),
            *dc_n = static_cast<const S *>(arrays_.dc_n);
    for (int64_t b = batch_begin_; b < batch_end_; ++b) {
      for (int64_t p = panel_begin_; p < panel_end_; ++p) {
        store(dh_ + b * padded_hidden_ + p * lanes, load_n(dh_n + b * H + p * lanes, units_in(p)));
        if constexpr (Cell::kHasCell)
          store(dc_ + b * padded_hidden_ + p * lanes,
                load_n(dc_n + b * H + p * lanes, units_in(p)));
      }
    }
  }

  void store_states() const {
    S *dh0 = static_cast<S *>(arrays_.dh0), *dc0 = static_cast<S *>(arrays_.dc0);
    for (int64_t b = batch_begin_; b < batch_end_; ++b) {
      for (int64_t p = panel_begin_; p < panel_end_; ++p) {
        store_n(dh0 + b * H + p * lanes, load(dh_ + b * padded_hidden_ + p * lanes), units_in(p));
        if constexpr (Cell::kHasCell)
          store_n(dc0 + b * H + p * lanes, load(dc_ + b * padded_hidden_ + p * lanes), units_in(p));
      }
    }
  }

  // Zeroes the sums, a share per thread of the group, and sets the constant parts of scratch.
  void clear() {
    if (!in_place_) clear_share(group_.dw_hh, G * H * padded_hidden_);
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
    this->widen_rows(own_.h + n * ld_h_, ld_h_, y + before * H, H, ran);
    this->widen_rows(own_.h + (n + ran) * ld_h_, ld_h_, h0 + (batch_begin_ + ran) * H, H,
                     count - ran);
    this->widen_rows(own_.x + n * ld_x_, ld_x_, static_cast<const S *>(arrays_.x) + row * I, I,
                     count);
    for (int64_t r = 0; r < count; ++r) {
      own_.row[n + r] = row + r;
      const S *c = nullptr;  // the cell state before the step
      if constexpr (Cell::kHasCell)
        c = r < ran ? static_cast<const S *>(arrays_.cells) + (before + r) * H
                    : static_cast<const S *>(arrays_.c0) + (batch_begin_ + r) * H;
      pointwise(row + r, batch_begin_ + r, c, own_.h + (n + r) * ld_h_, group_.d + (n + r) * ld_d_);
    }
    this->barrier_group();
    C *dh = dh_ + batch_begin_ * padded_hidden_ + panel_begin_ * lanes;
    const C *d = group_.d + n * ld_d_;
    if (!packs_) {
      for (int g = 0; g < G; ++g)
        add_product(
            dh, padded_hidden_, d + g * padded_hidden_, ld_d_,
            static_cast<const S *>(arrays_.w_hh) + Cell::recurrent_block(g) * H * H + first_unit(),
            H, count, units(), H);
      return count;
    }
    Product<C, false>{dh,
                      padded_hidden_,
                      true,
                      {d, ld_d_},
                      {w_hh_ + panel_begin_ * G * H * lanes, lanes, G * H * lanes},
                      count,
                      panel_end_ - panel_begin_,
                      H,
                      lanes,
                      G,
                      padded_hidden_,
                      H * lanes}
        .run();
    return count;
  }

  // Computes the gate gradients d of one row. On entry dh_ and dc_ hold the gradients of the new
  // state; on return, those of the old state, but for the recurrent product.
  void pointwise(int64_t row, int64_t b, const S *c_old, const C *h_old, C *d) const {
    const S *gates = static_cast<const S *>(arrays_.gates) + row * kBlocks * H;
    for (int64_t p = panel_begin_; p < panel_end_; ++p) {
      const int64_t n = units_in(p), unit = p * lanes;
      Vec<C> gate[4], gradient[4], c{}, c_new{}, dc{};
      for (int g = 0; g < 4; ++g) gate[g] = load_n(gates + g * H + unit, n);
      if constexpr (Cell::kHasCell) {
        c = load_n(c_old + unit, n);
        c_new = load_n(static_cast<const S *>(arrays_.cells) + row * H + unit, n);
        dc = load(dc_ + b * padded_hidden_ + unit);
      }
      Vec<C> dh = load(dh_ + b * padded_hidden_ + unit);
      if (arrays_.dy) dh += load_n(static_cast<const S *>(arrays_.dy) + row * H + unit, n);
      Cell::backward(gate, load(h_old + unit), c, c_new, dh, dc, gradient);
      for (int g = 0; g < kBlocks; ++g) store(d + g * padded_hidden_ + unit, gradient[g]);
      store(dh_ + b * padded_hidden_ + unit, dh);
      if constexpr (Cell::kHasCell) store(dc_ + b * padded_hidden_ + unit, dc);
    }
  }

  // The part of each gate's hidden units that this thread handles.
  int64_t first_unit() const { return panel_begin_ * lanes; }
  int64_t units() const { return (panel_end_ * lanes < H ? panel_end_ * lanes : H) - first_unit(); }

  // Adds the n rows of the chunk to the sums; in place, the first chunk starts them.
  void weight_gradients(int64_t n, bool first) {
    const int64_t unit0 = first_unit(), ld = kBlocks * padded_hidden_;
    if (in_place_)
      add_weights(static_cast<S *>(arrays_.dw_hh), H, static_cast<S *>(arrays_.dw_ih), I, n,
                  !first);
    else
      add_weights(group_.dw_hh, padded_hidden_, group_.dw_ih, padded_input_, n, true);
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

  // Adds products over n rows to dw_hh [G*H, H] and, unless it is stored transposed, to
  // dw_ih [G*H, I], whose rows are ld_hh and ld_ih apart; or stores them.
  template <class Out>
  void add_weights(Out *dw_hh, int64_t ld_hh, Out *dw_ih, int64_t ld_ih, int64_t n,
                   bool accumulate) const {
    const int64_t ld = ld_d_;
    const C *d = group_.d + first_unit();
    for (int g = 0; g < G; ++g) {
      const int block = in_place_ ? Cell::recurrent_block(g) : g;
      Product<C, true, Out>{dw_hh + (block * H + first_unit()) * ld_hh,
                            ld_hh,
                            accumulate,
                            {d + g * padded_hidden_, ld},
                            {own_.h, ld_h_, lanes},
                            units(),
                            panels_,
                            n,
                            ld_hh - (panels_ - 1) * lanes}
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
        for (int64_t p = 0; p < panels_ && !in_place_; ++p)
          store_n(dw_hh + (to * H + k) * H + p * lanes,
                  sum(first_group_.dw_hh + (g * H + k) * padded_hidden_ + p * lanes), units_in(p));
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

  struct GroupScratch {
    C *d;      // [chunk rows][4][padded_hidden]: gate gradients
    C *dw_hh;  // [G*H][padded_hidden], unless in place
    C *dw_ih;  // the same with padded_input; narrow: [I + 1][4][padded_hidden], last row: biases
    C *db;     // [4][padded_hidden]
  };
  struct ThreadScratch {
    C *h;          // [chunk rows][padded_hidden]: h before each step
    C *x;          // [chunk rows][padded_input]; narrow: [chunk rows][I + 1], last column: 1
    C *ones;       // [chunk rows], unless narrow
    C *dx;         // [chunk rows][padded_input]
    int64_t *row;  // [chunk rows]: the row in the caller's arrays
  };

  const fastrnn_backward_arrays arrays_;
  const int64_t padded_hidden_, input_panels_, padded_input_;
  const bool packs_;  // the weights, which are otherwise read as they lie
  const bool narrow_;
  // Rows of scratch memory start a cache line further than a power of two apart, so that the cache
  // can hold a column of them.
  static constexpr int64_t kLine = 64 / int64_t(sizeof(C));
  const int64_t ld_x_, ld_h_, ld_d_;
  bool in_place_;  // whether gradients of weights are summed in the caller's arrays
  int64_t chunk_steps_, chunk_rows_, group_distance_ = 0;
  size_t used_;
  C *w_hh_, *w_ih_, *dh_, *dc_;  // shared by all threads
  GroupScratch first_group_{}, group_{};
  ThreadScratch own_{};
};

}  // namespace fastrnn::FASTRNN_LEVEL

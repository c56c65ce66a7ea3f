// One layer in one direction, backward through time.
//
// Steps are taken back in chunks. Within a chunk each step turns the gradient of h into gradients
// before the gates' activations and multiplies those with the recurrent weights; they stay in
// scratch, in cache, until the chunk's end, where the gradients of weights, biases and input are
// products over all its rows.
#pragma once

#include "product.h"
#include "share.h"

#include "../cells.h"

namespace fastrnn::FASTRNN_LEVEL {

constexpr int64_t kChunkBytes = 512 << 10;  // of gate gradients in a chunk, per row group
constexpr int64_t kChunkRows = 1024;        // at most
constexpr int64_t kChunkFewestRows = 64;    // fewer make poor products
constexpr int64_t kNarrowGradient = 8;      // input width up to which gate columns are the vectors

template <class Cell, class S>
class Backward : Share<S> {
  using Base = Share<S>;
  using typename Base::C;
  using Base::b0_, Base::b1_, Base::column_, Base::columns_, Base::H, Base::I, Base::job_,
      Base::lanes, Base::P, Base::panel0_, Base::panel1_, Base::row_group_, Base::rows,
      Base::thread_, Base::W, Base::walk_;
  static constexpr int G = Cell::kGates;
  // A row of gate gradients: four blocks of Hp columns; W_hh's product uses the first G of them,
  // W_ih's the last G.
  static constexpr int kBlocks = 4, kInputBlock = kBlocks - G;

 public:
  static size_t scratch(const Job &job) { return Backward(job, 0, nullptr).used_; }
  static void run(const Job &job, int thread) { Backward(job, thread, job.scratch).run(); }

 private:
  Backward(const Job &job, int thread, char *block)
      : Base(job, thread), a_(*job.backward), Hp(P * W), PI((I + W - 1) / W), Ip(PI * W),
        narrow_(I <= kNarrowGradient), ld_x(narrow_ ? I + 1 : Ip) {
    const int64_t sequences = this->most_sequences();
    int64_t chunk = kChunkBytes / (kBlocks * Hp * int64_t(sizeof(C)));
    chunk = chunk < kChunkFewestRows ? kChunkFewestRows : chunk > kChunkRows ? kChunkRows : chunk;
    const int64_t steps = chunk / sequences;
    chunk_steps_ = steps < 1 ? 1 : steps < walk_.steps ? steps : walk_.steps;
    const int64_t rows = chunk_steps_ * sequences;

    Arena arena(block);
    w_hh_ = arena.take<C>(P * G * H * W);
    w_ih_ = arena.take<C>(a_.dx ? PI * G * H * W : 0);
    dh_ = arena.take<C>(walk_.batch * Hp);
    dc_ = arena.take<C>(Cell::kHasCell ? walk_.batch * Hp : 0);
    for (int g = 0; g < job.grid.row_groups; ++g) {
      Group group;
      group.d = arena.take<C>(rows * kBlocks * Hp);
      group.dw_hh = arena.take<C>(G * H * Hp);
      group.dw_ih = arena.take<C>(narrow_ ? (I + 1) * kBlocks * Hp : G * H * Ip);
      group.db = narrow_ ? group.dw_ih + I * kBlocks * Hp : arena.take<C>(kBlocks * Hp);
      if (g == 0) first_group_ = group;
      if (g == 1) group_distance_ = group.d - first_group_.d;
      if (g == row_group_) group_ = group;
    }
    for (int t = 0; t < job.grid.threads(); ++t) {
      Own own;
      own.h = arena.take<C>(rows * Hp);
      own.x = arena.take<C>(rows * ld_x);
      own.ones = arena.take<C>(narrow_ ? 0 : rows);
      own.dx = arena.take<C>(a_.dx ? rows * Ip : 0);
      own.row = arena.take<int64_t>(rows);
      if (t == thread) own_ = own;
    }
    chunk_rows_ = rows;
    used_ = arena.used();
  }

  void run() {
    pack();
    load_states();
    clear();
    this->everybody_meets();
    for (int64_t end = walk_.steps; end > 0;) {
      const int64_t first = end > chunk_steps_ ? end - chunk_steps_ : 0;
      int64_t n = 0;
      for (int64_t s = end - 1; s >= first; --s) n += step(s, n);
      weight_gradients(n);
      if (a_.dx) input_gradients(n);
      this->group_meets();  // the next chunk overwrites what others may still read
      end = first;
    }
    store_states();
    this->everybody_meets();
    store_weights();
  }

  // Row k of a panel holds what gate gradient k is multiplied with: panels [columns / W][G*H][W].
  // w_hh's blocks are put in the order of the gate gradients.
  void pack() {
    const S *w_hh = static_cast<const S *>(a_.w_hh), *w_ih = static_cast<const S *>(a_.w_ih);
    for (int64_t p = thread_; p < P; p += job_.grid.threads())
      for (int g = 0; g < G; ++g)
        for (int64_t k = 0; k < H; ++k)
          store(w_hh_ + ((p * G + g) * H + k) * W,
                load_n(w_hh + (Cell::recurrent_block(g) * H + k) * H + p * W, lanes(p)));
    if (a_.dx)
      for (int64_t p = thread_; p < PI; p += job_.grid.threads())
        for (int64_t k = 0; k < G * H; ++k)
          store(w_ih_ + (p * G * H + k) * W, load_n(w_ih + k * I + p * W, I - p * W));
  }

  void load_states() {
    const S *dh_n = static_cast<const S *>(a_.dh_n), *dc_n = static_cast<const S *>(a_.dc_n);
    for (int64_t b = b0_; b < b1_; ++b) {
      for (int64_t p = panel0_; p < panel1_; ++p) {
        store(dh_ + b * Hp + p * W, load_n(dh_n + b * H + p * W, lanes(p)));
        if constexpr (Cell::kHasCell)
          store(dc_ + b * Hp + p * W, load_n(dc_n + b * H + p * W, lanes(p)));
      }
    }
  }

  void store_states() const {
    S *dh0 = static_cast<S *>(a_.dh0), *dc0 = static_cast<S *>(a_.dc0);
    for (int64_t b = b0_; b < b1_; ++b) {
      for (int64_t p = panel0_; p < panel1_; ++p) {
        store_n(dh0 + b * H + p * W, load(dh_ + b * Hp + p * W), lanes(p));
        if constexpr (Cell::kHasCell)
          store_n(dc0 + b * H + p * W, load(dc_ + b * Hp + p * W), lanes(p));
      }
    }
  }

  // The sums' zeros, shared out over the group, and the parts of scratch that never change.
  void clear() {
    clear_share(group_.dw_hh, G * H * Hp);
    clear_share(group_.dw_ih, narrow_ ? (I + 1) * kBlocks * Hp : G * H * Ip);
    if (!narrow_) clear_share(group_.db, kBlocks * Hp);
    memset(own_.h, 0, size_t(chunk_rows_ * Hp) * sizeof(C));
    memset(own_.x, 0, size_t(chunk_rows_ * ld_x) * sizeof(C));
    for (int64_t r = 0; r < chunk_rows_; ++r)
      (narrow_ ? own_.x[r * ld_x + I] : own_.ones[r]) = 1;
  }
  void clear_share(C *data, int64_t count) const {
    const int64_t from = count * column_ / columns_, to = count * (column_ + 1) / columns_;
    memset(data + from, 0, size_t(to - from) * sizeof(C));
  }

  // Step s, its rows put behind the n that the chunk already holds. Returns how many they are.
  int64_t step(int64_t s, int64_t n) {
    const int64_t t = walk_.time(s), count = rows(t), ran = this->clip(walk_.continued(s));
    const int64_t row = walk_.offset(t) + b0_;
    const int64_t before = s > 0 ? walk_.offset(walk_.time(s - 1)) + b0_ : 0;
    const S *y = static_cast<const S *>(a_.y), *h0 = static_cast<const S *>(a_.h0);
    this->widen_rows(own_.h + n * Hp, Hp, y + before * H, H, ran);
    this->widen_rows(own_.h + (n + ran) * Hp, Hp, h0 + (b0_ + ran) * H, H, count - ran);
    this->widen_rows(own_.x + n * ld_x, ld_x, static_cast<const S *>(a_.x) + row * I, I, count);
    for (int64_t r = 0; r < count; ++r) {
      own_.row[n + r] = row + r;
      const S *c = nullptr;  // the cell state before the step
      if constexpr (Cell::kHasCell)
        c = r < ran ? static_cast<const S *>(a_.cells) + (before + r) * H
                    : static_cast<const S *>(a_.c0) + (b0_ + r) * H;
      pointwise(row + r, b0_ + r, c, own_.h + (n + r) * Hp,
                group_.d + (n + r) * kBlocks * Hp);
    }
    this->group_meets();
    Product<C, false>{dh_ + b0_ * Hp + panel0_ * W,
                      Hp,
                      !Cell::kHasCell,
                      {group_.d + n * kBlocks * Hp, kBlocks * Hp},
                      {w_hh_ + panel0_ * G * H * W, W, G * H * W},
                      count,
                      panel1_ - panel0_,
                      H,
                      G,
                      Hp,
                      H * W}
        .run();
    return count;
  }

  // One row's gate gradients d from those of its new state, which become those of its old one.
  void pointwise(int64_t row, int64_t b, const S *c_old, const C *h_old, C *d) const {
    const S *gates = static_cast<const S *>(a_.gates) + row * kBlocks * H;
    for (int64_t p = panel0_; p < panel1_; ++p) {
      const int64_t n = lanes(p), unit = p * W;
      Vec<C> gate[4], gradient[4], c{}, c_new{}, dc{};
      for (int g = 0; g < 4; ++g) gate[g] = load_n(gates + g * H + unit, n);
      if constexpr (Cell::kHasCell) {
        c = load_n(c_old + unit, n);
        c_new = load_n(static_cast<const S *>(a_.cells) + row * H + unit, n);
        dc = load(dc_ + b * Hp + unit);
      }
      Vec<C> dh = load(dh_ + b * Hp + unit);
      if (a_.dy) dh += load_n(static_cast<const S *>(a_.dy) + row * H + unit, n);
      Cell::backward(gate, load(h_old + unit), c, c_new, dh, dc, gradient);
      for (int g = 0; g < kBlocks; ++g) store(d + g * Hp + unit, gradient[g]);
      store(dh_ + b * Hp + unit, dh);
      if constexpr (Cell::kHasCell) store(dc_ + b * Hp + unit, dc);
    }
  }

  // Adds the chunk's n rows to the sums; each thread of a group those of its own hidden units.
  void weight_gradients(int64_t n) {
    const int64_t unit0 = panel0_ * W, unit1 = panel1_ * W < H ? panel1_ * W : H;
    const int64_t units = unit1 - unit0, ld = kBlocks * Hp;
    for (int g = 0; g < G; ++g) {
      Product<C, true>{group_.dw_hh + (g * H + unit0) * Hp, Hp, true,
                       {group_.d + g * Hp + unit0, ld},     {own_.h, Hp, W},
                       units, P, n}
          .run();
      if (!narrow_)
        Product<C, true>{group_.dw_ih + (g * H + unit0) * Ip, Ip, true,
                         {group_.d + (kInputBlock + g) * Hp + unit0, ld}, {own_.x, Ip, W},
                         units, PI, n}
            .run();
    }
    for (int g = 0; g < kBlocks; ++g) {
      const Right<C> d{group_.d + g * Hp + unit0, ld, W};
      const int64_t panels = panel1_ - panel0_;
      if (narrow_)  // the inputs and the one behind them are the rows: weights and biases at once
        Product<C, true>{group_.dw_ih + g * Hp + unit0, ld, true, {own_.x, ld_x}, d,
                         I + 1, panels, n}
            .run();
      else
        Product<C, true>{group_.db + g * Hp + unit0, ld, true, {own_.ones, 1}, d, 1, panels, n}
            .run();
    }
  }

  void input_gradients(int64_t n) {
    const int64_t from = n * column_ / columns_, to = n * (column_ + 1) / columns_;
    const int64_t ld = kBlocks * Hp;
    Product<C, false>{own_.dx, Ip, false, {group_.d + from * ld + kInputBlock * Hp, ld},
                      {w_ih_, W, G * H * W}, to - from, PI, H, G, Hp, H * W}
        .run();
    for (int64_t r = from; r < to; ++r)
      for (int64_t p = 0; p < PI; ++p)
        store_n(static_cast<S *>(a_.dx) + own_.row[r] * I + p * W,
                load(own_.dx + (r - from) * Ip + p * W), I - p * W);
  }

  // Sums over the row groups, a share of the hidden units each, in torch's order of gates.
  void store_weights() const {
    const int threads = job_.grid.threads();
    const int64_t unit0 = H * thread_ / threads, unit1 = H * (thread_ + 1) / threads;
    S *dw_ih = static_cast<S *>(a_.dw_ih), *dw_hh = static_cast<S *>(a_.dw_hh);
    S *db_ih = static_cast<S *>(a_.db_ih), *db_hh = static_cast<S *>(a_.db_hh);
    for (int g = 0; g < G; ++g) {
      const int to = Cell::recurrent_block(g);
      for (int64_t k = unit0; k < unit1; ++k) {
        for (int64_t p = 0; p < P; ++p)
          store_n(dw_hh + (to * H + k) * H + p * W,
                  sum(first_group_.dw_hh + (g * H + k) * Hp + p * W), lanes(p));
        const int64_t column = (kInputBlock + g) * Hp + k;
        if (narrow_)
          for (int64_t j = 0; j < I; ++j)
            narrow_to(dw_ih + (g * H + k) * I + j, first_group_.dw_ih + j * kBlocks * Hp + column);
        else
          for (int64_t p = 0; p < PI; ++p)
            store_n(dw_ih + (g * H + k) * I + p * W,
                    sum(first_group_.dw_ih + (g * H + k) * Ip + p * W), I - p * W);
        narrow_to(db_ih + g * H + k, first_group_.db + column);
        if (db_hh) narrow_to(db_hh + to * H + k, first_group_.db + g * Hp + k);
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

  struct Group {  // scratch of a row group
    C *d;         // [chunk rows][4][Hp]: gate gradients
    C *dw_hh;     // [G*H][Hp]
    C *dw_ih;     // [G*H][Ip]; narrow: transposed, [I + 1][4][Hp], the last row for the biases
    C *db;        // [4][Hp]
  };
  struct Own {     // scratch of a thread
    C *h;          // [chunk rows][Hp]: the states before each step
    C *x, *ones;   // [chunk rows][Ip], [chunk rows]; narrow: [chunk rows][I + 1], the last being 1
    C *dx;         // [chunk rows][Ip]
    int64_t *row;  // [chunk rows]: which row of the arrays each one is
  };

  const fastrnn_backward_arrays a_;
  const int64_t Hp, PI, Ip;
  const bool narrow_;
  const int64_t ld_x;
  int64_t chunk_steps_, chunk_rows_, group_distance_ = 0;
  size_t used_;
  C *w_hh_, *w_ih_, *dh_, *dc_;  // shared by all
  Group first_group_{}, group_{};
  Own own_{};
};

}  // namespace fastrnn::FASTRNN_LEVEL

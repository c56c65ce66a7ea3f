// One layer in one direction, forward.
//
// A step multiplies the old h with the recurrent weights panel by panel: a panel is one vector of
// hidden units with all its gates, so the cell's arithmetic follows in the same pass, on registers.
// A narrow input is projected there too; a wide one some steps ahead, in one larger product.
#pragma once

#include "panels.h"
#include "share.h"

namespace fastrnn::FASTRNN_LEVEL {

constexpr int64_t kNarrowInput = 32;            // projected inside the step up to this width
constexpr int64_t kProjectionBytes = 512 << 10;  // of projections made ahead, per thread
constexpr int64_t kCachedBytes = 4 << 20;        // of results that a cache holds until they are read

template <class Cell, class S>
class Forward : Share<S> {
  using Base = Share<S>;
  using typename Base::C;
  using Base::b0_, Base::b1_, Base::H, Base::I, Base::job_, Base::lanes, Base::P, Base::panel0_,
      Base::panel1_, Base::rows, Base::thread_, Base::W, Base::walk_;
  using Panels = Panel<Cell, S>;
  static constexpr int G = Cell::kGates, kTile = tile_rows(G);

 public:
  static size_t scratch(const Job &job) { return Forward(job, 0, nullptr).used_; }
  static void run(const Job &job, int thread) { Forward(job, thread, job.scratch).run(); }

 private:
  Forward(const Job &job, int thread, char *block)
      : Base(job, thread), a_(*job.forward), narrow_(I <= kNarrowInput), past_caches_(large_results()) {
    Arena arena(block);
    w_hh_ = arena.take<C>(P * H * G * W);
    w_ih_ = arena.take<C>(P * I * G * W);
    bias_ = arena.take<C>(P * 4 * W);
    for (C *&h : h_) h = arena.take<C>(walk_.batch * P * W);
    c_ = arena.take<C>(Cell::kHasCell ? walk_.batch * P * W : 0);

    const int64_t sequences = this->most_sequences();
    const int64_t row_bytes = this->most_panels() * G * W * int64_t(sizeof(C));
    const int64_t steps = narrow_ ? 1 : kProjectionBytes / row_bytes / sequences;
    steps_ahead_ = steps < 1 ? 1 : steps < walk_.steps ? steps : walk_.steps;
    const int64_t rows_ahead = steps_ahead_ * sequences;
    for (int t = 0; t < job.grid.threads(); ++t) {
      C *x = arena.take<C>(narrow_ && sizeof(S) == sizeof(C) ? 0 : rows_ahead * I);
      C *projection = arena.take<C>(narrow_ ? 0 : rows_ahead * row_bytes / int64_t(sizeof(C)));
      if (t == thread) x_ = x, projection_ = projection;
    }
    used_ = arena.used();
  }

  void run() {
    pack();
    load_states();
    this->everybody_meets();
    for (int64_t s = 0; s < walk_.steps; ++s) {
      if (!narrow_ && s % steps_ahead_ == 0) project(s);
      step(s);
      this->group_meets();
    }
    store_states();
    if (past_caches_) fence();
  }

  // Whether y, gates and cells are whole cache lines, and more than fit in a cache.
  bool large_results() const {
    const int64_t bytes = walk_.offset(walk_.steps) * H * int64_t(sizeof(S));
    return kWholeLines<S> && H % W == 0 && bytes * (a_.gates ? 5 : 1) > kCachedBytes &&
           (uintptr_t(a_.y) | uintptr_t(a_.gates) | uintptr_t(a_.cells)) % 64 == 0;
  }

  void put(S *result, Vec<C> v, int64_t n) const {
    if constexpr (kWholeLines<S>) {
      if (past_caches_) return store_past_caches(result, v);
    }
    store_n(result, v, n);
  }

  // Weights as panels [P][K][G][W], biases as [P][4][W]; threads share the work.
  void pack() {
    const S *w_hh = static_cast<const S *>(a_.w_hh), *w_ih = static_cast<const S *>(a_.w_ih);
    const S *b_ih = static_cast<const S *>(a_.b_ih), *b_hh = static_cast<const S *>(a_.b_hh);
    for (int64_t p = thread_; p < P; p += job_.grid.threads()) {
      Panels::pack_weights(w_hh_ + p * H * G * W, w_hh, H, H, p);
      Panels::pack_weights(w_ih_ + p * I * G * W, w_ih, H, I, p);
      Panels::pack_biases(bias_ + p * 4 * W, b_ih, b_hh, H, p);
    }
  }

  // Both copies of h, for a sequence may start at any step when time runs backwards.
  void load_states() {
    const S *h0 = static_cast<const S *>(a_.h0), *c0 = static_cast<const S *>(a_.c0);
    for (int64_t b = b0_; b < b1_; ++b) {
      for (int64_t p = panel0_; p < panel1_; ++p) {
        const Vec<C> h = load_n(h0 + b * H + p * W, lanes(p));
        for (C *copy : h_) store(copy + (b * P + p) * W, h);
        if constexpr (Cell::kHasCell)
          store(c_ + (b * P + p) * W, load_n(c0 + b * H + p * W, lanes(p)));
      }
    }
  }

  void store_states() const {
    const S *y = static_cast<const S *>(a_.y);
    S *h_n = static_cast<S *>(a_.h_n), *c_n = static_cast<S *>(a_.c_n);
    for (int64_t b = b0_; b < b1_; ++b) {
      const int64_t t = walk_.reverse ? 0 : walk_.length(b) - 1;
      for (int64_t p = panel0_; p < panel1_; ++p) {
        store_n(h_n + b * H + p * W, load_n(y + (walk_.offset(t) + b) * H + p * W, lanes(p)),
                lanes(p));
        if constexpr (Cell::kHasCell)
          store_n(c_n + b * H + p * W, load(c_ + (b * P + p) * W), lanes(p));
      }
    }
  }

  const S *input(int64_t t) const {  // this share's first row at time t
    return static_cast<const S *>(a_.x) + (walk_.offset(t) + b0_) * I;
  }

  // projection_[row][panel][G][W] from step s on, as far as its scratch reaches; biases included.
  void project(int64_t s) {
    int64_t n = 0;
    for (int64_t i = s; i < s + steps_ahead_ && i < walk_.steps; ++i) {
      const int64_t t = walk_.time(i);
      this->widen_rows(x_ + n * I, I, input(t), I, rows(t));
      n += rows(t);
    }
    const int64_t ld = (panel1_ - panel0_) * G * W;
    for (int64_t p = panel0_; p < panel1_; ++p) {
      C *out = projection_ + (p - panel0_) * G * W;
      for (int64_t r = 0; r < n; ++r)
        memcpy(out + r * ld, bias_ + p * 4 * W, sizeof(C) * G * W);
      Product<C, false>{out, ld, true, {x_, I}, {w_ih_ + p * I * G * W, G * W, W}, n, G, I}.run();
    }
    projected_ = projection_;
  }

  void step(int64_t s) {
    const int64_t t = walk_.time(s), n = rows(t);
    const C *x = x_;
    if (narrow_) {
      if constexpr (sizeof(S) == sizeof(C))
        x = input(t);
      else
        this->widen_rows(x_, I, input(t), I, n);
    }
    for (int64_t p = panel0_; p < panel1_; ++p) {
      for_tiles<kTile>(n, [&](auto height, int64_t r) {
        constexpr int R = decltype(height)::value;
        narrow_ ? tile<R, true>(s, p, r, x + r * I) : tile<R, false>(s, p, r, nullptr);
      });
    }
    if (!narrow_) projected_ += n * (panel1_ - panel0_) * G * W;
  }

  // R sequences from the share's r-th on, one panel, one step.
  template <int R, bool kNarrow>
  __attribute__((noinline)) void tile(int64_t s, int64_t p, int64_t r, const C *x) {
    Vec<C> acc[R][G];
    if constexpr (kNarrow) {
      for (int i = 0; i < R; ++i)
        for (int g = 0; g < G; ++g) acc[i][g] = load(bias_ + (p * 4 + g) * W);
      multiply(acc, Left<C>{x, I}, Right<C>{w_ih_ + p * I * G * W, G * W, W}, I);
    } else {
      const int64_t ld = (panel1_ - panel0_) * G * W;
      const C *projected = projected_ + r * ld + (p - panel0_) * G * W;
      for (int i = 0; i < R; ++i)
        for (int g = 0; g < G; ++g) acc[i][g] = load(projected + i * ld + g * W);
    }
    C input_n[R][W];
    const int64_t b = b0_ + r;
    const C *h_old = h_[s & 1];
    Panels::template recur<R>(acc, input_n, bias_ + p * 4 * W, Left<C>{h_old + b * P * W, P * W},
                              Right<C>{w_hh_ + p * H * G * W, G * W, W}, H);
    const int64_t n = lanes(p), first_row = walk_.offset(walk_.time(s)) + b;
    // The results' lines are new to the caches: start the next step's on their way.
    const int64_t ahead = s + 1 < walk_.steps ? walk_.offset(walk_.time(s + 1)) + b : first_row;
    for (int i = 0; i < R; ++i) {
      if (!past_caches_) __builtin_prefetch(static_cast<S *>(a_.y) + (ahead + i) * H + p * W, 1);
      const int64_t state = ((b + i) * P + p) * W, row = first_row + i;
      Vec<C> gate[4], c{};
      if constexpr (Cell::kHasCell) c = load(c_ + state);
      const Vec<C> h = Panels::activate(acc[i], input_n[i], load(h_old + state), c, gate);
      store(h_[~s & 1] + state, h);
      put(static_cast<S *>(a_.y) + row * H + p * W, h, n);
      if constexpr (Cell::kHasCell) store(c_ + state, c);
      if (a_.gates) {
        S *gates = static_cast<S *>(a_.gates) + row * 4 * H + p * W;
        for (int g = 0; g < 4; ++g) put(gates + g * H, gate[g], n);
        if constexpr (Cell::kHasCell) put(static_cast<S *>(a_.cells) + row * H + p * W, c, n);
      }
    }
  }

  const fastrnn_forward_arrays a_;
  const bool narrow_, past_caches_;
  int64_t steps_ahead_;
  size_t used_;
  C *w_hh_, *w_ih_, *bias_, *h_[2], *c_;      // shared by all
  C *x_ = nullptr, *projection_ = nullptr;    // this thread's
  const C *projected_ = nullptr;              // the current step's piece of projection_
};

}  // namespace fastrnn::FASTRNN_LEVEL

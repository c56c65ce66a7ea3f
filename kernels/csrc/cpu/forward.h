// One layer in one direction, forward.
//
// A step multiplies the old h by the recurrent weights, panel by panel. A panel is one vector of
// hidden units with all its gates, so the cell's arithmetic follows in the same pass, in registers.
// The step also projects a narrow input. A wide input is projected several steps at a time, in a
// larger product. If the layer has a projection, one more product makes the new h of the step's
// results, which then are not h itself.
#pragma once

#include "in_place.h"
#include "panels.h"
#include "share.h"

namespace fastrnn::FASTRNN_LEVEL {

constexpr int64_t kNarrowInput = 32;  // widest input that each step always projects itself
constexpr int64_t kJoinedRows = kRegisters < 32 ? 3 : 12;  // from this many rows up, any input
constexpr int64_t kJoinedSavedRows = 9;  // the same in training, where inference has taller tiles
constexpr int64_t kProjectionBytes = 512 << 10;  // of projections computed ahead, per thread
// Weights of more bytes than this are read from memory in each step. Then the input's weights are
// used for more steps at a time, unless a step has many rows.
constexpr int64_t kFarWeights = 16 << 20, kFarProjectionBytes = 4 << 20, kFarRows = 24;
constexpr int64_t kMaxCachedBytes = 4 << 20;  // of results that stay in a cache until they are read

struct Projection {  // as a cell of one gate, for packing its weights
  static constexpr int kGates = 1;
};

template <class Cell, class S>
class Forward : Share<S> {
  using Base = Share<S>;
  using typename Base::C;
  using Base::batch_begin_, Base::batch_end_, Base::H, Base::I, Base::job_, Base::units_in,
      Base::features_in, Base::lanes, Base::P, Base::panel_begin_, Base::panel_end_, Base::panels_,
      Base::rows, Base::state_begin_, Base::state_end_, Base::state_panels_, Base::thread_,
      Base::walk_;
  using CellPanel = Panel<Cell, S>;
  static constexpr int G = Cell::kGates, kTile = tile_rows(G), kInPlaceTile = tile_rows(4);
  // Where registers are few, a tile of half of an LSTM's gates at a time has twice as many rows and
  // reads the weights half as often.
  static constexpr int kTallTile = kRegisters < 32 && G == 4 ? tile_rows(2) : kTile;

 public:
  static size_t scratch(const Job &job) { return Forward(job, 0, nullptr).used_; }
  static void run(const Job &job, int thread) { Forward(job, thread, job.scratch).run(); }

 private:
  Forward(const Job &job, int thread, char *block)
      : Base(job, thread), arrays_(*job.forward), prepacked_(job.prepacked),
        in_place_(job.in_place && !prepacked_), joined_(joins_input()),
        projects_(kMayProject<Cell> && job.w_hr), tall_(!arrays_.gates && !far_weights()),
        streams_(streams_results()), streams_gates_(streams_gates()) {
    Arena arena(block);
    const PackedWeights<Cell, S> ready(job.prepacked, H, I);
    w_hh_ = prepacked_ ? ready.w_hh : arena.take<C>(in_place_ ? 0 : panels_ * P * G * lanes);
    bias_ = prepacked_ ? ready.bias : arena.take<C>(panels_ * 4 * lanes);
    for (C *&h : h_) h = arena.take<C>(walk_.batch * state_panels_ * lanes);
    m_ = arena.take<C>(projects_ ? walk_.batch * panels_ * lanes : 0);
    w_hr_ = arena.take<C>(projects_ && !in_place_ ? state_panels_ * H * lanes : 0);
    c_ = arena.take<C>(Cell::kHasCell ? walk_.batch * panels_ * lanes : 0);

    const int64_t sequences = this->max_sequences();
    const int64_t row_bytes = this->max_panels() * G * lanes * int64_t(sizeof(C));
    const int64_t ahead = far_weights() ? kFarProjectionBytes : kProjectionBytes;
    const int64_t steps = joined_ ? 1 : ahead / row_bytes / sequences;
    steps_ahead_ = steps < 1 ? 1 : steps < walk_.steps ? steps : walk_.steps;
    const int64_t rows_ahead = steps_ahead_ * sequences;
    packs_input_ = prepacked_ || joined_ || (!in_place_ && steps_ahead_ < walk_.steps);
    w_ih_ = prepacked_ ? ready.w_ih : arena.take<C>(packs_input_ ? panels_ * I * G * lanes : 0);
    for (int t = 0; t < job.grid.threads(); ++t) {
      C *panel = arena.take<C>(packs_input_ || in_place_ ? 0 : I * G * lanes);
      C *x = arena.take<C>(joined_ && sizeof(S) == sizeof(C) ? 0 : rows_ahead * I);
      C *projection = arena.take<C>(joined_ ? 0 : rows_ahead * row_bytes / int64_t(sizeof(C)));
      if (t == thread) panel_ = panel, x_ = x, projection_ = projection;
    }
    used_ = arena.used();
  }

  void run() {
    if (!prepacked_) pack();
    load_states();
    this->barrier_all();
    for (int64_t s = 0; s < walk_.steps; ++s) {
      if (!joined_ && s % steps_ahead_ == 0) project(s);
      step(s);
      if (projects_) {
        this->barrier_group();
        project_states(s);
      }
      this->barrier_group();
    }
    store_states();
    if (streams_ || streams_gates_) fence();
  }

  // Whether a step projects its own input, so that projections need not be written and read again.
  // It does if the input is narrow, or if a step has enough rows to be worth reading the weights.
  bool joins_input() const {
    const bool saves = kTallTile > kTile && arrays_.gates;
    const int64_t enough = far_weights() ? kFarRows : saves ? kJoinedSavedRows : kJoinedRows;
    return I <= kNarrowInput || (!in_place_ && this->max_sequences() >= enough);
  }
  bool far_weights() const { return G * H * (I + P) * int64_t(sizeof(C)) > kFarWeights; }

  // Whether stores should bypass the caches: of y and cells, and of gates. They must consist of
  // whole cache lines and be too large for a cache.
  bool streams_results() const {
    return kStreams<S, 1> && !projects_ && large_results() && H % lanes == 0 &&
           (uintptr_t(arrays_.y) | uintptr_t(arrays_.cells)) % kLineBytes == 0;
  }
  bool streams_gates() const {
    return kStreams<S, 4> && arrays_.gates && large_results() &&
           4 * H * int64_t(sizeof(S)) % kLineBytes == 0 &&
           uintptr_t(arrays_.gates) % kLineBytes == 0;
  }
  bool large_results() const {
    const int64_t bytes = walk_.offset(walk_.steps) * H * int64_t(sizeof(S));
    return bytes * (arrays_.gates ? 5 : 1) > kMaxCachedBytes;
  }

  // Packs what all threads share: biases into [panels][4][lanes], and weights. If a panel belongs
  // to one thread, that thread packs it when it first uses it, so that it is in the thread's cache.
  void pack() {
    const S *b_ih = static_cast<const S *>(arrays_.b_ih),
            *b_hh = static_cast<const S *>(arrays_.b_hh);
    for (int64_t p = thread_; p < panels_; p += job_.grid.threads()) {
      CellPanel::pack_biases(bias_ + p * 4 * lanes, b_ih, b_hh, H, p);
      if (job_.grid.row_groups == 1) continue;
      if (!in_place_) pack_panel(w_hh_, arrays_.w_hh, P, p);
      if (packs_input_) pack_panel(w_ih_, arrays_.w_ih, I, p);
    }
    const bool shared = projects_ && !in_place_ && job_.grid.row_groups > 1;
    for (int64_t q = thread_; shared && q < state_panels_; q += job_.grid.threads())
      pack_projection(q);
  }

  // Packs panel p of a matrix [G*H, K] where it belongs, and returns it.
  const C *pack_panel(C *packed, const void *w, int64_t K, int64_t p) const {
    C *panel = packed + p * K * G * lanes;
    CellPanel::pack_weights(panel, static_cast<const S *>(w), H, K, p);
    return panel;
  }

  // Panel p of a packed matrix [G*H, K].
  const C *panel(C *packed, const void *w, int64_t K, int64_t p, int64_t s) const {
    if (s == 0 && job_.grid.row_groups == 1 && !prepacked_) return pack_panel(packed, w, K, p);
    return packed + p * K * G * lanes;
  }
  const C *recurrent_panel(int64_t p, int64_t s) const {
    return panel(w_hh_, arrays_.w_hh, P, p, s);
  }
  // If the matrix is not kept packed, the panel lasts until the next one is asked for.
  const C *input_panel(int64_t p, int64_t s) const {
    if (packs_input_) return panel(w_ih_, arrays_.w_ih, I, p, s);
    CellPanel::pack_weights(panel_, static_cast<const S *>(arrays_.w_ih), H, I, p);
    return panel_;
  }

  // Panel q of w_hr [P, H], packed into [H][lanes].
  const C *pack_projection(int64_t q) const {
    C *packed = w_hr_ + q * H * lanes;
    Panel<Projection, S>::pack_weights(packed, static_cast<const S *>(job_.w_hr), P, H, q);
    return packed;
  }
  const C *projection_panel(int64_t q, int64_t s) const {
    if (s == 0 && job_.grid.row_groups == 1) return pack_projection(q);
    return w_hr_ + q * H * lanes;
  }

  // Adds to acc the product of R rows of `in` and panel p of a matrix [G*H, K], as it lies.
  template <int R>
  FASTRNN_INLINE void add_in_place(Vec<C> (&acc)[R][G], Lhs<C> in, const void *w, int64_t K,
                                   int64_t p) const {
    multiply_in_place(acc, in, static_cast<const S *>(w) + p * lanes * K, H * K, units_in(p), K);
  }

  // Fills both copies of h: in a reversed packed batch, a sequence may start at any step.
  void load_states() {
    const S *h0 = static_cast<const S *>(arrays_.h0), *c0 = static_cast<const S *>(arrays_.c0);
    for (int64_t b = batch_begin_; b < batch_end_; ++b) {
      for (int64_t q = state_begin_; q < state_end_; ++q) {
        const Vec<C> h = load_n(h0 + b * P + q * lanes, features_in(q));
        for (C *copy : h_) store(copy + (b * state_panels_ + q) * lanes, h);
      }
      if constexpr (Cell::kHasCell)
        for (int64_t p = panel_begin_; p < panel_end_; ++p)
          store(c_ + (b * panels_ + p) * lanes, load_n(c0 + b * H + p * lanes, units_in(p)));
    }
  }

  void store_states() const {
    const S *y = static_cast<const S *>(arrays_.y);
    S *h_n = static_cast<S *>(arrays_.h_n), *c_n = static_cast<S *>(arrays_.c_n);
    for (int64_t b = batch_begin_; b < batch_end_; ++b) {
      const int64_t t = walk_.reverse ? 0 : walk_.length(b) - 1;
      for (int64_t q = state_begin_; q < state_end_; ++q)
        store_n(h_n + b * P + q * lanes,
                load_n(y + (walk_.offset(t) + b) * P + q * lanes, features_in(q)), features_in(q));
      if constexpr (Cell::kHasCell)
        for (int64_t p = panel_begin_; p < panel_end_; ++p)
          store_n(c_n + b * H + p * lanes, load(c_ + (b * panels_ + p) * lanes), units_in(p));
    }
  }

  const S *input(int64_t t) const {  // the first row of this share at time t
    return static_cast<const S *>(arrays_.x) + (walk_.offset(t) + batch_begin_) * I;
  }

  // Fills projection_[panel][row][G][lanes] for steps_ahead_ steps from s on, including the biases.
  void project(int64_t s) {
    int64_t n = 0;
    for (int64_t i = s; i < s + steps_ahead_ && i < walk_.steps; ++i) {
      const int64_t t = walk_.time(i);
      this->widen_rows(x_ + n * I, I, input(t), I, rows(t));
      n += rows(t);
    }
    const int64_t ld = G * lanes;
    for (int64_t p = panel_begin_; p < panel_end_; ++p) {
      C *out = projection_ + (p - panel_begin_) * n * ld;
      if (in_place_) {
        for_tiles<kInPlaceTile>(n, [&](auto height, int64_t r) {
          project_in_place<decltype(height)::value>(p, r, out + r * ld, ld);
        });
        continue;
      }
      for (int64_t r = 0; r < n; ++r)
        memcpy(out + r * ld, bias_ + p * 4 * lanes, sizeof(C) * G * lanes);
      Product<C, false>{out, ld, true, {x_, I}, CellPanel::operand(input_panel(p, s), I), n, G, I}
          .run();
    }
    rows_ahead_ = n, projected_ = projection_;
  }

  template <int R>
  __attribute__((noinline)) void project_in_place(int64_t p, int64_t r, C *out, int64_t ld) const {
    Vec<C> acc[R][G];
    for (int i = 0; i < R; ++i)
      for (int g = 0; g < G; ++g) acc[i][g] = load(bias_ + (p * 4 + g) * lanes);
    add_in_place(acc, {x_ + r * I, I}, arrays_.w_ih, I, p);
    for (int i = 0; i < R; ++i)
      for (int g = 0; g < G; ++g) store(out + i * ld + g * lanes, acc[i][g]);
  }

  void step(int64_t s) {
    const int64_t t = walk_.time(s), n = rows(t);
    const C *x = x_;
    if (joined_) {
      if constexpr (sizeof(S) == sizeof(C))
        x = input(t);
      else
        this->widen_rows(x_, I, input(t), I, n);
    }
    for (int64_t p = panel_begin_; p < panel_end_; ++p) {
      const C *w_hh = in_place_ ? nullptr : recurrent_panel(p, s);
      const C *w_ih = joined_ ? input_panel(p, s) : nullptr;
      const auto compute = [&](auto height, int64_t r) {
        constexpr int R = decltype(height)::value;
        const auto run = [&](auto saves) {
          constexpr bool kSaves = decltype(saves)::value;
          joined_ ? tile<R, true, kSaves>(s, p, r, x + r * I, w_ih, w_hh)
                  : tile<R, false, kSaves>(s, p, r, nullptr, nullptr, w_hh);
        };
        arrays_.gates ? run(std::true_type()) : run(std::false_type());
      };
      if (in_place_)
        for_tiles<kInPlaceTile>(n, compute);
      else if (kTallTile > kTile && tall_)
        for_tiles<kTallTile>(n, compute);
      else
        for_tiles<kTile>(n, compute);
    }
    if (!joined_) projected_ += n * G * lanes;
  }

  // Sets acc to the biases and the input's products of R sequences for V gates.
  template <bool kJoined, int R, int V>
  FASTRNN_INLINE void start(Vec<C> (&acc)[R][V], int64_t p, int64_t r, const C *x, const C *w_ih,
                            int first_gate = 0) const {
    const int64_t ld = kJoined ? 0 : G * lanes;
    const C *row =
        kJoined ? bias_ + p * 4 * lanes : projected_ + ((p - panel_begin_) * rows_ahead_ + r) * ld;
    for (int i = 0; i < R; ++i)
      for (int g = 0; g < V; ++g) acc[i][g] = load(row + i * ld + (first_gate + g) * lanes);
    if (kJoined) multiply(acc, Lhs<C>{x, I}, CellPanel::operand(w_ih, I, first_gate), I);
  }

  // One step of R sequences in one panel; r is the first sequence, counted within this share.
  template <int R, bool kJoined, bool kSaves>
  __attribute__((noinline)) void tile(int64_t s, int64_t p, int64_t r, const C *x, const C *w_ih,
                                      const C *w_hh) {
    Vec<C> acc[R][G];
    C input_n[R][lanes];
    const int64_t b = batch_begin_ + r;
    const C *h_old = h_[s & 1];
    const Lhs<C> h_rows{h_old + b * state_panels_ * lanes, state_panels_ * lanes};
    if constexpr (R <= kTile) {
      start<kJoined>(acc, p, r, x, w_ih);
      CellPanel::template part_input<R>(acc, input_n, bias_ + p * 4 * lanes);
      w_hh ? multiply(acc, h_rows, CellPanel::operand(w_hh, P), P)
           : add_in_place(acc, h_rows, arrays_.w_hh, P, p);
    } else {
      for (int first = 0; first < G; first += 2) {
        Vec<C> half[R][2];
        start<kJoined>(half, p, r, x, w_ih, first);
        multiply(half, h_rows, CellPanel::operand(w_hh, P, first), P);
        for (int i = 0; i < R; ++i)
          for (int g = 0; g < 2; ++g) acc[i][first + g] = half[i][g];
      }
    }
    C *h_new = projects_ ? m_ : h_[~s & 1];
    const int64_t n = units_in(p), first_row = walk_.offset(walk_.time(s)) + b;
    // The results' cache lines are not in cache yet: prefetch those of the next step.
    const int64_t next_row = s + 1 < walk_.steps ? walk_.offset(walk_.time(s + 1)) + b : first_row;
    // Always inlined: otherwise acc would need an address, and be in memory during the products.
    const auto open = [&](int i, Vec<C>(&gate)[4], Vec<C> &c) __attribute__((always_inline)) {
      if (!streams_ && !projects_)
        __builtin_prefetch(static_cast<S *>(arrays_.y) + (next_row + i) * H + p * lanes, 1);
      if (kSaves && !streams_gates_) {
        const S *gates = static_cast<S *>(arrays_.gates) + this->gates_at(next_row + i, p);
        for (int at = 0; at < 4 * lanes; at += kLineBytes / int(sizeof(S)))
          __builtin_prefetch(gates + at, 1);
      }
      if constexpr (Cell::kHasCell) c = load(c_ + ((b + i) * panels_ + p) * lanes);
      CellPanel::open(acc[i], input_n[i], c, gate);
    };
    const auto close = [&](int i, Vec<C>(&gate)[4], Vec<C> c) __attribute__((always_inline)) {
      const int64_t state = ((b + i) * panels_ + p) * lanes, row = first_row + i;
      Vec<C> h{};  // only a GRU needs the old h of the same unit
      if constexpr (!Cell::kHasCell) h = load(h_old + state);
      h = Cell::close(gate, h, c);
      store(h_new + state, h);
      if (!projects_) put<1>(static_cast<S *>(arrays_.y) + row * H + p * lanes, h, n, streams_);
      if constexpr (Cell::kHasCell) store(c_ + state, c);
      if constexpr (!kSaves) return;
      S *gates = static_cast<S *>(arrays_.gates) + this->gates_at(row, p);
      for (int g = 0; g < 4; ++g) put<4>(gates + g * n, gate[g], n, streams_gates_);
      if constexpr (Cell::kHasCell)
        put<1>(static_cast<S *>(arrays_.cells) + row * H + p * lanes, c, n, streams_);
    };
    if constexpr (kSaves && kRegisters >= 32) {  // a tall tile's results would not fit in registers
      for (int i = 0; i < R; ++i) {
        Vec<C> gate[4], c{};
        open(i, gate, c);
        close(i, gate, c);
      }
    } else {  // with one row at a time, each function would wait for the one before
      Vec<C> gate[R][4], c[R];
      for (int i = 0; i < R; ++i) open(i, gate[i], c[i]);
      for (int i = 0; i < R; ++i) close(i, gate[i], c[i]);
    }
  }

  // The new h of a step: what its tiles left in m_, times w_hr.
  void project_states(int64_t s) {
    const int64_t t = walk_.time(s);
    for (int64_t q = state_begin_; q < state_end_; ++q) {
      const C *w = in_place_ ? nullptr : projection_panel(q, s);
      const auto compute = [&](auto height, int64_t r) {
        project_tile<decltype(height)::value>(s, t, q, batch_begin_ + r, w);
      };
      for_tiles<tile_rows(1)>(rows(t), compute);
    }
  }

  template <int R>
  __attribute__((noinline)) void project_tile(int64_t s, int64_t t, int64_t q, int64_t b,
                                              const C *w) {
    Vec<C> acc[R][1] = {};
    const Lhs<C> m{m_ + b * panels_ * lanes, panels_ * lanes};
    const S *rows_of_w = static_cast<const S *>(job_.w_hr) + q * lanes * H;
    w ? multiply(acc, m, Rhs<C>{w, lanes, lanes}, H)
      : multiply_in_place(acc, m, rows_of_w, 0, features_in(q), H);
    S *y = static_cast<S *>(arrays_.y) + (walk_.offset(t) + b) * P + q * lanes;
    for (int i = 0; i < R; ++i) {
      store(h_[~s & 1] + ((b + i) * state_panels_ + q) * lanes, acc[i][0]);
      store_n(y + i * P, acc[i][0], features_in(q));
    }
  }

  const fastrnn_forward_arrays arrays_;
  const bool prepacked_;
  const bool in_place_;  // whether weights are read as they lie, not packed
  const bool joined_;    // whether a step projects its own input
  const bool projects_;  // whether h is a projection of the step's results
  const bool tall_;      // whether tiles are tall: in inference, unless the weights are far
  const bool streams_,
      streams_gates_;  // whether stores bypass the caches: of y and cells; of gates
  bool packs_input_;
  int64_t steps_ahead_;
  size_t used_;
  C *w_hh_, *w_ih_, *bias_, *h_[2], *c_, *m_, *w_hr_;          // shared by all threads
  C *panel_ = nullptr, *x_ = nullptr, *projection_ = nullptr;  // of this thread
  const C *projected_ = nullptr;  // the current step's rows in the first panel of projection_
  int64_t rows_ahead_ = 0;        // how many rows projection_ holds
};

}  // namespace fastrnn::FASTRNN_LEVEL

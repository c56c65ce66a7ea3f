// One layer in one direction, forward.
//
// A step multiplies the old h by the recurrent weights, panel by panel. A panel is one vector of
// hidden units with all its gates, so the cell's arithmetic follows in the same pass, in registers.
// The step also projects a narrow input. A wide input is projected several steps at a time, in a
// larger product. If the layer has a projection, one more product makes the new h of the step's
// results, which then are not h itself.
#pragma once

#include "forward_scratch.h"
#include "in_place.h"

namespace fastrnn::FASTRNN_LEVEL {

template <class Cell, class S>
class Forward : ForwardScratch<Cell, S> {
  using Base = ForwardScratch<Cell, S>;
  using typename Base::C;
  using typename Base::CellPanel;
  using typename Base::ProjectionPanel;
  using typename Base::E;
  using Base::arrays_, Base::batch_begin_, Base::batch_end_, Base::bias_, Base::c_, Base::carried_,
      Base::features_in, Base::G, Base::H, Base::I, Base::h_, Base::in_place_, Base::job_,
      Base::joined_, Base::kCarriesApart, Base::kInPlaceTile, Base::kPanelOperands, Base::kTallTile,
      Base::kTile, Base::lanes, Base::ld_h_, Base::ld_m_, Base::ld_x_, Base::m_, Base::P,
      Base::packs_input_, Base::panel_, Base::panel_begin_, Base::panel_end_, Base::panels_,
      Base::prepacked_, Base::projection_, Base::projects_, Base::rows, Base::state_begin_,
      Base::state_end_, Base::state_panels_, Base::steps_ahead_, Base::streams_,
      Base::streams_gates_, Base::tall_, Base::thread_, Base::units_in, Base::w_hh_, Base::w_hr_,
      Base::w_ih_, Base::walk_, Base::x_, Base::reads_input;

 public:
  static size_t scratch(const Job &job) { return Forward(job, 0, nullptr).used_; }
  static void run(const Job &job, int thread) { Forward(job, thread, job.scratch).run(); }

 private:
  using Base::Base;

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
  const E *pack_panel(E *packed, const void *w, int64_t K, int64_t p) const {
    E *panel = packed + p * CellPanel::packed_size(K);
    CellPanel::pack_weights(panel, static_cast<const S *>(w), H, K, p);
    return panel;
  }

  // Panel p of a packed matrix [G*H, K].
  const E *panel(E *packed, const void *w, int64_t K, int64_t p, int64_t s) const {
    if (s == 0 && job_.grid.row_groups == 1 && !prepacked_) return pack_panel(packed, w, K, p);
    return packed + p * CellPanel::packed_size(K);
  }
  const E *recurrent_panel(int64_t p, int64_t s) const {
    return panel(w_hh_, arrays_.w_hh, P, p, s);
  }
  // If the matrix is not kept packed, the panel lasts until the next one is asked for.
  const E *input_panel(int64_t p, int64_t s) const {
    if (packs_input_) return panel(w_ih_, arrays_.w_ih, I, p, s);
    CellPanel::pack_weights(panel_, static_cast<const S *>(arrays_.w_ih), H, I, p);
    return panel_;
  }

  // Panel q of w_hr [P, H], packed.
  const E *pack_projection(int64_t q) const {
    E *packed = w_hr_ + q * ProjectionPanel::packed_size(H);
    ProjectionPanel::pack_weights(packed, static_cast<const S *>(job_.w_hr), P, H, q);
    return packed;
  }
  const E *projection_panel(int64_t q, int64_t s) const {
    if (s == 0 && job_.grid.row_groups == 1) return pack_projection(q);
    return w_hr_ + q * ProjectionPanel::packed_size(H);
  }

  // Adds to acc the product of R rows of `in` and panel p of a matrix [G*H, K], as it lies.
  template <int R>
  FASTRNN_INLINE void add_in_place(Vec<C> (&acc)[R][G], Lhs<E> in, const void *w, int64_t K,
                                   int64_t p) const {
    multiply_in_place(acc, in, static_cast<const S *>(w) + p * lanes * K, H * K, units_in(p), K);
  }

  // Fills both copies of h: in a reversed packed batch, a sequence may start at any step.
  void load_states() {
    const S *h0 = static_cast<const S *>(arrays_.h0), *c0 = static_cast<const S *>(arrays_.c0);
    for (int64_t b = batch_begin_; b < batch_end_; ++b) {
      for (int64_t q = state_begin_; q < state_end_; ++q) {
        const Vec<C> h = load_n(h0 + b * P + q * lanes, features_in(q));
        for (E *copy : h_) store(copy + b * ld_h_ + q * kPanelOperands, h);
        if (kCarriesApart) store(carried_ + (b * panels_ + q) * lanes, h);
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
      this->operand_rows(x_ + n * ld_x_, input(t), I, rows(t));
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
      const Rhs<E> w = CellPanel::rhs(input_panel(p, s), ld_x_);
      Product<E, false>{out, ld, true, {x_, ld_x_}, w, n, G, ld_x_}.run();
    }
    rows_ahead_ = n, projected_ = projection_;
  }

  template <int R>
  __attribute__((noinline)) void project_in_place(int64_t p, int64_t r, C *out, int64_t ld) const {
    Vec<C> acc[R][G];
    for (int i = 0; i < R; ++i)
      for (int g = 0; g < G; ++g) acc[i][g] = load(bias_ + (p * 4 + g) * lanes);
    add_in_place(acc, {x_ + r * ld_x_, ld_x_}, arrays_.w_ih, I, p);
    for (int i = 0; i < R; ++i)
      for (int g = 0; g < G; ++g) store(out + i * ld + g * lanes, acc[i][g]);
  }

  void step(int64_t s) {
    const int64_t t = walk_.time(s), n = rows(t);
    const E *x = x_;
    if (joined_ && reads_input())
      x = reinterpret_cast<const E *>(input(t));
    else if (joined_)
      this->operand_rows(x_, input(t), I, n);
    for (int64_t p = panel_begin_; p < panel_end_; ++p) {
      const E *w_hh = in_place_ ? nullptr : recurrent_panel(p, s);
      const E *w_ih = joined_ ? input_panel(p, s) : nullptr;
      const auto compute = [&](auto height, int64_t r) {
        constexpr int R = decltype(height)::value;
        const auto run = [&](auto saves) {
          constexpr bool kSaves = decltype(saves)::value;
          joined_ ? tile<R, true, kSaves>(s, p, r, x + r * ld_x_, w_ih, w_hh)
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
  FASTRNN_INLINE void start(Vec<C> (&acc)[R][V], int64_t p, int64_t r, const E *x, const E *w_ih,
                            int first_gate = 0) const {
    const int64_t ld = kJoined ? 0 : G * lanes;
    const C *row =
        kJoined ? bias_ + p * 4 * lanes : projected_ + ((p - panel_begin_) * rows_ahead_ + r) * ld;
    for (int i = 0; i < R; ++i)
      for (int g = 0; g < V; ++g) acc[i][g] = load(row + i * ld + (first_gate + g) * lanes);
    if (kJoined) multiply(acc, Lhs<E>{x, ld_x_}, CellPanel::rhs(w_ih, ld_x_, first_gate), ld_x_);
  }

  // One step of R sequences in one panel; r is the first sequence, counted within this share.
  template <int R, bool kJoined, bool kSaves>
  __attribute__((noinline)) void tile(int64_t s, int64_t p, int64_t r, const E *x, const E *w_ih,
                                      const E *w_hh) {
    Vec<C> acc[R][G];
    C input_n[R][lanes];
    const int64_t b = batch_begin_ + r;
    const E *h_old = h_[s & 1];
    const Lhs<E> h_rows{h_old + b * ld_h_, ld_h_};
    const int64_t depth = operands<E>(P);
    if constexpr (R <= kTile) {
      start<kJoined>(acc, p, r, x, w_ih);
      CellPanel::template part_input<R>(acc, input_n, bias_ + p * 4 * lanes);
      w_hh ? multiply(acc, h_rows, CellPanel::rhs(w_hh, depth), depth)
           : add_in_place(acc, h_rows, arrays_.w_hh, P, p);
    } else {
      for (int first = 0; first < G; first += 2) {
        Vec<C> half[R][2];
        start<kJoined>(half, p, r, x, w_ih, first);
        multiply(half, h_rows, CellPanel::rhs(w_hh, depth, first), depth);
        for (int i = 0; i < R; ++i)
          for (int g = 0; g < 2; ++g) acc[i][first + g] = half[i][g];
      }
    }
    E *h_new = projects_ ? m_ : h_[~s & 1];
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
      const int64_t h_at = (b + i) * ld_m_ + p * kPanelOperands;
      Vec<C> h{};  // only a GRU needs the old h of the same unit
      if constexpr (kCarriesApart)
        h = load(carried_ + state);
      else if constexpr (!Cell::kHasCell)
        h = load(h_old + h_at);
      h = Cell::close(gate, h, c);
      store(h_new + h_at, h);
      if constexpr (kCarriesApart) store(carried_ + state, h);
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
      const E *w = in_place_ ? nullptr : projection_panel(q, s);
      const auto compute = [&](auto height, int64_t r) {
        project_tile<decltype(height)::value>(s, t, q, batch_begin_ + r, w);
      };
      for_tiles<tile_rows(1)>(rows(t), compute);
    }
  }

  template <int R>
  __attribute__((noinline)) void project_tile(int64_t s, int64_t t, int64_t q, int64_t b,
                                              const E *w) {
    Vec<C> acc[R][1] = {};
    const Lhs<E> m{m_ + b * ld_m_, ld_m_};
    const S *rows_of_w = static_cast<const S *>(job_.w_hr) + q * lanes * H;
    w ? multiply(acc, m, Rhs<E>{w, lanes, lanes}, operands<E>(H))
      : multiply_in_place(acc, m, rows_of_w, 0, features_in(q), H);
    S *y = static_cast<S *>(arrays_.y) + (walk_.offset(t) + b) * P + q * lanes;
    for (int i = 0; i < R; ++i) {
      store(h_[~s & 1] + (b + i) * ld_h_ + q * kPanelOperands, acc[i][0]);
      store_n(y + i * P, acc[i][0], features_in(q));
    }
  }

  const C *projected_ = nullptr;  // the current step's rows in the first panel of projection_
  int64_t rows_ahead_ = 0;        // how many rows projection_ holds
};

}  // namespace fastrnn::FASTRNN_LEVEL

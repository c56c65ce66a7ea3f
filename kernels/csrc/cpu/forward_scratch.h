// The arrays that a forward pass works in, where each of them lies in scratch memory, and how the
// pass is run.
#pragma once

#include "panels.h"
#include "share.h"

namespace fastrnn::FASTRNN_LEVEL {

struct Projection {  // as a cell of one gate, for packing its weights
  static constexpr int kGates = 1;
};

constexpr int64_t kNarrowInput = 32;  // widest input that each step always projects itself
constexpr int64_t kJoinedRows = kRegisters < 32 ? 3 : 12;  // from this many rows up, any input
constexpr int64_t kJoinedSavedRows = 9;  // the same in training, where inference has taller tiles
constexpr int64_t kProjectionBytes = 512 << 10;  // of projections computed ahead, per thread
// Weights of more bytes than this are read from memory in each step. Then the input's weights are
// used for more steps at a time, unless a step has many rows.
constexpr int64_t kFarWeights = 16 << 20, kFarProjectionBytes = 4 << 20, kFarRows = 24;
constexpr int64_t kMaxCachedBytes = 4 << 20;  // of results that stay in a cache until they are read

template <class Cell, class S>
class ForwardScratch : protected Share<S> {
 protected:
  using Base = Share<S>;
  using typename Base::C;
  using typename Base::E;
  using Base::H, Base::I, Base::lanes, Base::P, Base::panels_, Base::state_panels_, Base::walk_;
  using CellPanel = Panel<Cell, S>;
  using ProjectionPanel = Panel<Projection, S>;
  static constexpr int G = Cell::kGates, kTile = tile_rows(G), kInPlaceTile = tile_rows(4);
  static constexpr int64_t kPanelOperands = lanes / kNumbers<E>;
  // A GRU mixes the old h into the new one. Where products read h rounded, it is kept exact, too.
  static constexpr bool kCarriesApart = !Cell::kHasCell && !std::is_same_v<E, C>;
  // Where registers are few, a tile of half of an LSTM's gates at a time has twice as many rows and
  // reads the weights half as often.
  static constexpr int kTallTile = kRegisters < 32 && G == 4 ? tile_rows(2) : kTile;

  ForwardScratch(const Job &job, int thread, char *block)
      : Base(job, thread), arrays_(*job.forward), prepacked_(job.prepacked),
        in_place_(job.in_place && !prepacked_), joined_(joins_input()),
        projects_(kMayProject<Cell> && job.w_hr), tall_(!arrays_.gates && !far_weights()),
        streams_(streams_results()), streams_gates_(streams_gates()) {
    Arena arena(block);
    const PackedWeights<Cell, S> ready(job.prepacked, H, I);
    w_hh_ = prepacked_ ? ready.w_hh
                       : arena.take<E>(in_place_ ? 0 : panels_ * CellPanel::packed_size(P));
    bias_ = prepacked_ ? ready.bias : arena.take<C>(panels_ * 4 * lanes);
    for (E *&h : h_) h = arena.take<E>(walk_.batch * ld_h_);
    m_ = arena.take<E>(projects_ ? walk_.batch * ld_m_ : 0);
    w_hr_ = arena.take<E>(projects_ && !in_place_ ? state_panels_ * ProjectionPanel::packed_size(H)
                                                  : 0);
    carried_ = arena.take<C>(kCarriesApart ? walk_.batch * panels_ * lanes : 0);
    c_ = arena.take<C>(Cell::kHasCell ? walk_.batch * panels_ * lanes : 0);

    const int64_t sequences = this->max_sequences();
    const int64_t row_bytes = this->max_panels() * G * lanes * int64_t(sizeof(C));
    const int64_t ahead = far_weights() ? kFarProjectionBytes : kProjectionBytes;
    const int64_t steps = joined_ ? 1 : ahead / row_bytes / sequences;
    steps_ahead_ = steps < 1 ? 1 : steps < walk_.steps ? steps : walk_.steps;
    const int64_t rows_ahead = steps_ahead_ * sequences;
    packs_input_ = prepacked_ || joined_ || (!in_place_ && steps_ahead_ < walk_.steps);
    const int64_t panel_size = CellPanel::packed_size(I);
    w_ih_ = prepacked_ ? ready.w_ih : arena.take<E>(packs_input_ ? panels_ * panel_size : 0);
    for (int t = 0; t < job.grid.threads(); ++t) {
      E *panel = arena.take<E>(packs_input_ || in_place_ ? 0 : panel_size);
      E *x = arena.take<E>(joined_ && reads_input() ? 0 : rows_ahead * ld_x_);
      C *projection = arena.take<C>(joined_ ? 0 : rows_ahead * row_bytes / int64_t(sizeof(C)));
      if (t == thread) panel_ = panel, x_ = x, projection_ = projection;
    }
    used_ = arena.used();
  }

  // Whether a step projects its own input, so that projections need not be written and read again.
  // It does if the input is narrow, or if a step has enough rows to be worth reading the weights.
  bool joins_input() const {
    const bool saves = kTallTile > kTile && arrays_.gates;
    const int64_t enough = far_weights() ? kFarRows : saves ? kJoinedSavedRows : kJoinedRows;
    return I <= kNarrowInput || (!in_place_ && this->max_sequences() >= enough);
  }
  bool far_weights() const {
    return G * H * (I + P) * int64_t(sizeof(E)) / kNumbers<E> > kFarWeights;
  }
  // Whether the rows of the input are operands as they lie in memory.
  bool reads_input() const { return sizeof(S) == sizeof(C) || (kNumbers<E> == 2 && I % 2 == 0); }

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
  // Operands from one row to the next: of the input, of h, and of a step's results.
  const int64_t ld_x_ = operands<E>(I), ld_h_ = state_panels_ * kPanelOperands,
                ld_m_ = panels_ * kPanelOperands;
  // Shared by all threads:
  C *bias_, *c_, *carried_;
  E *w_hh_, *w_ih_, *h_[2], *m_, *w_hr_;
  // Of this thread:
  E *panel_ = nullptr, *x_ = nullptr;
  C *projection_ = nullptr;
};

}  // namespace fastrnn::FASTRNN_LEVEL

// One layer in one direction, backward through time. A step turns the gradient of h into gradients
// before the gates' activations and sends those; the next one multiplies them with the transposed
// recurrent weights, which gives the gradient of the h before.
#pragma once

#include "share.h"

namespace fastrnn::cuda {

template <class Cell, class Math, bool kGrid, class Machine>
class Backward : Share<Cell, Math, true, kGrid, Machine> {
  using Base = Share<Cell, Math, true, kGrid, Machine>;
  using typename Base::Item;
  using typename Base::Pack;
  using typename Base::S;
  using typename Base::V;
  using Base::G, Base::H, Base::items_, Base::kWide, Base::layer_, Base::m_, Base::plan_,
      Base::steps_, Base::unit_;

  // What a step reads of an item.
  struct Saved {
    Pack gates[4], dy, before, cell;  // before: c (LSTM) or h (GRU) of the step before
  };

 public:
  FASTRNN_INLINE Backward(const Layer &layer, Machine &machine)
      : Base(layer, machine, layer.backward.w_hh_t), arrays_(layer.backward) {}

  FASTRNN_INLINE void run() {
    this->load_state(dh_, arrays_.dh_n, 0);
    if constexpr (Cell::kHasCell) this->load_state(dc_, arrays_.dc_n, 1);
    this->clear_buffers();
    next_ = this->offset(time(layer_.begin));
    before_ = this->offset(time(layer_.begin + 1));
    fetch(layer_.begin);
    const int end = layer_.end < steps_ + 1 ? layer_.end : steps_ + 1;
    // Behind the last step stands the product of what it has sent.
    for (int s = layer_.begin; s < end; ++s) {
      if (s > 0) add_product(~s & 1);
      if (s < steps_) step(s, s + 1 < end);
    }
    this->store_state(dh_, arrays_.dh0, 0);
    if constexpr (Cell::kHasCell) this->store_state(dc_, arrays_.dc0, 1);
  }

 private:
  FASTRNN_INLINE int time(int step) const { return Base::time(steps_ - 1 - step); }

  FASTRNN_INLINE void fetch(int step) {
    const int time = this->time(step), time_before = this->time(step + 1);
    for (int k = 0; k < kWide; ++k) {
      const Item &item = items_[k];
      if (!this->active(item, time)) continue;
      const int row = next_ + item.b;
      Saved &saved = saved_[k];
      for (int g = 0; g < 4; ++g) saved.gates[g] = this->load(arrays_.gates, row, g * H, 4 * H);
      saved.dy = arrays_.dy ? this->load(arrays_.dy, row, 0, H) : Pack{};
      const void *states = Cell::kHasCell ? arrays_.cells : arrays_.y;
      if (this->active(item, time_before))
        saved.before = this->load(states, before_ + item.b, 0, H);
      else
        saved.before = this->load(Cell::kHasCell ? arrays_.c0 : arrays_.h0, item.b, 0, H);
      if constexpr (Cell::kHasCell) saved.cell = this->load(states, row, 0, H);
    }
    now_ = next_;
    next_ = before_;
    before_ = this->offset(this->time(step + 2));
  }

  FASTRNN_INLINE void add_product(int parity) {
    float sums[kWide][1][kWide];
    this->product(sums, parity);
    for (int k = 0; k < kWide; ++k)
      for (int w = 0; w < kWide; ++w) dh_[k][w].v += sums[k][0][w];
  }

  FASTRNN_INLINE void step(int s, bool meets) {
    const int time = this->time(s), first_row = now_;
    V d[kWide][kWide][4];
    for (int k = 0; k < kWide; ++k) {
      const bool active = this->active(items_[k], time);
      const Saved &saved = saved_[k];
      for (int w = 0; w < kWide; ++w) {
        V gate[4];
        for (int g = 0; g < 4; ++g) gate[g] = m_.widen(saved.gates[g].v[w]);
        const V before = m_.widen(saved.before.v[w]);
        const V cell = Cell::kHasCell ? m_.widen(saved.cell.v[w]) : 0.0f;
        V dh = dh_[k][w] + m_.widen(saved.dy.v[w]), dc = dc_[k][w];
        Cell::backward(gate, before, before, cell, dh, dc, d[k][w]);
        if (active)
          dh_[k][w] = dh, dc_[k][w] = dc;
        else
          for (int g = 0; g < 4; ++g) d[k][w][g] = 0.0f;
      }
    }
    fetch(s + 1);
    for (int g = 0; g < G; ++g)
      for (int k = 0; k < kWide; ++k) {
        V values[kWide];
        for (int w = 0; w < kWide; ++w) values[w] = d[k][w][g];
        if (items_[k].length > 0) this->send(s & 1, items_[k], g, values);
      }
    if (meets) this->arrive();
    for (int k = 0; k < kWide; ++k) {
      if (!this->active(items_[k], time)) continue;
      for (int g = 0; g < 4; ++g) {
        V values[kWide];
        for (int w = 0; w < kWide; ++w) values[w] = d[k][w][g];
        this->store(arrays_.dgates, first_row + items_[k].b, place(g) * H, 4 * H, values);
      }
    }
    if (meets) this->wait(s - layer_.begin);
  }

  // Where a cell's d[g] stands in a row of dgates.
  static FASTRNN_INLINE int place(int g) {
    if constexpr (Cell::kHasCell)
      return g;
    else
      return g == Cell::kDM ? 3 : g == Cell::kDN ? 0 : g;
  }

  const fastrnn_cuda_backward_arrays &arrays_;
  V dh_[kWide][kWide], dc_[kWide][kWide];
  Saved saved_[kWide] = {};
  // First rows: of this step, of the one that is fetched next and of the one before that.
  int now_ = 0, next_ = 0, before_ = 0;
};

}  // namespace fastrnn::cuda

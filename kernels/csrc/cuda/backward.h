// One layer in one direction, backward through time. A step turns the gradient of h into gate
// gradients, which are the gradients before the activations, and sends them. The next step
// multiplies them by the transposed recurrent weights, which yields the gradient of the previous h.
#pragma once

#include "product.h"

namespace fastrnn::cuda {

template <class Cell, class Math, bool kGrid, class Machine>
class Backward : Product<Cell, Math, true, kGrid, Machine> {
  using Base = Product<Cell, Math, true, kGrid, Machine>;
  using typename Base::Early;
  using typename Base::Item;
  using typename Base::Pack;
  using typename Base::S;
  using typename Base::V;
  using Base::G, Base::H, Base::items_, Base::kWide, Base::layer_, Base::machine_, Base::plan_,
      Base::steps_, Base::unit_;

  // The saved values that a step reads for one item.
  struct Saved {
    Early gates[4], dy, before, cell;  // before: c (LSTM) or h (GRU) before the step
  };

 public:
  FASTRNN_INLINE Backward(const Layer &layer, Machine &machine)
      : Base(layer, machine, layer.backward.w_hh_t), arrays_(layer.backward) {}

  FASTRNN_INLINE void run() {
    this->load_state(dh_, arrays_.dh_n, 0);
    if constexpr (Cell::kHasCell) this->load_state(dc_, arrays_.dc_n, 1);
    this->clear_buffers();
    if (this->idle()) return;
    this->load_offset(offset_before_, time(this->begin_step()));
    row_before_ = this->first_row(offset_before_, time(this->begin_step()));
    this->load_offset(offset_before_, time(this->begin_step() + 1));
    fetch(this->begin_step());
    const int end = layer_.end_step < steps_ + 1 ? layer_.end_step : steps_ + 1;
    // After the last step, one more product gives the gradients of the initial states.
    for (int s = this->begin_step(); s < end; ++s) {
      if (s > 0) add_product(~s & 1);
      if (s < steps_) step(s, s + 1 < end);
    }
    this->store_state(dh_, arrays_.dh0, 0);
    if constexpr (Cell::kHasCell) this->store_state(dc_, arrays_.dc0, 1);
  }

 private:
  FASTRNN_INLINE int time(int step) const { return Base::time(steps_ - 1 - step); }

  // Loads what a step reads, one step before it is used.
  FASTRNN_INLINE void fetch(int step) {
    const int time = this->time(step), time_before = this->time(step + 1);
    row_ = row_before_;
    row_before_ = this->first_row(offset_before_, time_before);
#pragma unroll
    for (int k = 0; k < kWide; ++k) {
      const Item &item = items_[k];
      if (!this->active(item, time)) continue;
      const int row = row_ + item.b;
      Saved &saved = saved_[k];
      this->template load<4>(saved.gates, arrays_.gates, row);
      saved.dy = arrays_.dy ? this->load(arrays_.dy, row) : Early{};
      const void *states = Cell::kHasCell ? arrays_.cells : arrays_.y;
      if (this->active(item, time_before))
        saved.before = this->load(states, row_before_ + item.b);
      else
        saved.before = this->load(Cell::kHasCell ? arrays_.c0 : arrays_.h0, item.b);
      if constexpr (Cell::kHasCell) saved.cell = this->load(states, row);
    }
    this->load_offset(offset_before_, this->time(step + 2));
  }

  FASTRNN_INLINE void add_product(int parity) {
    float sums[kWide][1][kWide];
    this->product(sums, parity);
#pragma unroll
    for (int k = 0; k < kWide; ++k) {
      if (!kGrid && !this->computes(k)) break;
      for (int w = 0; w < kWide; ++w) dh_[k][w].v += sums[k][0][w];
    }
  }

  FASTRNN_INLINE void step(int s, bool barrier_follows) {
    const int time = this->time(s);
    Pack gradients[kWide][4];
#pragma unroll
    for (int k = 0; k < kWide; ++k) {
      if (!kGrid && !this->computes(k)) break;
      const bool active = this->active(items_[k], time);
      const Saved &saved = saved_[k];
      V d[kWide][4];
      for (int w = 0; w < kWide; ++w) {
        V gate[4];
        for (int g = 0; g < 4; ++g) gate[g] = this->value(saved.gates[g], w);
        const V before = this->value(saved.before, w);
        const V cell = Cell::kHasCell ? this->value(saved.cell, w) : 0.0f;
        V dh = dh_[k][w] + this->value(saved.dy, w), dc = dc_[k][w];
        Cell::backward(gate, before, before, cell, dh, dc, d[w]);
        if (active)
          dh_[k][w] = dh, dc_[k][w] = dc;
        else
          for (int g = 0; g < 4; ++g) d[w][g] = 0.0f;
      }
      for (int g = 0; g < 4; ++g) {
        V values[kWide];
        for (int w = 0; w < kWide; ++w) values[w] = d[w][g];
        gradients[k][g] = this->narrow(values);
      }
    }
    this->send(s & 1, gradients);
    const int row = row_;
    if (barrier_follows) this->arrive(s - this->begin_step());
    // The rest of the step is done while the gradients are on their way.
    fetch(s + 1);
#pragma unroll
    for (int k = 0; k < kWide; ++k) {
      if (!this->active(items_[k], time)) continue;
      Pack columns[4];
      for (int g = 0; g < 4; ++g) columns[place(g)] = gradients[k][g];
      this->store(arrays_.dgates, row + items_[k].b, columns);
    }
    if (barrier_follows) this->wait(s - this->begin_step());
  }

  // The position of gate gradient g in a row of dgates.
  static FASTRNN_INLINE int place(int g) {
    if constexpr (Cell::kHasCell)
      return g;
    else
      return g == Cell::kDM ? 3 : g == Cell::kDN ? 0 : g;
  }

  const fastrnn_cuda_backward_arrays &arrays_;
  V dh_[kWide][kWide], dc_[kWide][kWide];
  Saved saved_[kWide] = {};
  // First rows of the step fetched last and of the one after it, and the offset of the next one.
  int row_ = 0, row_before_ = 0, offset_before_ = 0;
};

}  // namespace fastrnn::cuda

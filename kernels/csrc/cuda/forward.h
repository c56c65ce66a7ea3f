// One layer in one direction, forward. A step multiplies the states that the blocks of the group
// have sent by the recurrent weights, adds the input's part, and sends the new states.
#pragma once

#include "product.h"

namespace fastrnn::cuda {

template <class Cell, class Math, bool kGrid, class Machine>
class Forward : Product<Cell, Math, false, kGrid, Machine> {
  using Base = Product<Cell, Math, false, kGrid, Machine>;
  using typename Base::Early;
  using typename Base::Item;
  using typename Base::Pack;
  using typename Base::S;
  using typename Base::V;
  using Base::G, Base::H, Base::items_, Base::kWide, Base::lane_, Base::layer_, Base::machine_,
      Base::plan_, Base::steps_, Base::tile_, Base::unit_;

  // Of an item: a block per gate, or a narrow input's features.
  static constexpr int kInputs = G > kMaxNarrowInput ? G : kMaxNarrowInput;

 public:
  FASTRNN_INLINE Forward(const Layer &layer, Machine &machine)
      : Base(layer, machine, layer.forward.w_hh), arrays_(layer.forward) {
    for (int w = 0; w < kWide; ++w)
      for (int g = 0; g < 4; ++g) bias_[w][g] = bias(g, unit_ + w);
    load_input_weights();
  }

  FASTRNN_INLINE void run() {
    this->load_state(h_, arrays_.h0, 0);
    if constexpr (Cell::kHasCell) this->load_state(c_, arrays_.c0, 1);
    this->clear_buffers();
    if (this->idle()) return;
    const int end = layer_.end_step < steps_ ? layer_.end_step : steps_;
    if (this->first_launch()) {
      send_states(0);
      if (end > 0) {
        this->arrive(0);
        this->wait(0);
      }
    }
    this->load_offset(offset_, this->time(this->begin_step()));
    fetch(this->begin_step());
    for (int s = this->begin_step(); s < end; ++s) step(s, s + 1 < end);
    this->store_state(h_, arrays_.h_n, 0);
    if constexpr (Cell::kHasCell) this->store_state(c_, arrays_.c_n, 1);
  }

 private:
  // The bias of gate g. A GRU has a fourth one, the recurrent bias of n.
  FASTRNN_INLINE float bias(int g, int unit) const {
    if (!arrays_.b_ih || unit >= H) return 0;
    const S *b_ih = static_cast<const S *>(arrays_.b_ih);
    const S *b_hh = static_cast<const S *>(arrays_.b_hh);
    float sum = 0;
    if (g < G) sum += machine_.widen(b_ih[g * H + unit]);
    if (Cell::kHasCell || g < 2) sum += machine_.widen(b_hh[g * H + unit]);
    if (g == G) sum += machine_.widen(b_hh[2 * H + unit]);
    return sum;
  }

  // --- the input's part

  // The weights of a narrow input are in shared memory, as [tile][gate][feature][unit].
  FASTRNN_INLINE float *input_weights(int g, int i) const {
    const int at = (tile_ * G + g) * kMaxNarrowInput + i;
    return reinterpret_cast<float *>(machine_.shared() + plan_.inputs_at) + at * Math::kUnits +
           lane_ / 4 * kWide;
  }
  FASTRNN_INLINE void load_input_weights() const {  // each lane loads what it will read
    const S *w_ih = static_cast<const S *>(arrays_.w_ih);
    for (int i = 0; i < layer_.input_size; ++i)
      for (int g = 0; g < G; ++g)
        for (int w = 0; w < kWide; ++w)
          if (unit_ + w < H)
            input_weights(g, i)[w] =
                machine_.widen(w_ih[(g * H + unit_ + w) * layer_.input_size + i]);
  }

  // Loads the input of a step, one step before it is used.
  FASTRNN_INLINE void fetch(int step) {
    const int time = this->time(step);
    row_ = this->first_row(offset_, time);
#pragma unroll
    for (int k = 0; k < kWide; ++k) {
      if (!this->active(items_[k], time)) continue;
      const int row = row_ + items_[k].b;
      const S *x = static_cast<const S *>(arrays_.x);
      if (layer_.input_size == 0)
        this->template load<G>(input_[k], x, row);
      else
#pragma unroll
        for (int i = 0; i < kMaxNarrowInput; ++i)
          if (i < layer_.input_size)
            input_[k][i].words[0] = machine_.load_element(x + int64_t(row) * layer_.input_size + i);
    }
    this->load_offset(offset_, this->time(step + 1));
  }

  FASTRNN_INLINE void add_input(V (&gate)[kWide][4], const Early (&input)[kInputs]) const {
    if (layer_.input_size == 0) {
      for (int g = 0; g < G; ++g)
        for (int w = 0; w < kWide; ++w) gate[w][g] = gate[w][g] + this->value(input[g], w);
      return;
    }
#pragma unroll
    for (int i = 0; i < kMaxNarrowInput; ++i) {
      if (i >= layer_.input_size) break;
      const float x = this->value(input[i], 0).v;
      for (int g = 0; g < G; ++g) {
        const auto weights = *reinterpret_cast<const Packet<float, kWide> *>(input_weights(g, i));
        for (int w = 0; w < kWide; ++w) gate[w][g].v += x * weights.v[w];
      }
    }
  }

  // --- a step

  FASTRNN_INLINE void step(int s, bool barrier_follows) {
    const int time = this->time(s);
    float sums[kWide][G][kWide];
    this->product(sums, s & 1);
    V gate[kWide][kWide][4];
#pragma unroll
    for (int k = 0; k < kWide; ++k) {
      if (!kGrid && !this->computes(k)) break;
      for (int w = 0; w < kWide; ++w) {
        for (int g = 0; g < 4; ++g) gate[k][w][g] = bias_[w][g];
        // The GRU multiplies the recurrent part of n by r before it adds the input's part.
        for (int g = 0; g < G; ++g)
          gate[k][w][!Cell::kHasCell && g == 2 ? 3 : g].v += sums[k][g][w];
      }
      add_input(gate[k], input_[k]);
      const bool active = this->active(items_[k], time);
      for (int w = 0; w < kWide; ++w) {
        V c = c_[k][w];
        const V h = Cell::forward(gate[k][w], h_[k][w], c);
        if (active) h_[k][w] = h, c_[k][w] = c;
      }
    }
    if (s + 1 < steps_) send_states(~s & 1);
    const int barriers_passed = s - this->begin_step() + 1, row = row_;
    if (barrier_follows) this->arrive(barriers_passed);
    // The rest of the step is done while the states are on their way.
    fetch(s + 1);
    for (int k = 0; k < kWide; ++k)
      if (this->active(items_[k], time)) store_results(k, row + items_[k].b, gate[k]);
    if (barrier_follows) this->wait(barriers_passed);
  }

  FASTRNN_INLINE void send_states(int parity) {
    Pack packs[kWide][1];
    for (int k = 0; k < kWide; ++k) packs[k][0] = this->narrow(h_[k]);
    this->send(parity, packs);
  }

  FASTRNN_INLINE void store_results(int k, int row, const V (&gate)[kWide][4]) const {
    this->store(arrays_.y, row, h_[k]);
    if (!arrays_.gates) return;
    Pack packs[4];
    for (int g = 0; g < 4; ++g) {
      V values[kWide];
      for (int w = 0; w < kWide; ++w) values[w] = gate[w][g];
      packs[g] = this->narrow(values);
    }
    this->store(arrays_.gates, row, packs);
    if constexpr (Cell::kHasCell) this->store(arrays_.cells, row, c_[k]);
  }

  const fastrnn_forward_arrays &arrays_;
  float bias_[kWide][4];
  V h_[kWide][kWide], c_[kWide][kWide];
  Early input_[kWide][kInputs] = {};
  int row_ = 0;     // the first row of the step fetched last
  int offset_ = 0;  // of the next one to fetch
};

}  // namespace fastrnn::cuda

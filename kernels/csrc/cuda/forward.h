// One layer in one direction, forward. A step multiplies the states that the group's blocks have sent
// with the recurrent weights, adds the input's share, and sends the new states.
#pragma once

#include "share.h"

namespace fastrnn::cuda {

template <class Cell, class Math, bool kGrid, class Machine>
class Forward : Share<Cell, Math, false, kGrid, Machine> {
  using Base = Share<Cell, Math, false, kGrid, Machine>;
  using typename Base::Item;
  using typename Base::Pack;
  using typename Base::S;
  using typename Base::V;
  using Base::G, Base::H, Base::items_, Base::kWide, Base::lane_, Base::layer_, Base::m_,
      Base::plan_, Base::steps_, Base::tile_, Base::unit_;

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
    const int end = layer_.end < steps_ ? layer_.end : steps_;
    if (layer_.opens) {
      send_states(0);
      if (end > 0) this->meet(0);
    }
    next_ = this->offset(this->time(layer_.begin));
    fetch(layer_.begin);
    for (int s = layer_.begin; s < end; ++s) step(s, s + 1 < end);
    this->store_state(h_, arrays_.h_n, 0);
    if constexpr (Cell::kHasCell) this->store_state(c_, arrays_.c_n, 1);
  }

 private:
  // What the input and the biases add to gate g; the last of a GRU's is added to the product alone.
  FASTRNN_INLINE float bias(int g, int unit) const {
    if (!arrays_.b_ih || unit >= H) return 0;
    const S *b_ih = static_cast<const S *>(arrays_.b_ih);
    const S *b_hh = static_cast<const S *>(arrays_.b_hh);
    float sum = 0;
    if (g < G) sum += m_.widen(b_ih[g * H + unit]);
    if (Cell::kHasCell || g < 2) sum += m_.widen(b_hh[g * H + unit]);
    if (g == G) sum += m_.widen(b_hh[2 * H + unit]);
    return sum;
  }

  // --- the input's share --------------------------------------------------------------------------

  // Weights of a narrow input, in shared memory as [tile][gate][feature][unit].
  FASTRNN_INLINE float *input_weights(int g, int i) const {
    const int at = (tile_ * G + g) * kMostNarrow + i;
    return reinterpret_cast<float *>(m_.shared() + plan_.inputs_at) + at * Math::kUnits +
           lane_ / 4 * kWide;
  }
  FASTRNN_INLINE void load_input_weights() const {  // each warp and lane all that it will read
    const S *w_ih = static_cast<const S *>(arrays_.w_ih);
    for (int i = 0; i < layer_.input_size; ++i)
      for (int g = 0; g < G; ++g)
        for (int w = 0; w < kWide; ++w)
          if (unit_ + w < H)
            input_weights(g, i)[w] = m_.widen(w_ih[(g * H + unit_ + w) * layer_.input_size + i]);
  }

  // Reads a step's input, which is used a step later.
  FASTRNN_INLINE void fetch(int step) {
    const int time = this->time(step);
    for (int k = 0; k < kWide; ++k) {
      if (!this->active(items_[k], time)) continue;
      const int row = next_ + items_[k].b;
      const S *x = static_cast<const S *>(arrays_.x);
      if (layer_.input_size == 0)
        for (int g = 0; g < G; ++g) input_[k][g] = this->load(x, row, g * H, G * H);
      else
#pragma unroll
        for (int i = 0; i < kMostNarrow; ++i)
          if (i < layer_.input_size) input_[k][i].v[0] = m_.load(x + int64_t(row) * layer_.input_size + i);
    }
    now_ = next_;
    next_ = this->offset(this->time(step + 1));
  }

  FASTRNN_INLINE void add_input(V (&gate)[kWide][4], const Pack (&input)[4]) const {
    if (layer_.input_size == 0) {
      for (int g = 0; g < G; ++g)
        for (int w = 0; w < kWide; ++w) gate[w][g].v += m_.widen(input[g].v[w]);
      return;
    }
#pragma unroll
    for (int i = 0; i < kMostNarrow; ++i) {
      if (i >= layer_.input_size) break;
      const float x = m_.widen(input[i].v[0]);
      for (int g = 0; g < G; ++g)
        for (int w = 0; w < kWide; ++w) gate[w][g].v += x * input_weights(g, i)[w];
    }
  }

  // --- a step -------------------------------------------------------------------------------------

  FASTRNN_INLINE void step(int s, bool meets) {
    const int time = this->time(s), first_row = now_;
    float sums[kWide][G][kWide];
    this->product(sums, s & 1);
    V gate[kWide][kWide][4];
    for (int k = 0; k < kWide; ++k) {
      for (int w = 0; w < kWide; ++w) {
        for (int g = 0; g < 4; ++g) gate[k][w][g] = bias_[w][g];
        // A GRU's last product is not added to the input's share: r multiplies it first.
        for (int g = 0; g < G; ++g) gate[k][w][!Cell::kHasCell && g == 2 ? 3 : g].v += sums[k][g][w];
      }
      add_input(gate[k], input_[k]);
    }
    fetch(s + 1);
    for (int k = 0; k < kWide; ++k) {
      const bool active = this->active(items_[k], time);
      for (int w = 0; w < kWide; ++w) {
        V c = c_[k][w];
        const V h = Cell::forward(gate[k][w], h_[k][w], c);
        if (active) h_[k][w] = h, c_[k][w] = c;
      }
    }
    if (s + 1 < steps_) send_states(~s & 1);
    if (meets) this->arrive();
    for (int k = 0; k < kWide; ++k)
      if (this->active(items_[k], time)) store_results(k, first_row + items_[k].b, gate[k]);
    if (meets) this->wait(s - layer_.begin + 1);
  }

  FASTRNN_INLINE void send_states(int parity) {
    for (int k = 0; k < kWide; ++k)
      if (items_[k].length > 0) this->send(parity, items_[k], 0, h_[k]);
  }

  FASTRNN_INLINE void store_results(int k, int row, const V (&gate)[kWide][4]) const {
    this->store(arrays_.y, row, 0, H, h_[k]);
    if (!arrays_.gates) return;
    for (int g = 0; g < 4; ++g) {
      V values[kWide];
      for (int w = 0; w < kWide; ++w) values[w] = gate[w][g];
      this->store(arrays_.gates, row, g * H, 4 * H, values);
    }
    if constexpr (Cell::kHasCell) this->store(arrays_.cells, row, 0, H, c_[k]);
  }

  const fastrnn_forward_arrays &arrays_;
  float bias_[kWide][4];
  V h_[kWide][kWide], c_[kWide][kWide];
  Pack input_[kWide][4] = {};
  int now_ = 0, next_ = 0;  // first rows: of this step and of the one that is fetched next
};

}  // namespace fastrnn::cuda

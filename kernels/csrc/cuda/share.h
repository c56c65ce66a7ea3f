// The share of a layer that one thread computes: its units and rows, and their elements in memory.
// `Machine` is the GPU, or the emulated GPU of the tests.
#pragma once

#include "numbers.h"

namespace fastrnn::cuda {

template <class Cell, class Math, bool kBackward, bool kGrid, class Machine>
class Share {
 protected:
  using S = typename Math::S;
  using V = typename Math::Value;
  using Pack = typename Math::Pack;
  static constexpr int G = Cell::kGates, kWide = Math::kWide;

  // Sequence b, which is row `row` of the group. `length` is its number of steps; 0 if this thread
  // has no such item.
  struct Item {
    int row, b, length;
  };

  FASTRNN_INLINE Share(const Layer &layer, Machine &machine)
      : layer_(layer), plan_(layer.plan), machine_(machine), H(layer.hidden_size),
        lane_(machine_.thread() % kWarp), slice_(machine_.thread() / kWarp % plan_.split),
        tile_(machine_.thread() / kWarp / plan_.split),
        block_(int(machine_.block() % plan_.blocks)), group_(int(machine_.block() / plan_.blocks)),
        unit_((block_ * plan_.tiles + tile_) * Math::kUnits + lane_ / 4 * kWide) {
    const int rows = plan_.row_tiles * Math::kRows;
    const int first_sequence = layer.first_sequence + group_ * rows;
    const int left = layer.batch - first_sequence;
    rows_ = left < rows ? left : rows;
    computed_ = (plan_.row_tiles * kWide - slice_ + plan_.split - 1) / plan_.split;
    steps_ = left <= 0 ? 0 : layer.lengths ? layer.lengths[first_sequence] : layer.steps;
    for (int k = 0; k < kWide; ++k) {
      const int at = k * plan_.split + slice_;
      Item &item = items_[k];
      item.row = at / kWide * Math::kRows + lane_ % 4 * kWide + at % kWide;
      item.b = first_sequence + item.row;
      const bool owned = computes(k) && item.b < layer.batch && unit_ < H;
      item.length = !owned ? 0 : layer.lengths ? layer.lengths[item.b] : layer.steps;
    }
  }

  // Whether this warp computes its items k. The warps of a tile take its items in turn.
  FASTRNN_INLINE bool computes(int k) const { return k < computed_; }

  // --- time

  FASTRNN_INLINE int time(int step) const { return layer_.reverse ? steps_ - 1 - step : step; }
  // Loads what first_row() needs to know of a time, one step before it is called. The load writes
  // straight to the variable that a loop keeps: a copy at the loop's end would wait for it, and for
  // all loads that were issued with it.
  FASTRNN_INLINE void load_offset(int &offset, int time) const {
    const bool needed = layer_.offsets && time >= 0 && time < steps_;
    machine_.load_if(needed, offset, reinterpret_cast<const int32_t *>(layer_.offsets + time));
  }
  FASTRNN_INLINE int first_row(int offset, int time) const {
    return layer_.offsets ? offset : time * layer_.batch;
  }
  FASTRNN_INLINE static bool active(const Item &item, int time) {
    return time >= 0 && time < item.length;
  }

  // --- elements

  // Elements of this thread's units as they were loaded. They are taken apart only where they are
  // used, because everything that touches them waits for the load. Two 16-bit elements share the
  // first word if the units are paired; otherwise each is the lower half of a word of its own.
  struct Early {
    uint32_t words[kWide];
  };
  // Loads them from each of the kCount blocks of H columns of a row.
  template <int kCount>
  FASTRNN_INLINE void load(Early *to, const void *array, int row) const {
    const S *p = units<kCount>(static_cast<const S *>(array), row);
#pragma unroll
    for (int g = 0; g < kCount; ++g) to[g] = Early{};
    if (!layer_.paired_units) {
#pragma unroll
      for (int g = 0; g < kCount; ++g)
#pragma unroll
        for (int w = 0; w < kWide; ++w)
          if (unit_ + w < H) to[g].words[w] = machine_.load_element(p + g * H + w);
      return;
    }
#pragma unroll
    for (int g = 0; g < kCount; ++g) {
      if constexpr (sizeof(Pack) == 8)
        to[g] = machine_.load(reinterpret_cast<const Early *>(p + g * H));
      else
        to[g].words[0] = machine_.load(reinterpret_cast<const uint32_t *>(p + g * H));
    }
  }
  FASTRNN_INLINE Early load(const void *array, int row) const {
    Early early;
    load<1>(&early, array, row);
    return early;
  }
  FASTRNN_INLINE V value(const Early &early, int w) const {
    if constexpr (sizeof(S) == 4) {
      return machine_.as_float(early.words[w]);
    } else {
      const uint32_t first = early.words[0], last = early.words[kWide - 1];
      return machine_.widen(S{uint16_t(w == 0 ? first : first >> 16 | last)});
    }
  }
  // Stores this thread's units in each of the kCount blocks of H columns of a row.
  template <int kCount>
  FASTRNN_INLINE void store(void *array, int row, const Pack (&packs)[kCount]) const {
    S *p = units<kCount>(static_cast<S *>(array), row);
    if (layer_.paired_units) {
#pragma unroll
      for (int g = 0; g < kCount; ++g) *reinterpret_cast<Pack *>(p + g * H) = packs[g];
      return;
    }
#pragma unroll
    for (int g = 0; g < kCount; ++g)
#pragma unroll
      for (int w = 0; w < kWide; ++w)
        if (unit_ + w < H) p[g * H + w] = packs[g].v[w];
  }
  FASTRNN_INLINE Pack narrow(const V (&values)[kWide]) const {
    Pack pack;
    for (int w = 0; w < kWide; ++w) pack.v[w] = machine_.template narrow<S>(values[w].v);
    return pack;
  }
  FASTRNN_INLINE void store(void *array, int row, const V (&values)[kWide]) const {
    const Pack packs[] = {narrow(values)};
    store(array, row, packs);
  }
  // This thread's units in a row of kCount blocks of H columns.
  template <int kCount, class T>
  FASTRNN_INLINE T *units(T *array, int row) const {
    return array + uint64_t(uint32_t(row)) * uint32_t(kCount * H) + unit_;
  }

  // A cluster's launch runs all steps. Code for others would make each of its steps wait for loads:
  // a state may then come straight from one, so ptxas waits where the loop begins.
  FASTRNN_INLINE bool first_launch() const { return !kGrid || layer_.first_launch; }
  FASTRNN_INLINE bool last_launch() const { return !kGrid || layer_.last_launch; }
  FASTRNN_INLINE int begin_step() const { return kGrid ? layer_.begin_step : 0; }

  // Loads the state of each item: from `array`, or from where the previous launch stored it.
  FASTRNN_INLINE void load_state(V (&state)[kWide][kWide], const void *array, int which) const {
    for (int k = 0; k < kWide; ++k) {
      const Item &item = items_[k];
      for (int w = 0; w < kWide; ++w) state[k][w] = 0;
      if (item.length == 0) continue;
      const Early given = first_launch() ? load(array, item.b) : Early{};
      for (int w = 0; w < kWide; ++w)
        if (first_launch())
          state[k][w] = value(given, w);
        else if (unit_ + w < H)
          state[k][w] = layer_.states[which][int64_t(item.b) * H + unit_ + w];
    }
  }
  FASTRNN_INLINE void store_state(const V (&state)[kWide][kWide], void *array, int which) const {
    for (int k = 0; k < kWide; ++k) {
      const Item &item = items_[k];
      if (item.length == 0) continue;
      if (last_launch())
        store(array, item.b, state[k]);
      else
        for (int w = 0; w < kWide; ++w)
          if (unit_ + w < H) layer_.states[which][int64_t(item.b) * H + unit_ + w] = state[k][w].v;
    }
  }

  const Layer &layer_;
  const Plan &plan_;
  Machine &machine_;
  const int H, lane_, slice_, tile_, block_, group_;
  const int unit_;  // the first unit that this thread owns
  int rows_;        // sequences of the group, if it has any
  int steps_;       // of the longest of them
  int computed_;    // how many items this warp computes
  Item items_[kWide];
};

}  // namespace fastrnn::cuda

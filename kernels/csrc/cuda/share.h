// The share of a layer that one thread computes: its units and rows, its weights, the product with
// the values that the blocks of the group have exchanged, and the exchange. `Machine` is the GPU,
// or the emulated GPU of the tests.
//
// Each step reads one exchange buffer and writes the other. A block that is one step ahead of
// another writes to the buffer that the other has finished reading, so a step needs one barrier.
#pragma once

#include "numbers.h"

namespace fastrnn::cuda {

template <class Cell, class Math, bool kBackward, bool kGrid, class Machine>
class Share {
 protected:
  using S = typename Math::S;
  using V = typename Math::Value;
  using Pack = typename Math::Pack;
  static constexpr int G = Cell::kGates, N = kBackward ? 1 : G, kWide = Math::kWide;
  // Backward, the products of all gates go into one sum. It is kept in two parts, so that
  // consecutive products do not wait for each other.
  static constexpr int kSums = kBackward ? 2 : G;

  // Sequence b, which is row `row` of the group. `length` is its number of steps; 0 if this thread
  // has no such item.
  struct Item {
    int row, b, length;
  };

  FASTRNN_INLINE Share(const Layer &layer, Machine &machine, const void *weights)
      : layer_(layer), plan_(layer.plan), machine_(machine), H(layer.hidden_size),
        lane_(machine_.thread() % kWarp), slice_(machine_.thread() / kWarp % plan_.split),
        tile_(machine_.thread() / kWarp / plan_.split),
        block_(int(machine_.block() % plan_.blocks)), group_(int(machine_.block() / plan_.blocks)),
        unit_((block_ * plan_.tiles + tile_) * Math::kUnits + lane_ / 4 * kWide),
        weights_(static_cast<const S *>(weights)) {
    const int first_sequence = layer.first_sequence + group_ * plan_.row_tiles * Math::kRows;
    steps_ = first_sequence >= layer.batch ? 0
             : layer.lengths               ? layer.lengths[first_sequence]
                                           : layer.steps;
    for (int k = 0; k < kWide; ++k) {
      const int at = k * plan_.split + slice_;
      Item &item = items_[k];
      item.row = at / kWide * Math::kRows + lane_ % 4 * kWide + at % kWide;
      item.b = first_sequence + item.row;
      const bool owned = at < plan_.row_tiles * kWide && item.b < layer.batch && unit_ < H;
      item.length = !owned ? 0 : layer.lengths ? layer.lengths[item.b] : layer.steps;
    }
    if (plan_.passes == 1) load_weights(0);
  }

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
  FASTRNN_INLINE Early load(const void *array, int row, int column, int width) const {
    const S *p = static_cast<const S *>(array) + int64_t(row) * width + (column + unit_);
    Early early{};
    if (!layer_.paired_units) {
      for (int w = 0; w < kWide; ++w)
        if (unit_ + w < H) early.words[w] = machine_.load_element(p + w);
    } else if constexpr (sizeof(Pack) == 8) {
      early = machine_.load(reinterpret_cast<const Early *>(p));
    } else {
      early.words[0] = machine_.load(reinterpret_cast<const uint32_t *>(p));
    }
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
  FASTRNN_INLINE void store(void *array, int row, int column, int width,
                            const V (&values)[kWide]) const {
    S *p = static_cast<S *>(array) + int64_t(row) * width + (column + unit_);
    Pack pack;
    for (int w = 0; w < kWide; ++w) pack.v[w] = machine_.template narrow<S>(values[w].v);
    if (layer_.paired_units) {
      *reinterpret_cast<Pack *>(p) = pack;
      return;
    }
    for (int w = 0; w < kWide; ++w)
      if (unit_ + w < H) p[w] = pack.v[w];
  }

  // Loads the state of each item: from `array`, or from where the previous launch stored it.
  FASTRNN_INLINE void load_state(V (&state)[kWide][kWide], const void *array, int which) const {
    for (int k = 0; k < kWide; ++k) {
      const Item &item = items_[k];
      for (int w = 0; w < kWide; ++w) state[k][w] = 0;
      if (item.length == 0) continue;
      const Early given = layer_.first_launch ? load(array, item.b, 0, H) : Early{};
      for (int w = 0; w < kWide; ++w)
        if (layer_.first_launch)
          state[k][w] = value(given, w);
        else if (unit_ + w < H)
          state[k][w] = layer_.states[which][int64_t(item.b) * H + unit_ + w];
    }
  }
  FASTRNN_INLINE void store_state(const V (&state)[kWide][kWide], void *array, int which) const {
    for (int k = 0; k < kWide; ++k) {
      const Item &item = items_[k];
      if (item.length == 0) continue;
      if (layer_.last_launch)
        store(array, item.b, 0, H, state[k]);
      else
        for (int w = 0; w < kWide; ++w)
          if (unit_ + w < H) layer_.states[which][int64_t(item.b) * H + unit_ + w] = state[k][w].v;
    }
  }

  // --- the product

  FASTRNN_INLINE int chunk(int pass, int c) const {
    return (pass * plan_.split + slice_) * Math::kChunks + c;
  }

  FASTRNN_INLINE void load_weights(int pass) {
#pragma unroll
    for (int g = 0; g < G; ++g)
#pragma unroll
      for (int c = 0; c < Math::kChunks; ++c)
#pragma unroll
        for (int w = 0; w < kWide; ++w)
          weight_words_[g][c][w] = weights(g, chunk(pass, c), unit_ + w);
  }

  // 16 bytes of the weights of a unit; zeros outside the matrix.
  FASTRNN_INLINE Words weights(int g, int chunk, int unit) const {
    const int column = chunk * Math::kColumns + lane_ % 4 * Math::kLaneColumns;
    Words words{};
    if (unit >= H || column >= H) return words;
    const int block = kBackward ? Cell::recurrent_block(g) : g;
    const int row = kBackward ? unit * G + block : block * H + unit;  // of H weights
    const S *p = weights_ + int64_t(row) * H + column;
    if (layer_.vector_weights) {
      words = machine_.load(reinterpret_cast<const Words *>(p));
    } else {
      Packet<S, Math::kLaneColumns> pack{};
#pragma unroll
      for (int i = 0; i < Math::kLaneColumns; ++i)
        if (column + i < H) pack.v[i] = machine_.load(p + i);
      words = machine_.template bits<Words>(pack);
    }
    if (Math::kTensor && sizeof(S) == 4)
      for (int i = 0; i < 4; ++i) words.v[i] = machine_.round_to_tf32(words.v[i]);
    return words;
  }

  // Sums over this warp's chunks for one tile of rows. Backward, a row holds the columns of all
  // gates, one gate after the other.
  FASTRNN_INLINE void multiply(Sums<kSums> &sums, int parity, int row_tile) {
    const int row = row_tile * Math::kRows + (Math::kTensor ? lane_ / 4 : 0);
    const char *states = buffer(parity) + int64_t(row) * plan_.pitch + lane_ % 4 * 16;
    // The weights of a cluster stay in registers. A loop that might load others would move all of
    // them for each product.
    for (int pass = 0; pass < (kGrid ? plan_.passes : 1); ++pass) {
      if (kGrid && plan_.passes > 1) load_weights(pass);
#pragma unroll
      for (int c = 0; c < Math::kChunks; ++c) {
        if (chunk(pass, c) >= plan_.chunks) break;
        const char *at = states + chunk(pass, c) * kChunkBytes;
        if constexpr (kBackward) {
#pragma unroll
          for (int g = 0; g < G; ++g) {
            add_chunk<1>(sums, at, c, g);
            at += plan_.chunks * kChunkBytes;
          }
        } else {
          add_chunk<G>(sums, at, c, 0);
        }
      }
    }
  }

  // Adds the product of chunk c for kGates gates, starting with g0.
  template <int kGates>
  FASTRNN_INLINE void add_chunk(Sums<kSums> &sums, const char *states, int c, int g0) {
    if constexpr (Math::kTensor) {
      const Words b = read_states(states);
#pragma unroll
      for (int g = g0; g < g0 + kGates; ++g)
        machine_.template mma<S>(sums.v[g % kSums], weight_words_[g][c][0],
                                 weight_words_[g][c][kWide - 1], b);
    } else {
#pragma unroll
      for (int r = 0; r < Math::kRows; ++r) {
        const Words b = read_states(states + r * plan_.pitch);
#pragma unroll
        for (int g = g0; g < g0 + kGates; ++g)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            sums.v[g % kSums][r] +=
                machine_.as_float(weight_words_[g][c][0].v[i]) * machine_.as_float(b.v[i]);
      }
    }
  }

  FASTRNN_INLINE Words read_states(const char *p) const {
    return kGrid ? machine_.load_sent(p) : *reinterpret_cast<const Words *>(p);
  }

  // Without tensor cores, each lane has a part of the sums of four rows. Adds up the parts, so that
  // each lane gets the sum of its own row.
  FASTRNN_INLINE void sum_lanes(float (&sums)[4]) {
    if constexpr (!Math::kTensor) {
      const bool upper = lane_ & 2, odd = lane_ & 1;
      const float a =
          (upper ? sums[2] : sums[0]) + machine_.shuffle_xor(upper ? sums[0] : sums[2], 2);
      const float b =
          (upper ? sums[3] : sums[1]) + machine_.shuffle_xor(upper ? sums[1] : sums[3], 2);
      sums[0] = (odd ? b : a) + machine_.shuffle_xor(odd ? a : b, 1);
    }
  }

  // The product of the weights with the exchange buffer `parity`: the sums of each item, per gate;
  // backward, over all gates.
  FASTRNN_INLINE void product(float (&result)[kWide][N][kWide], int parity) {
    for (int tile = 0; tile < plan_.row_tiles; ++tile) {
      Sums<kSums> sums;
      multiply(sums, parity, tile);
      if constexpr (kBackward)
        for (int i = 0; i < 4; ++i) sums.v[0][i] += sums.v[1][i];
#pragma unroll
      for (int g = 0; g < N; ++g) {
        sum_lanes(sums.v[g]);
#pragma unroll
        for (int j = 0; j < kWide; ++j)
#pragma unroll
          for (int w = 0; w < kWide; ++w) result[j][g][w] = sums.v[g][2 * w + j];
      }
      if (plan_.split == 1) break;  // there is one tile of rows, and this thread has all its sums
#pragma unroll
      for (int j = 0; j < kWide; ++j)
#pragma unroll
        for (int g = 0; g < N; ++g) {
          Partial sum;
          for (int w = 0; w < kWide; ++w) sum.v[w] = result[j][g][w];
          *partial(slice_, tile * kWide + j, g) = sum;
        }
    }
    if (plan_.split == 1) return;
    machine_.sync();
#pragma unroll
    for (int k = 0; k < kWide; ++k) {
      const int at = k * plan_.split + slice_;
#pragma unroll
      for (int g = 0; g < N; ++g)
#pragma unroll
        for (int w = 0; w < kWide; ++w) result[k][g][w] = 0;
      if (at >= plan_.row_tiles * kWide) continue;
#pragma unroll 2
      for (int slice = 0; slice < plan_.split; ++slice)
#pragma unroll
        for (int g = 0; g < N; ++g) {
          const Partial sum = *partial(slice, at, g);
#pragma unroll
          for (int w = 0; w < kWide; ++w) result[k][g][w] += sum.v[w];
        }
    }
  }

  // The part of a lane's sums of an item and a gate that a warp has computed, in shared memory.
  using Partial = Packet<float, kWide>;
  FASTRNN_INLINE Partial *partial(int slice, int item, int g) const {
    const int warp = tile_ * plan_.split + slice;
    const int at = (warp * plan_.row_tiles * kWide + item) * N + g;
    return reinterpret_cast<Partial *>(machine_.shared() + plan_.partials_at) + at * kWarp + lane_;
  }

  // --- the exchange

  FASTRNN_INLINE char *buffer(int parity) const {
    char *buffers = kGrid ? layer_.exchange + 2 * plan_.buffer_bytes * group_ : machine_.shared();
    return buffers + parity * plan_.buffer_bytes;
  }

  // Zeroes the exchange buffers: the columns beyond the last unit are multiplied by zeros, so they
  // must not be NaN.
  FASTRNN_INLINE void clear_buffers() {
    if constexpr (!kGrid) {
      for (int64_t at = machine_.thread() * 16; at < 2 * plan_.buffer_bytes;
           at += plan_.threads * 16)
        *reinterpret_cast<Words *>(machine_.shared() + at) = Words{};
      barrier(0);
    }
  }

  // Sends the values of an item, for one gate, to every block of the group.
  FASTRNN_INLINE void send(int parity, const Item &item, int gate, const V (&values)[kWide]) {
    Pack pack;
    for (int w = 0; w < kWide; ++w) {
      const float value = unit_ + w < H ? values[w].v : 0.0f;
      pack.v[w] = machine_.template operand<S, Math::kTensor>(value);
    }
    char *at = buffer(parity) + int64_t(item.row) * plan_.pitch +
               int64_t(gate) * plan_.chunks * kChunkBytes + unit_ * int(sizeof(S));
    if constexpr (kGrid)
      *reinterpret_cast<Pack *>(at) = pack;
    else
      machine_.send(reinterpret_cast<Pack *>(at), pack, block_, plan_.blocks);
  }

  // A barrier for the group, in two parts. After wait() returns, everything is visible that any
  // block sent before its arrive(). `barriers_passed` counts the earlier barriers of this launch.
  FASTRNN_INLINE void arrive() {
    if constexpr (kGrid) {
      machine_.sync();
      if (machine_.thread() == 0) machine_.arrive(layer_.arrivals + group_);
    } else if (plan_.blocks > 1) {
      machine_.arrive_in_cluster();
    }
  }
  FASTRNN_INLINE void wait(int barriers_passed) {
    if constexpr (kGrid) {
      if (machine_.thread() == 0)
        machine_.wait(layer_.arrivals + group_,
                      uint32_t(barriers_passed + 1) * uint32_t(plan_.blocks));
      machine_.sync();
    } else if (plan_.blocks > 1) {
      machine_.wait_in_cluster();
    } else {
      machine_.sync();
    }
  }
  FASTRNN_INLINE void barrier(int barriers_passed) {
    arrive();
    wait(barriers_passed);
  }

  const Layer &layer_;
  const Plan &plan_;
  Machine &machine_;
  const int H, lane_, slice_, tile_, block_, group_;
  const int unit_;  // the first unit that this thread owns
  int steps_;       // of the longest sequence of the group
  Item items_[kWide];

 private:
  const S *weights_;
  Words weight_words_[G][Math::kChunks][kWide];
};

}  // namespace fastrnn::cuda

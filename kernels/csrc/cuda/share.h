// One thread's share of a layer: the units and rows it owns, its weights, the product with what the
// group's blocks have sent, and the exchange. `Machine` is the GPU, or the tests' emulator of one.
//
// Each step reads one exchange buffer and writes the other: a block that is a step ahead of another
// writes where that one no longer reads, and one meeting of the group's blocks a step is enough.
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
  // Backward all gates' products are one sum: two, so that one need not wait for the other.
  static constexpr int kSums = kBackward ? 2 : G;

  // Sequence b, row `row` of the group; it has `length` steps here, none if nobody owns it.
  struct Item {
    int row, b, length;
  };

  FASTRNN_INLINE Share(const Layer &layer, Machine &machine, const void *weights)
      : layer_(layer), plan_(layer.plan), m_(machine), H(layer.hidden_size),
        lane_(m_.thread() % kWarp), slice_(m_.thread() / kWarp % plan_.split),
        tile_(m_.thread() / kWarp / plan_.split), block_(int(m_.block() % plan_.blocks)),
        group_(int(m_.block() / plan_.blocks)),
        unit_((block_ * plan_.tiles + tile_) * Math::kUnits + lane_ / 4 * kWide),
        weights_(static_cast<const S *>(weights)) {
    const int first = layer.first + group_ * plan_.row_tiles * Math::kRows;
    steps_ = first >= layer.batch ? 0 : layer.lengths ? layer.lengths[first] : layer.steps;
    for (int k = 0; k < kWide; ++k) {
      const int at = k * plan_.split + slice_;
      Item &item = items_[k];
      item.row = at / kWide * Math::kRows + lane_ % 4 * kWide + at % kWide;
      item.b = first + item.row;
      const bool owned = at < plan_.row_tiles * kWide && item.b < layer.batch && unit_ < H;
      item.length = !owned ? 0 : layer.lengths ? layer.lengths[item.b] : layer.steps;
    }
    if (plan_.passes == 1) load_weights(0);
  }

  // --- time ---------------------------------------------------------------------------------------

  FASTRNN_INLINE int time(int step) const {
    return layer_.reverse ? steps_ - 1 - step : step;
  }
  FASTRNN_INLINE int offset(int time) const {
    if (time < 0 || time >= steps_) return 0;
    return layer_.offsets ? int(layer_.offsets[time]) : time * layer_.batch;
  }
  FASTRNN_INLINE static bool active(const Item &item, int time) {
    return time >= 0 && time < item.length;
  }

  // --- elements -----------------------------------------------------------------------------------

  FASTRNN_INLINE Pack load(const void *array, int row, int column, int width) const {
    const S *p = static_cast<const S *>(array) + int64_t(row) * width + (column + unit_);
    if (layer_.paired) return m_.load(reinterpret_cast<const Pack *>(p));
    Pack pack{};
    for (int w = 0; w < kWide; ++w)
      if (unit_ + w < H) pack.v[w] = m_.load(p + w);
    return pack;
  }
  FASTRNN_INLINE void store(void *array, int row, int column, int width,
                            const V (&values)[kWide]) const {
    S *p = static_cast<S *>(array) + int64_t(row) * width + (column + unit_);
    Pack pack;
    for (int w = 0; w < kWide; ++w) pack.v[w] = m_.template narrow<S>(values[w].v);
    if (layer_.paired) {
      *reinterpret_cast<Pack *>(p) = pack;
      return;
    }
    for (int w = 0; w < kWide; ++w)
      if (unit_ + w < H) p[w] = pack.v[w];
  }
  FASTRNN_INLINE void widen(V (&values)[kWide], const Pack &pack) const {
    for (int w = 0; w < kWide; ++w) values[w] = m_.widen(pack.v[w]);
  }

  // The state of each item before the launch: from `array` or as the launch before has left it.
  FASTRNN_INLINE void load_state(V (&state)[kWide][kWide], const void *array, int which) const {
    for (int k = 0; k < kWide; ++k) {
      const Item &item = items_[k];
      for (int w = 0; w < kWide; ++w) state[k][w] = 0;
      if (item.length == 0) continue;
      if (layer_.opens)
        widen(state[k], load(array, item.b, 0, H));
      else
        for (int w = 0; w < kWide; ++w)
          if (unit_ + w < H) state[k][w] = layer_.states[which][int64_t(item.b) * H + unit_ + w];
    }
  }
  FASTRNN_INLINE void store_state(const V (&state)[kWide][kWide], void *array, int which) const {
    for (int k = 0; k < kWide; ++k) {
      const Item &item = items_[k];
      if (item.length == 0) continue;
      if (layer_.closes)
        store(array, item.b, 0, H, state[k]);
      else
        for (int w = 0; w < kWide; ++w)
          if (unit_ + w < H) layer_.states[which][int64_t(item.b) * H + unit_ + w] = state[k][w].v;
    }
  }

  // --- the product --------------------------------------------------------------------------------

  FASTRNN_INLINE int chunk(int pass, int c) const {
    return (pass * plan_.split + slice_) * Math::kChunks + c;
  }

  FASTRNN_INLINE void load_weights(int pass) {
#pragma unroll
    for (int g = 0; g < G; ++g)
#pragma unroll
      for (int c = 0; c < Math::kChunks; ++c)
#pragma unroll
        for (int w = 0; w < kWide; ++w) a_[g][c][w] = weights(g, chunk(pass, c), unit_ + w);
  }

  // 16 bytes of a unit's weights; zeros beyond the matrix.
  FASTRNN_INLINE Words weights(int g, int chunk, int unit) const {
    const int column = chunk * Math::kColumns + lane_ % 4 * Math::kLaneColumns;
    Words words{};
    if (unit >= H || column >= H) return words;
    const int block = kBackward ? Cell::recurrent_block(g) : g;
    const int row = kBackward ? unit * G + block : block * H + unit;  // of H weights
    const S *p = weights_ + int64_t(row) * H + column;
    if (layer_.vectors) {
      words = m_.load(reinterpret_cast<const Words *>(p));
    } else {
      Packet<S, Math::kLaneColumns> pack{};
#pragma unroll
      for (int i = 0; i < Math::kLaneColumns; ++i)
        if (column + i < H) pack.v[i] = m_.load(p + i);
      words = m_.template bits<Words>(pack);
    }
    if (Math::kTensor && sizeof(S) == 4)
      for (int i = 0; i < 4; ++i) words.v[i] = m_.round_to_tf32(words.v[i]);
    return words;
  }

  // Sums over this warp's chunks for one tile of rows. Backward, each gate has its own columns in a
  // row, one gate's behind the other's.
  FASTRNN_INLINE void multiply(Sums<kSums> &sums, int parity, int row_tile) {
    const int row = row_tile * Math::kRows + (Math::kTensor ? lane_ / 4 : 0);
    const char *states = buffer(parity) + int64_t(row) * plan_.pitch + lane_ % 4 * 16;
    for (int pass = 0; pass < plan_.passes; ++pass) {
      if (plan_.passes > 1) load_weights(pass);
#pragma unroll
      for (int c = 0; c < Math::kChunks; ++c) {
        if (chunk(pass, c) >= plan_.chunks) break;
        const char *at = states + chunk(pass, c) * kChunkBytes;
        if constexpr (kBackward) {
#pragma unroll
          for (int g = 0; g < G; ++g) {
            add<1>(sums, at, c, g);
            at += plan_.chunks * kChunkBytes;
          }
        } else {
          add<G>(sums, at, c, 0);
        }
      }
    }
  }

  // Adds chunk c's product, for kGates gates from g0 on.
  template <int kGates>
  FASTRNN_INLINE void add(Sums<kSums> &sums, const char *states, int c, int g0) {
    if constexpr (Math::kTensor) {
      const Words b = read(states);
#pragma unroll
      for (int g = g0; g < g0 + kGates; ++g)
        m_.template mma<S>(sums.v[g % kSums], a_[g][c][0], a_[g][c][kWide - 1], b);
    } else {
#pragma unroll
      for (int r = 0; r < Math::kRows; ++r) {
        const Words b = read(states + r * plan_.pitch);
#pragma unroll
        for (int g = g0; g < g0 + kGates; ++g)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            sums.v[g % kSums][r] += m_.as_float(a_[g][c][0].v[i]) * m_.as_float(b.v[i]);
      }
    }
  }

  FASTRNN_INLINE Words read(const char *p) const {
    return kGrid ? m_.load_sent(p) : *reinterpret_cast<const Words *>(p);
  }

  // Without tensor cores: each lane's part of four rows, to the whole sum of its own.
  FASTRNN_INLINE void gather(float (&sums)[4]) {
    if constexpr (!Math::kTensor) {
      const bool upper = lane_ & 2, odd = lane_ & 1;
      const float a = (upper ? sums[2] : sums[0]) + m_.shuffle_xor(upper ? sums[0] : sums[2], 2);
      const float b = (upper ? sums[3] : sums[1]) + m_.shuffle_xor(upper ? sums[1] : sums[3], 2);
      sums[0] = (odd ? b : a) + m_.shuffle_xor(odd ? a : b, 1);
    }
  }

  // The products of all the group's rows with what the buffer of `parity` holds: each item's sums, of
  // each gate or, backward, of all gates together.
  FASTRNN_INLINE void product(float (&result)[kWide][N][kWide], int parity) {
    for (int tile = 0; tile < plan_.row_tiles; ++tile) {
      Sums<kSums> sums;
      multiply(sums, parity, tile);
      if constexpr (kBackward)
        for (int i = 0; i < 4; ++i) sums.v[0][i] += sums.v[1][i];
#pragma unroll
      for (int g = 0; g < N; ++g) {
        gather(sums.v[g]);
#pragma unroll
        for (int j = 0; j < kWide; ++j)
#pragma unroll
          for (int w = 0; w < kWide; ++w) {
            result[j][g][w] = sums.v[g][2 * w + j];
            if (plan_.split > 1) *partial(slice_, tile * kWide + j, g, w) = sums.v[g][2 * w + j];
          }
      }
    }
    if (plan_.split == 1) return;  // one tile of rows, all the thread's own
    m_.sync();
#pragma unroll
    for (int k = 0; k < kWide; ++k) {
      const int at = k * plan_.split + slice_;
#pragma unroll
      for (int g = 0; g < N; ++g)
#pragma unroll
        for (int w = 0; w < kWide; ++w) result[k][g][w] = 0;
      if (at >= plan_.row_tiles * kWide) continue;
      for (int slice = 0; slice < plan_.split; ++slice)
#pragma unroll
        for (int g = 0; g < N; ++g)
#pragma unroll
          for (int w = 0; w < kWide; ++w) result[k][g][w] += *partial(slice, at, g, w);
    }
  }

  // A warp's part of a sum, in shared memory.
  FASTRNN_INLINE float *partial(int slice, int item, int g, int w) const {
    const int warp = tile_ * plan_.split + slice;
    const int at = ((warp * plan_.row_tiles * kWide + item) * N + g) * kWide + w;
    return reinterpret_cast<float *>(m_.shared() + plan_.partials_at) + at * kWarp + lane_;
  }

  // --- the exchange -------------------------------------------------------------------------------

  FASTRNN_INLINE char *buffer(int parity) const {
    char *buffers = kGrid ? layer_.exchange + 2 * plan_.buffer_bytes * group_ : m_.shared();
    return buffers + parity * plan_.buffer_bytes;
  }

  // The columns beyond the last unit are multiplied with zeros: they must be numbers.
  FASTRNN_INLINE void clear_buffers() {
    if constexpr (!kGrid) {
      for (int64_t at = m_.thread() * 16; at < 2 * plan_.buffer_bytes; at += plan_.threads * 16)
        *reinterpret_cast<Words *>(m_.shared() + at) = Words{};
      meet(0);
    }
  }

  // Sends an item's value of a gate to every block of the group.
  FASTRNN_INLINE void send(int parity, const Item &item, int gate, const V (&values)[kWide]) {
    Pack pack;
    for (int w = 0; w < kWide; ++w) {
      const float value = unit_ + w < H ? values[w].v : 0.0f;
      pack.v[w] = m_.template operand<S, Math::kTensor>(value);
    }
    char *at = buffer(parity) + int64_t(item.row) * plan_.pitch +
               int64_t(gate) * plan_.chunks * kChunkBytes + unit_ * int(sizeof(S));
    if constexpr (kGrid)
      *reinterpret_cast<Pack *>(at) = pack;
    else
      m_.send(reinterpret_cast<Pack *>(at), pack, block_, plan_.blocks);
  }

  // What the group's blocks have sent is there for all after every block has arrived and one's own
  // wait is over; `meetings` counts those before in this launch.
  FASTRNN_INLINE void arrive() {
    if constexpr (kGrid) {
      m_.sync();
      if (m_.thread() == 0) m_.arrive(layer_.arrivals + group_);
    } else if (plan_.blocks > 1) {
      m_.arrive_in_cluster();
    }
  }
  FASTRNN_INLINE void wait(int meetings) {
    if constexpr (kGrid) {
      if (m_.thread() == 0)
        m_.wait(layer_.arrivals + group_, uint32_t(meetings + 1) * uint32_t(plan_.blocks));
      m_.sync();
    } else if (plan_.blocks > 1) {
      m_.wait_in_cluster();
    } else {
      m_.sync();
    }
  }
  FASTRNN_INLINE void meet(int meetings) {
    arrive();
    wait(meetings);
  }

  const Layer &layer_;
  const Plan &plan_;
  Machine &m_;
  const int H, lane_, slice_, tile_, block_, group_;
  const int unit_;  // the first that this thread owns
  int steps_;       // of the group's longest sequence
  Item items_[kWide];

 private:
  const S *weights_;
  Words a_[G][Math::kChunks][kWide];
};

}  // namespace fastrnn::cuda

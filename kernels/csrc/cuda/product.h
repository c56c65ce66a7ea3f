// The product of the recurrent weights with the values that the blocks of the group have exchanged.
#pragma once

#include "exchange.h"

namespace fastrnn::cuda {

template <class Cell, class Math, bool kBackward, bool kGrid, class Machine>
class Product : protected Exchange<Cell, Math, kBackward, kGrid, Machine> {
  using Base = Exchange<Cell, Math, kBackward, kGrid, Machine>;

 protected:
  using typename Base::S;
  using Base::G, Base::H, Base::kWide, Base::lane_, Base::layer_, Base::machine_, Base::plan_,
      Base::slice_, Base::tile_, Base::unit_;
  static constexpr int N = kBackward ? 1 : G;  // sums of an item and a unit
  // Backward, the products of all gates go into one sum. It is kept in two parts, so that
  // consecutive products do not wait for each other.
  static constexpr int kSums = kBackward ? 2 : G;

  FASTRNN_INLINE Product(const Layer &layer, Machine &machine, const void *weights)
      : Base(layer, machine), weights_(static_cast<const S *>(weights)) {
    if (plan_.passes == 1) load_weights(0);
  }

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
    const char *states = this->buffer(parity) + int64_t(row) * plan_.pitch + lane_ % 4 * 16;
    // The weights of a cluster stay in registers. A loop that might load others would move all of
    // them for each product.
    for (int pass = 0; pass < (kGrid ? plan_.passes : 1); ++pass) {
      if (kGrid && plan_.passes > 1) load_weights(pass);
      // Without checks, the loads of a chunk do not wait for the product of the one before.
      if (Math::kTensor && !kGrid && chunk(pass, Math::kChunks) <= plan_.chunks)
        add_chunks<false>(sums, states, pass);
      else
        add_chunks<true>(sums, states, pass);
    }
  }

  template <bool kChecked>
  FASTRNN_INLINE void add_chunks(Sums<kSums> &sums, const char *states, int pass) {
#pragma unroll
    for (int c = 0; c < Math::kChunks; ++c) {
      if (kChecked && chunk(pass, c) >= plan_.chunks) break;
      if constexpr (kBackward) {
        const char *at = states + chunk(pass, c) * kChunkBytes;
#pragma unroll
        for (int g = 0; g < G; ++g) {
          add_chunk<1>(sums, at, c, g);
          at += plan_.chunks * kChunkBytes;
        }
      } else {
        add_chunk<G>(sums, states + chunk(pass, c) * kChunkBytes, c, 0);
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

  // The product of the weights with the exchange buffer `parity`: the sums of each item that this
  // warp computes, per gate; backward, over all gates.
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
#pragma unroll
      for (int g = 0; g < N; ++g)
#pragma unroll
        for (int w = 0; w < kWide; ++w) result[k][g][w] = 0;
      if (!this->computes(k)) continue;
      const int item = k * plan_.split + slice_;
      if (!kGrid && plan_.split == 2)
        sum_slices<2>(result[k], item);
      else if (!kGrid && plan_.split == 4)
        sum_slices<4>(result[k], item);
      else
        sum_slices<0>(result[k], item);
    }
  }

  // Adds up the parts of an item. kSlices is the number of slices, or 0 if it is another.
  template <int kSlices>
  FASTRNN_INLINE void sum_slices(float (&result)[N][kWide], int item) const {
    const int slices = kSlices > 0 ? kSlices : plan_.split;
#pragma unroll(kSlices > 0 ? kSlices : 2)
    for (int slice = 0; slice < slices; ++slice)
#pragma unroll
      for (int g = 0; g < N; ++g) {
        const Partial sum = *partial(slice, item, g);
#pragma unroll
        for (int w = 0; w < kWide; ++w)
          result[g][w] = kSlices > 0 && slice == 0 ? sum.v[w] : result[g][w] + sum.v[w];
      }
  }

  // The part of a lane's sums of an item and a gate that a warp has computed, in shared memory.
  using Partial = Packet<float, kWide>;
  FASTRNN_INLINE Partial *partial(int slice, int item, int g) const {
    const int warp = tile_ * plan_.split + slice;
    const int at = (warp * plan_.row_tiles * kWide + item) * N + g;
    return reinterpret_cast<Partial *>(machine_.shared() + plan_.partials_at) + at * kWarp + lane_;
  }

 private:
  const S *weights_;
  Words weight_words_[G][Math::kChunks][kWide];
};

}  // namespace fastrnn::cuda

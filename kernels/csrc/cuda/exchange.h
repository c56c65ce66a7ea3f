// The exchange of values among the blocks of a group.
//
// Each step reads one exchange buffer and writes the other. A block that is one step ahead of
// another writes to the buffer that the other has finished reading, so a step needs one barrier. In
// a cluster that is an mbarrier, which each block has for each of its buffers: it counts the bytes
// that have arrived. Of its phases a waiting warp sees only whether their number is odd, and nobody
// waits for a warp that sends nothing. Where warps of a block meet only here, such a warp leaves:
// see idle().
#pragma once

#include "share.h"

namespace fastrnn::cuda {

template <class Cell, class Math, bool kBackward, bool kGrid, class Machine>
class Exchange : protected Share<Cell, Math, kBackward, kGrid, Machine> {
  using Base = Share<Cell, Math, kBackward, kGrid, Machine>;

 protected:
  using typename Base::Pack;
  using typename Base::S;
  using Base::block_, Base::G, Base::group_, Base::H, Base::items_, Base::kWide, Base::lane_,
      Base::layer_, Base::machine_, Base::plan_, Base::unit_;
  static constexpr int kSent = kBackward ? G : 1;  // values per unit and row
  using Base::Base;

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
      if (plan_.blocks == 1) {
        machine_.sync();
        return;
      }
      if (machine_.thread() == 0)
        for (int parity = 0; parity < 2; ++parity) machine_.begin_counting(arrivals(parity));
      machine_.sync_cluster();
    }
  }

  // Whether this warp has nothing to do: it has no units, and no part of the sums of others. With
  // tensor cores, all units of a layer without a split are in one block, whose warps all have some.
  FASTRNN_INLINE bool idle() const {
    return !kGrid && !Math::kTensor && plan_.split == 1 && unit_ - lane_ / 4 * kWide >= H;
  }

  // Sends values that narrow() returned, the first kSent ones of each item, to every block of the
  // group.
  template <int kCount>
  FASTRNN_INLINE void send(int parity, const Pack (&packs)[kWide][kCount]) const {
    const int gate_bytes = plan_.chunks * kChunkBytes;
#pragma unroll
    for (int k = 0; k < kWide; ++k) {
      if (items_[k].length == 0) continue;
      Pack sent[kSent];
      for (int g = 0; g < kSent; ++g)
        for (int w = 0; w < kWide; ++w) sent[g].v[w] = operand(packs[k][g].v[w], w);
      char *at = buffer(parity) + int64_t(items_[k].row) * plan_.pitch + unit_ * int(sizeof(S));
      if (kGrid || plan_.blocks == 1) {
        for (int g = 0; g < kSent; ++g) *reinterpret_cast<Pack *>(at + g * gate_bytes) = sent[g];
        continue;
      }
      const uint32_t place = machine_.place(at), counter = machine_.place(arrivals(parity));
      int to = block_;  // each block starts with a different one
#pragma unroll 2
      for (int i = 0; i < plan_.blocks; ++i) {
        const uint32_t peer = machine_.peer(to);
        for (int g = 0; g < kSent; ++g)
          machine_.send(peer + place + g * gate_bytes, sent[g], peer + counter);
        to = to + 1 == plan_.blocks ? 0 : to + 1;
      }
    }
  }

  // A value of unit w as the product reads it: rounded to TF32 for tensor cores, and 0 beyond the
  // last unit.
  FASTRNN_INLINE S operand(S value, int w) const {
    if (unit_ + w >= H) return S{};
    if constexpr (Math::kTensor && sizeof(S) == 4)
      return machine_.template operand<S, true>(value);
    else
      return value;
  }

  // What a block receives in each exchange.
  FASTRNN_INLINE uint32_t bytes() const {
    return uint32_t(this->rows_ * ((H + kWide - 1) / kWide) * kSent) * uint32_t(sizeof(Pack));
  }

  // The mbarrier that counts what arrives in a buffer.
  FASTRNN_INLINE uint64_t *arrivals(int parity) const {
    return reinterpret_cast<uint64_t *>(machine_.shared() + plan_.arrivals_at) + parity;
  }

  // A barrier for the group, in two parts. After wait() returns, everything is visible that any
  // block sent before its arrive(). `passed` counts the earlier barriers of this launch, which are
  // for the buffers 0 and 1 in turn.
  FASTRNN_INLINE void arrive(int passed) {
    if constexpr (kGrid) {
      machine_.sync();
      if (machine_.thread() == 0) machine_.arrive(layer_.arrivals + group_);
    } else if (plan_.blocks > 1) {
      if (machine_.thread() == 0) machine_.expect(arrivals(passed & 1), bytes());
    }
  }
  FASTRNN_INLINE void wait(int passed) {
    if constexpr (kGrid) {
      if (machine_.thread() == 0)
        machine_.wait(layer_.arrivals + group_, uint32_t(passed + 1) * uint32_t(plan_.blocks));
      machine_.sync();
    } else if (plan_.blocks > 1) {
      machine_.wait_for_expected(arrivals(passed & 1), uint32_t(passed >> 1 & 1));
    } else {
      machine_.sync();
    }
  }
};

}  // namespace fastrnn::cuda

// A GPU of fibers: every thread of a group of blocks runs the kernels' own text and yields where it
// has to wait for others. Who runs next is drawn anew in every round, what is sent to another block's
// shared memory arrives only when its sender does, and shared memory starts as NaN, so that a missing
// meeting or an element that nobody has written shows in the results.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "../../kernels/csrc/cuda/numbers.h"

namespace fastrnn::cuda {

// Runs functions in turns until all have returned.
class Fibers {
 public:
  static constexpr size_t kStackBytes = 96 << 10;

  void run(std::vector<std::function<void()>> bodies) {
    fibers_.clear();
    for (auto &body : bodies) {
      fibers_.push_back(std::make_unique<Fiber>());
      Fiber &fiber = *fibers_.back();
      fiber.body = std::move(body);
      fiber.stack.reset(new char[kStackBytes]);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStackBytes;
      fiber.context.uc_link = &scheduler_;
      makecontext(&fiber.context, reinterpret_cast<void (*)()>(&Fibers::start), 0);
    }
    current_ = this;
    std::vector<Fiber *> running;
    for (auto &fiber : fibers_) running.push_back(fiber.get());
    while (!running.empty()) {
      std::shuffle(running.begin(), running.end(), random_);
      moved_ = false;
      for (Fiber *fiber : running) {
        // Most turns are of threads that still wait.
        if (fiber->ready && !fiber->ready()) continue;
        moved_ = true;
        if (random_() % 2) continue;  // else all would go at one pace
        active_ = fiber;
        swapcontext(&scheduler_, &fiber->context);
      }
      if (!moved_) {
        std::fprintf(stderr, "emulator: %zu threads wait for each other\n", running.size());
        std::abort();
      }
      running.erase(std::remove_if(running.begin(), running.end(), [](Fiber *f) { return f->done; }),
                    running.end());
    }
  }

  // Called by a fiber: others run until `ready`.
  static void wait(std::function<bool()> ready) {
    if (ready()) return;
    Fiber *self = current_->active_;
    self->ready = std::move(ready);
    swapcontext(&self->context, &current_->scheduler_);
    self->ready = nullptr;
  }

 private:
  struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    std::function<void()> body;
    std::function<bool()> ready;
    bool done = false;
  };

  static void start() {
    Fiber *self = current_->active_;
    self->body();
    self->done = true;
  }

  static inline Fibers *current_ = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::mt19937 random_{11};
  ucontext_t scheduler_;
  Fiber *active_ = nullptr;
  bool moved_ = false;
};

// Threads that meet: everybody's n-th arrival completes the n-th meeting.
struct Meeting {
  int64_t members = 0, arrived = 0;
  bool complete(int64_t meetings) const { return arrived >= members * meetings; }
};

// What a warp's lanes lay down for each other; the next exchange may begin before this one is read.
struct Warp {
  struct Operands {
    Words a0, a1, b;
  };
  Meeting meeting{kWarp};
  Operands operands[2][kWarp];
  float values[2][kWarp];
};

struct Block {
  int64_t index = 0;
  std::vector<Words> shared;
  Meeting meeting;
  std::vector<Warp> warps;
};

struct Group {
  std::vector<Block> blocks;
  Meeting meeting;  // of a cluster's threads
};

// The machine of one thread; see kernels/csrc/cuda/gpu.h.
class Emulated {
 public:
  // A fault on purpose: a kind of meeting at which nobody waits.
  enum Fault { kNone, kBlock, kCluster, kGrid };
  static inline Fault fault = kNone;

  Emulated(Group &group, Block &block, int thread)
      : group_(group), block_(block), warp_(block.warps[size_t(thread / kWarp)]), thread_(thread) {}

  int thread() const { return thread_; }
  int64_t block() const { return block_.index; }
  char *shared() const { return reinterpret_cast<char *>(block_.shared.data()); }
  void sync() {
    if (fault != kBlock) meet(block_.meeting, syncs_);
  }

  float shuffle_xor(float value, int mask) {
    const int64_t turn = lanes_ & 1;
    warp_.values[turn][lane()] = value;
    meet(warp_.meeting, lanes_);
    return warp_.values[turn][lane() ^ mask];
  }

  // --- memory -------------------------------------------------------------------------------------

  template <class T>
  T load(const T *p) const {
    check_alignment(p, sizeof(T));
    return *p;
  }
  Words load_sent(const void *p) const { return load(static_cast<const Words *>(p)); }

  template <class T>
  void send(T *p, const T &value, int, int blocks) {
    check_alignment(p, sizeof(T));
    const ptrdiff_t at = reinterpret_cast<char *>(p) - shared();
    for (int i = 0; i < blocks; ++i) {
      char *there = reinterpret_cast<char *>(group_.blocks[size_t(i)].shared.data()) + at;
      const auto write = [there, value] { std::memcpy(there, &value, sizeof value); };
      if (blocks == 1)
        write();
      else
        sent_.push_back(write);
    }
  }

  // --- meetings -----------------------------------------------------------------------------------

  void arrive_in_cluster() {
    for (const auto &write : sent_) write();
    sent_.clear();
    ++group_.meeting.arrived;
    ++clusters_;
  }
  void wait_in_cluster() {
    Meeting &meeting = group_.meeting;
    if (fault != kCluster)
      Fibers::wait([&meeting, n = clusters_] { return meeting.complete(n); });
  }
  void arrive(uint32_t *arrivals) const { ++*arrivals; }
  void wait(const uint32_t *arrivals, uint32_t wanted) const {
    if (fault != kGrid)
      Fibers::wait([arrivals, wanted] { return int32_t(*arrivals - wanted) >= 0; });
  }

  // --- numbers ------------------------------------------------------------------------------------

  template <class To, class From>
  static To bits(const From &from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
  }
  static float as_float(uint32_t word) { return bits<float>(word); }
  static float widen(float v) { return v; }
  static float widen(bfloat16 v) { return as_float(uint32_t(v.bits) << 16); }
  static float widen(float16 v) { return float(bits<_Float16>(v)); }
  template <class S>
  static S narrow(float v) {
    if constexpr (sizeof(S) == 4) {
      return v;
    } else if constexpr (std::is_same_v<S, float16>) {
      return bits<float16>(_Float16(v));
    } else {  // to nearest, ties to even; NaN stays NaN
      const uint32_t word = bits<uint32_t>(v);
      if (v != v) return {uint16_t(word >> 16 | 0x40)};
      return {uint16_t((word + 0x7fff + (word >> 16 & 1)) >> 16)};
    }
  }
  static uint32_t round_to_tf32(uint32_t word) { return (word + 0x1000) & ~0x1fffu; }
  template <class S, bool kTensor>
  static S operand(float v) {
    if constexpr (kTensor && sizeof(S) == 4)
      return as_float(round_to_tf32(bits<uint32_t>(v)));
    else
      return narrow<S>(v);
  }

  // --- the tensor cores' product, as PTX lays out its operands ---------------------------------------

  template <class S>
  void mma(float (&sums)[4], const Words &a0, const Words &a1, const Words &b) {
    const int64_t turn = lanes_ & 1;
    warp_.operands[turn][lane()] = {a0, a1, b};
    meet(warp_.meeting, lanes_);
    for (int half = 0; half < 2; ++half)
      for (int i = 0; i < 4; ++i) {
        const int row = lane() / 4 + (i >= 2 ? 8 : 0), column = lane() % 4 * 2 + i % 2;
        sums[i] += dot<S>(warp_.operands[turn], half, row, column);
      }
  }

 private:
  // Row of A times column of B: lane 4 p + q of a fragment holds A's rows p (in its registers 0 and 2)
  // and p + 8 (1 and 3) and B's column p, of the columns or rows that q and the register name.
  template <class S>
  static float dot(const Warp::Operands (&operands)[kWarp], int half, int row, int column) {
    float sum = 0;
    for (int q = 0; q < 4; ++q) {
      const Warp::Operands &of_a = operands[row % 8 * 4 + q], &of_b = operands[column * 4 + q];
      const Words &a = row < 8 ? of_a.a0 : of_a.a1;
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        constexpr int kElements = 4 / sizeof(S);
        S left[kElements], right[kElements];
        std::memcpy(left, &a.v[i], 4);
        std::memcpy(right, &of_b.b.v[i], 4);
        for (int e = 0; e < kElements; ++e) sum += widen(left[e]) * widen(right[e]);
      }
    }
    return sum;
  }

  int lane() const { return thread_ % kWarp; }
  static void meet(Meeting &meeting, int64_t &meetings) {
    ++meeting.arrived;
    ++meetings;
    Fibers::wait([&meeting, n = meetings] { return meeting.complete(n); });
  }
  static void check_alignment(const void *p, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(p) % bytes == 0) return;
    std::fprintf(stderr, "emulator: %zu bytes at %p\n", bytes, p);
    std::abort();
  }

  Group &group_;
  Block &block_;
  Warp &warp_;
  const int thread_;
  int64_t syncs_ = 0, lanes_ = 0, clusters_ = 0;
  std::vector<std::function<void()>> sent_;
};

template <bool kFast>
Number<kFast> sigmoid(Number<kFast> x) {
  return 1 / (1 + std::exp(-x.v));
}
template <bool kFast>
Number<kFast> tanh(Number<kFast> x) {
  return std::tanh(x.v);
}

}  // namespace fastrnn::cuda

// An emulated GPU. Every thread of a group of blocks is a fiber that runs the source of the kernels
// and yields where it has to wait for others. The order of threads is random in every round, and
// one warp runs only when all others wait; values sent to the shared memory of another block arrive
// only when the sender waits; and shared memory starts as NaN. So a missing barrier, or an element
// that no thread has written, shows up in the results.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "../../kernels/csrc/cuda/numbers.h"

namespace fastrnn::cuda {

// Runs functions as fibers until all have returned.
class Fibers {
 public:
  static constexpr size_t kStackBytes = 96 << 10;

  static void restart() { random_.seed(11); }  // repeats the same order

  // Runs the threads of blocks, which are given warp by warp.
  void run(std::vector<std::function<void()>> bodies, bool one_slow_warp) {
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
    const size_t slow = random_() % (fibers_.size() / kWarp);
    for (size_t i = 0; i < kWarp; ++i) fibers_[slow * kWarp + i]->slow = one_slow_warp;
    std::vector<Fiber *> running;
    for (auto &fiber : fibers_) running.push_back(fiber.get());
    while (!running.empty()) {
      std::shuffle(running.begin(), running.end(), random_);
      if (!advance(running, false) && !advance(running, true)) {
        std::fprintf(stderr, "emulator: %zu threads wait for each other\n", running.size());
        std::abort();
      }
      running.erase(
          std::remove_if(running.begin(), running.end(), [](Fiber *f) { return f->done; }),
          running.end());
    }
  }

  // Called by a fiber: lets others run until ready() is true.
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
    bool slow = false, done = false;
  };

  // Lets some of the fibers that need not wait run. Returns whether there are any.
  bool advance(const std::vector<Fiber *> &running, bool slow) {
    bool any = false;
    for (Fiber *fiber : running) {
      // Most fibers are still waiting.
      if (fiber->slow != slow || (fiber->ready && !fiber->ready())) continue;
      any = true;
      if (random_() % 2) continue;  // otherwise all fibers would advance in step
      active_ = fiber;
      swapcontext(&scheduler_, &fiber->context);
    }
    return any;
  }

  static void start() {
    Fiber *self = current_->active_;
    self->body();
    self->done = true;
  }

  static inline Fibers *current_ = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  static inline std::mt19937 random_;
  ucontext_t scheduler_;
  Fiber *active_ = nullptr;
};

// A barrier. It is complete for the n-th time when each of the members has arrived n times.
struct Barrier {
  int64_t members = 0, arrived = 0;
  bool complete(int64_t n) const { return arrived >= members * n; }
};

// The values that the lanes of a warp exchange. There are two buffers, since the next exchange may
// begin before all lanes have read this one.
struct Warp {
  struct Operands {
    Words a0, a1, b;
  };
  Barrier barrier{kWarp};
  Operands operands[2][kWarp];
  float values[2][kWarp];
};

struct Block {
  int64_t index = 0;
  std::vector<Words> shared;
  Barrier barrier;
  std::vector<Warp> warps;
};

struct Group {
  std::vector<Block> blocks;
  Barrier barrier;  // of a cluster's threads
};

// The machine of one thread; see kernels/csrc/cuda/gpu.h.
class Emulated {
 public:
  // An injected fault: a kind of barrier at which no thread waits.
  enum Fault { kNone, kBlock, kCluster, kGrid };
  static inline Fault fault = kNone;

  Emulated(Group &group, Block &block, int thread)
      : group_(group), block_(block), warp_(block.warps[size_t(thread / kWarp)]), thread_(thread) {}

  int thread() const { return thread_; }
  int64_t block() const { return block_.index; }
  char *shared() const { return reinterpret_cast<char *>(block_.shared.data()); }
  void sync() {
    if (fault != kBlock) pass(block_.barrier, syncs_);
  }

  float shuffle_xor(float value, int mask) {
    const int64_t turn = lanes_ & 1;
    warp_.values[turn][lane()] = value;
    pass(warp_.barrier, lanes_);
    return warp_.values[turn][lane() ^ mask];
  }

  // --- memory

  template <class T>
  T load(const T *p) const {
    check_alignment(p, sizeof(T));
    return *p;
  }
  uint32_t load_element(const float *p) const { return bits<uint32_t>(load(p)); }
  template <class S>
  uint32_t load_element(const S *p) const {
    return load(p).bits;
  }
  void load_if(bool needed, int32_t &number, const int32_t *p) const {
    if (needed) number = load(p);
  }
  Words load_sent(const void *p) const { return load(static_cast<const Words *>(p)); }

  // --- the exchange within a cluster

  // An mbarrier whose phases end when they have one arrival and all bytes that it expects.
  struct Arrivals {
    int32_t missing;  // bytes; negative if some came before they were expected
    uint16_t arrived, phases;
    void check() {
      if (arrived == 0 || missing != 0) return;
      arrived = 0;
      ++phases;
    }
  };
  static_assert(sizeof(Arrivals) == sizeof(uint64_t));

  // A place is an offset, and the index of a block in the upper bits.
  uint32_t place(const void *p) const {
    return uint32_t(static_cast<const char *>(p) - shared()) | index() << kPlaceBits;
  }
  uint32_t peer(int rank) const { return (uint32_t(rank) - index()) << kPlaceBits; }

  template <class T>
  void send(uint32_t to, const T &value, uint32_t arrivals) {
    T *there = at<T>(to);
    check_alignment(there, sizeof(T));
    Arrivals *counter = at<Arrivals>(arrivals);
    sent_.push_back([there, value, counter] {
      std::memcpy(there, &value, sizeof value);
      counter->missing -= int32_t(sizeof value);
      counter->check();
    });
  }
  void begin_counting(uint64_t *arrivals) const { *reinterpret_cast<Arrivals *>(arrivals) = {}; }
  void expect(uint64_t *arrivals, uint32_t bytes) const {
    Arrivals *counter = reinterpret_cast<Arrivals *>(arrivals);
    counter->missing += int32_t(bytes);
    ++counter->arrived;
    counter->check();
  }
  void wait_for_expected(const uint64_t *arrivals, uint32_t parity) {
    for (const auto &write : sent_) write();
    sent_.clear();
    const Arrivals *counter = reinterpret_cast<const Arrivals *>(arrivals);
    if (fault != kCluster)
      Fibers::wait([counter, parity] { return (counter->phases & 1u) != parity; });
  }
  void sync_cluster() { pass(group_.barrier, clusters_); }

  // --- the barrier of a grid's group

  void arrive(uint32_t *arrivals) const { ++*arrivals; }
  void wait(const uint32_t *arrivals, uint32_t expected) const {
    if (fault != kGrid)
      Fibers::wait([arrivals, expected] { return int32_t(*arrivals - expected) >= 0; });
  }

  // --- numbers

#if defined(__aarch64__)
  using Half = __fp16;  // GCC 12 has no other name for it there
#else
  using Half = _Float16;
#endif

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
  static float widen(float16 v) { return float(bits<Half>(v)); }
  template <class S>
  static S narrow(float v) {
    if constexpr (sizeof(S) == 4) {
      return v;
    } else if constexpr (std::is_same_v<S, float16>) {
      return bits<float16>(Half(v));
    } else {  // to nearest, ties to even; a NaN remains a NaN
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

  // --- the tensor cores' product, with the operand layout of PTX

  template <class S>
  void mma(float (&sums)[4], const Words &a0, const Words &a1, const Words &b) {
    const int64_t turn = lanes_ & 1;
    warp_.operands[turn][lane()] = {a0, a1, b};
    pass(warp_.barrier, lanes_);
    for (int half = 0; half < 2; ++half)
      for (int i = 0; i < 4; ++i) {
        const int row = lane() / 4 + (i >= 2 ? 8 : 0), column = lane() % 4 * 2 + i % 2;
        sums[i] += dot<S>(warp_.operands[turn], half, row, column);
      }
  }

 private:
  // A row of A times a column of B. Lane 4 p + q holds elements of rows p (registers 0 and 2) and p
  // + 8 (registers 1 and 3) of A, and of column p of B; q and the register select them.
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

  static constexpr int kPlaceBits = 18;  // more than any block's shared memory needs
  uint32_t index() const { return uint32_t(&block_ - group_.blocks.data()); }
  template <class T>
  T *at(uint32_t place) const {
    Block &block = group_.blocks[place >> kPlaceBits];
    const uint32_t offset = place & ((1u << kPlaceBits) - 1);
    return reinterpret_cast<T *>(reinterpret_cast<char *>(block.shared.data()) + offset);
  }
  static void pass(Barrier &barrier, int64_t &passed) {
    ++barrier.arrived;
    ++passed;
    Fibers::wait([&barrier, n = passed] { return barrier.complete(n); });
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

// --- approximations: see kernels/csrc/cuda/numbers.h

// The errors of the approximations, which a test sets to those that PTX permits.
struct Approximation {
  int exp2_ulp = 0, reciprocal_ulp = 0;
  double tanh_relative = 0;
};
inline Approximation approximation;

// A positive number moved by some units in the last place; subnormals become zero.
inline float perturb(float v, int ulp) {
  if (v < std::numeric_limits<float>::min()) return 0;
  return std::isfinite(v) ? Emulated::bits<float>(Emulated::bits<uint32_t>(v) + uint32_t(ulp)) : v;
}
FASTRNN_INLINE float exp2_approximate(float v) {
  return perturb(std::exp2(v), approximation.exp2_ulp);
}
FASTRNN_INLINE float reciprocal_approximate(float v) {
  return perturb(1 / v, approximation.reciprocal_ulp);
}
FASTRNN_INLINE float tanh_approximate(float v) {
  return float(std::tanh(double(v)) * (1 + approximation.tanh_relative));
}

}  // namespace fastrnn::cuda

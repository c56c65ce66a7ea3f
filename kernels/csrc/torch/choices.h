// Remembers for each call which choice was made.
#pragma once

#include <string.h>

#include <mutex>
#include <unordered_map>

#include "fastrnn_torch.h"

namespace fastrnn {

// Caches a function's answers. An answer is not kept if forget() was called while the function ran,
// because what it depends on may have changed. A full cache is emptied.
class Choices {
 public:
  bool operator()(const fastrnn_torch_call &call, fastrnn_torch_choose choose) {
    uint64_t forgotten;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      forgotten = forgotten_;
      const auto found = known_.find(call);
      if (found != known_.end()) return found->second;
    }
    const bool answer = choose(&call) != 0;  // without the lock, because it waits for Python's lock
    const std::lock_guard<std::mutex> lock(mutex_);
    if (forgotten_ != forgotten) return answer;
    if (known_.size() >= kMost) known_.clear();
    known_[call] = answer;
    return answer;
  }

  void forget() {
    const std::lock_guard<std::mutex> lock(mutex_);
    known_.clear();
    ++forgotten_;
  }

 private:
  static constexpr size_t kMost = 4096;

  struct Hash {
    size_t operator()(const fastrnn_torch_call &c) const {
      size_t hash = 0;
      for (const int64_t value :
           {int64_t{c.cell}, int64_t{c.dtype}, int64_t{c.threads}, int64_t{c.packed}, c.steps,
            c.batch, c.input_size, c.hidden_size, c.proj_size})
        hash = (hash ^ size_t(value)) * 0x9e3779b97f4a7c15u;
      return hash ^ hash >> 29;
    }
  };
  struct Equal {
    bool operator()(const fastrnn_torch_call &a, const fastrnn_torch_call &b) const {
      static_assert(sizeof a == 4 * sizeof(int32_t) + 5 * sizeof(int64_t), "padding");
      return memcmp(&a, &b, sizeof a) == 0;
    }
  };

  std::mutex mutex_;
  uint64_t forgotten_ = 0;  // how many times
  std::unordered_map<fastrnn_torch_call, bool, Hash, Equal> known_;
};

}  // namespace fastrnn

// The functions by which api.cpp uses the CUDA runtime, or the emulated GPU of the tests. Each
// returns FASTRNN_OK or an error.
#pragma once

#include "plan.h"

namespace fastrnn::cuda {

// Identifies a kernel by cell, direction and arithmetic.
struct KernelId {
  bool lstm, backward;
  int dtype;
  bool tf32;
};

class Runtime {
 public:
  // Makes a device current for the lifetime of this object.
  explicit Runtime(int device);
  ~Runtime();
  Runtime(const Runtime &) = delete;
  Runtime &operator=(const Runtime &) = delete;

  int error() const { return error_; }
  int facts(Device *device) const;
  int clear(void *memory, int64_t bytes, void *stream) const;
  int launch(const KernelId &id, const Layer &layer, void *stream) const;

 private:
  const int device_;
  int before_ = -1, error_;
};

}  // namespace fastrnn::cuda

// What api.cpp needs of the machine that runs the kernels: the GPU's, or the tests' emulator of one.
// Every function returns FASTRNN_OK or an error.
#pragma once

#include "plan.h"

namespace fastrnn::cuda {

// Which kernel: of a cell, way and arithmetic.
struct Choice {
  bool lstm, backward;
  int dtype;
  bool tf32;
};

class Runtime {
 public:
  // Makes a device the current one for this object's life.
  explicit Runtime(int device);
  ~Runtime();
  Runtime(const Runtime &) = delete;
  Runtime &operator=(const Runtime &) = delete;

  int error() const { return error_; }
  int facts(Device *device) const;
  int clear(void *memory, int64_t bytes, void *stream) const;
  int launch(const Choice &choice, const Layer &layer, void *stream) const;

 private:
  const int device_;
  int before_ = -1, error_;
};

}  // namespace fastrnn::cuda

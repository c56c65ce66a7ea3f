// The sizes of a call, as its tensors have them.
#pragma once

#include <initializer_list>

#include "fastrnn_torch.h"
#include "tensor.h"

namespace fastrnn {

// Larger results come from the memory that kernels/cpu_pool.py reuses, so Python makes them.
constexpr int64_t kMostBytes = 1 << 20;
// No size is larger, so that products of three of them are exact.
constexpr int64_t kLargestSize = 1 << 20;

bool has_shape(const Tensor &tensor, int32_t dtype, std::initializer_list<int64_t> shape);

struct Sizes {
  // Takes them from an input [T, B, I] ([B, T, I] with batch_first), [N, I] with batch_sizes, or
  // [B, I], which is one step of a cell. batch_sizes: int64 [T], or null. False if there are none.
  bool read_input(Tensor *input, Tensor *batch_sizes, bool batch_first);

  int64_t element_bytes() const {
    return dtype == FASTRNN_FLOAT64 ? 8 : dtype == FASTRNN_FLOAT32 ? 4 : 2;
  }

  int dtype = -1;          // of fastrnn.h
  int32_t own_dtype = -1;  // torch's number for it
  bool single = false;     // one step of a cell
  int64_t steps = 0, batch = 0, rows = 0, features = 0;
  int64_t hidden = 0;  // whoever reads the states sets it
  const int64_t *batch_sizes = nullptr;

 private:
  bool read_batch_sizes(Tensor *tensor);
};

}  // namespace fastrnn

// Tensors and lists of tensors of torch, by their handles.
#pragma once

#include <utility>
#include <vector>

#include "functions.h"

namespace fastrnn {

// Owns a tensor's handle and describes the tensor.
class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(TensorHandle handle) : handle_(handle) {}
  Tensor(Tensor &&other) noexcept { *this = std::move(other); }
  Tensor &operator=(Tensor &&other) noexcept {
    std::swap(handle_, other.handle_);
    dim = other.dim, sizes = other.sizes, strides = other.strides;
    dtype = other.dtype, data = other.data;
    return *this;
  }
  ~Tensor() {
    if (handle_) torch.aoti_torch_delete_tensor_object(handle_);
  }

  // Fills in the description. False for what is not a strided CPU tensor with memory.
  bool describe();

  // Whether the axes, taken in this order, are those of a contiguous array.
  bool contiguous_in_order(const int *order) const;

  // Replaces a tensor by a copy unless its axes are contiguous in this order. False on failure.
  bool make_contiguous(const int *order);

  // An uninitialised CPU tensor whose axes are contiguous in this order. False on failure.
  static bool empty(int64_t dim, const int64_t *sizes, const int *order, int32_t dtype,
                    Tensor *result);

  int64_t dim = 0;
  const int64_t *sizes = nullptr, *strides = nullptr;  // [dim], torch's own
  int32_t dtype = -1;                                  // torch's number
  void *data = nullptr;

 private:
  friend bool make_list(std::vector<Tensor> *tensors, StableValue *list);

  TensorHandle handle_ = nullptr;
};

// Takes a list of tensors apart and frees it. False on failure.
bool take_list(StableValue list, std::vector<Tensor> *tensors);

// Moves tensors into a new list. False on failure.
bool make_list(std::vector<Tensor> *tensors, StableValue *list);

constexpr int kInOrder[] = {0, 1, 2};
constexpr int kTimeFirst[] = {1, 0, 2};  // of a tensor [B, T, ...], so that time moves slowest

}  // namespace fastrnn

#include "tensor.h"

namespace fastrnn {

bool Tensor::describe() {
  bool defined = false;
  int32_t device = -1, layout = -1;
  int64_t *own_sizes = nullptr, *own_strides = nullptr;
  if (!handle_ || torch.aoti_torch_is_defined(handle_, &defined) || !defined ||
      torch.aoti_torch_get_device_type(handle_, &device) ||
      device != torch.aoti_torch_device_type_cpu() ||
      torch.aoti_torch_get_layout(handle_, &layout) ||
      layout != torch.aoti_torch_layout_strided() || torch.aoti_torch_get_dim(handle_, &dim) ||
      torch.aoti_torch_get_sizes(handle_, &own_sizes) ||
      torch.aoti_torch_get_strides(handle_, &own_strides) ||
      torch.aoti_torch_get_dtype(handle_, &dtype) || torch.aoti_torch_get_data_ptr(handle_, &data))
    return false;
  sizes = own_sizes, strides = own_strides;
  return data != nullptr;
}

bool Tensor::contiguous_in_order(const int *order) const {
  int64_t expected = 1;
  for (int64_t i = dim - 1; i >= 0; --i) {
    const int axis = order[i];
    if (sizes[axis] != 1 && strides[axis] != expected) return false;
    expected *= sizes[axis];
  }
  return true;
}

bool Tensor::make_contiguous(const int *order) {
  if (contiguous_in_order(order)) return true;
  Tensor copy;
  if (!empty(dim, sizes, order, dtype, &copy) || torch.aoti_torch_copy_(copy.handle_, handle_, 0))
    return false;
  *this = std::move(copy);
  return true;
}

bool Tensor::empty(int64_t dim, const int64_t *sizes, const int *order, int32_t dtype,
                   Tensor *result) {
  int64_t strides[3], next = 1;
  for (int64_t i = dim - 1; i >= 0; --i) {
    strides[order[i]] = next;
    next *= sizes[order[i]];
  }
  TensorHandle handle = nullptr;
  if (torch.aoti_torch_empty_strided(dim, sizes, strides, dtype, torch.aoti_torch_device_type_cpu(),
                                     0, &handle))
    return false;
  *result = Tensor(handle);
  return result->describe();
}

bool take_list(StableValue list, std::vector<Tensor> *tensors) {
  const ListHandle handle = reinterpret_cast<ListHandle>(list);
  size_t size = 0;
  bool complete = !torch.torch_list_size(handle, &size);
  tensors->reserve(size);
  for (size_t i = 0; i < size; ++i) {
    StableValue value = 0;
    if (torch.torch_list_get_item(handle, i, &value)) {
      complete = false;
      continue;
    }
    tensors->emplace_back(reinterpret_cast<TensorHandle>(value));
  }
  torch.torch_delete_list(handle);  // frees the list, not what its values refer to
  return complete;
}

bool make_list(std::vector<Tensor> *tensors, StableValue *list) {
  ListHandle handle = nullptr;
  if (torch.torch_new_list_reserve_size(tensors->size(), &handle)) return false;
  for (const Tensor &tensor : *tensors)
    if (torch.torch_list_push_back(handle, reinterpret_cast<StableValue>(tensor.handle_))) {
      torch.torch_delete_list(handle);  // frees the list, not what its values refer to
      return false;
    }
  for (Tensor &tensor : *tensors) tensor.handle_ = nullptr;  // the list owns them now
  *list = reinterpret_cast<StableValue>(handle);
  return true;
}

}  // namespace fastrnn

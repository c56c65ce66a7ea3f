#include "sizes.h"

namespace fastrnn {
namespace {

int native_dtype(int32_t dtype) {
  if (dtype == torch.aoti_torch_dtype_float32()) return FASTRNN_FLOAT32;
  if (dtype == torch.aoti_torch_dtype_float64()) return FASTRNN_FLOAT64;
  if (dtype == torch.aoti_torch_dtype_bfloat16()) return FASTRNN_BFLOAT16;
  return -1;
}

}  // namespace

bool has_shape(const Tensor &tensor, int32_t dtype, std::initializer_list<int64_t> shape) {
  if (tensor.dtype != dtype || tensor.dim != int64_t(shape.size())) return false;
  const int64_t *size = tensor.sizes;
  for (const int64_t expected : shape)
    if (*size++ != expected) return false;
  return true;
}

bool Sizes::read_input(Tensor *input, Tensor *batch_sizes_tensor, bool batch_first) {
  if (!input->describe() || (dtype = native_dtype(input->dtype)) < 0) return false;
  own_dtype = input->dtype;
  const int64_t *size = input->sizes;
  if (batch_sizes_tensor) {
    if (input->dim != 2 || batch_first || !read_batch_sizes(batch_sizes_tensor)) return false;
    if (rows != size[0]) return false;
    features = size[1];
  } else if (input->dim == 2) {
    if (batch_first) return false;
    single = true, steps = 1, batch = rows = size[0], features = size[1];
  } else {
    if (input->dim != 3) return false;
    steps = size[batch_first], batch = size[!batch_first], features = size[2];
    if (steps > kLargestSize || batch > kLargestSize) return false;
    rows = steps * batch;
  }
  return rows > 0 && features > 0 && rows < kLargestSize && features < kLargestSize;
}

bool Sizes::read_batch_sizes(Tensor *tensor) {
  if (!tensor->describe() || tensor->dtype != torch.aoti_torch_dtype_int64() || tensor->dim != 1 ||
      tensor->sizes[0] < 1 || !tensor->contiguous_in_order(kInOrder))
    return false;
  batch_sizes = static_cast<const int64_t *>(tensor->data);
  steps = tensor->sizes[0], batch = batch_sizes[0], rows = 0;
  for (int64_t t = 0; t < steps; ++t) {
    if (batch_sizes[t] < 1 || batch_sizes[t] > (t ? batch_sizes[t - 1] : kLargestSize))
      return false;
    rows += batch_sizes[t];
  }
  return true;
}

}  // namespace fastrnn

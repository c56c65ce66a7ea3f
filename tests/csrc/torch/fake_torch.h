// What libfastrnn_torch needs of torch: tensors and lists behind handles, and a dispatcher that
// remembers the kernels of the ops.
//
// It counts the handles that are in use, and on demand one call of a function fails.
#pragma once

#include <torch/functions.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

// What a handle refers to. Handles that were copied share the memory.
struct fastrnn::OpaqueTensor {
  OpaqueTensor();
  OpaqueTensor(const OpaqueTensor &);
  ~OpaqueTensor();

  std::vector<int64_t> sizes, strides;
  int32_t dtype, device, layout;
  bool defined = true;
  std::shared_ptr<char> memory;
  void *data = nullptr;
};

namespace fake {

using Tensor = std::unique_ptr<fastrnn::OpaqueTensor>;
using Tensors = std::vector<Tensor>;

enum Dtype { FLOAT32 = 11, FLOAT64, BFLOAT16, FLOAT16, INT32, INT64, UINT8 };
enum Device { CPU = 21, CUDA };
enum Layout { STRIDED = 31, SPARSE };

int64_t element_bytes(int32_t dtype);

// A contiguous tensor whose memory has its exact size, aligned to 64 bytes; every byte is 0xff, and
// so every number NaN. Without elements, it has no memory.
Tensor empty(const std::vector<int64_t> &sizes, int32_t dtype);
// The same numbers in memory where the axes, outermost first, have this order.
Tensor in_order(const Tensor &tensor, const std::vector<int> &axes);
Tensor copy(const Tensor &tensor);
Tensors copy(const Tensors &tensors);
// A tensor's elements in the order of its axes.
std::vector<char> bytes(const Tensor &tensor);

// The addresses for fastrnn_torch_bind, in the order of these names; exits if one is not known.
std::vector<void *> functions(const std::string &names);

// The number of tensors and lists whose handles are not freed.
int handles_in_use();

// From here on, the call of this number, counted from 0, of any function that can fail fails; none
// if the number is negative.
void fail_call(int number);
// Whether that call took place, and of which function.
const char *failed_function();

void set_num_threads(int threads);

// An argument of an op.
class Value {
 public:
  Value(Tensor tensor);
  Value(Tensors tensors);
  Value(int64_t integer);
  fastrnn::StableValue value;
};

enum Outcome { DONE, DECLINED, THROWN };

// Calls an op's kernel as the dispatcher does, which owns the results and not the arguments.
Outcome call(const std::string &op, const std::vector<Value> &arguments, Tensors *results);

// The names of the ops that have kernels.
std::vector<std::string> ops();

}  // namespace fake

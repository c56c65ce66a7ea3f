#include "stack.h"

#include <stdlib.h>
#include <string.h>

#include <memory>

namespace fastrnn {
namespace {

// Larger results come from the memory that kernels/cpu_pool.py reuses.
constexpr int64_t kMostBytes = 1 << 20;
// No size is larger, so that products of three of them are exact.
constexpr int64_t kLargestSize = 1 << 20;

struct Free {
  void operator()(void *block) const { free(block); }
};
using Scratch = std::unique_ptr<char, Free>;

bool allocate(int64_t bytes, Scratch *block) {
  void *data = nullptr;
  if (posix_memalign(&data, 64, size_t(bytes))) return false;
  block->reset(static_cast<char *>(data));
  return true;
}

int native_dtype(int32_t dtype) {
  if (dtype == torch.aoti_torch_dtype_float32()) return FASTRNN_FLOAT32;
  if (dtype == torch.aoti_torch_dtype_float64()) return FASTRNN_FLOAT64;
  if (dtype == torch.aoti_torch_dtype_bfloat16()) return FASTRNN_BFLOAT16;
  return -1;
}

bool has_shape(const Tensor &tensor, int32_t dtype, std::initializer_list<int64_t> shape) {
  if (tensor.dtype != dtype || tensor.dim != int64_t(shape.size())) return false;
  const int64_t *size = tensor.sizes;
  for (const int64_t expected : shape)
    if (*size++ != expected) return false;
  return true;
}

class Stack {
 public:
  Stack(StackArguments *arguments, const StackContext &context)
      : a_(*arguments), options_(a_.options), context_(context) {}

  bool run(std::vector<Tensor> *results) {
    return check_input() && check_states() &&
           (a_.frozen ? check_prepacked() : check_weights() && chosen()) && run_layers(results);
  }

 private:
  bool check_input() {
    if (!a_.input.describe() || (dtype_ = native_dtype(a_.input.dtype)) < 0) return false;
    const int64_t *size = a_.input.sizes;
    if (a_.packed) {
      if (a_.input.dim != 2 || options_.batch_first || !read_batch_sizes()) return false;
      rows_ = size[0], features_ = size[1];
    } else if (a_.input.dim == 2) {
      if (options_.batch_first || sets() != 1) return false;
      single_ = true, steps_ = 1, batch_ = rows_ = size[0], features_ = size[1];
    } else {
      if (a_.input.dim != 3) return false;
      steps_ = size[options_.batch_first], batch_ = size[!options_.batch_first];
      features_ = size[2];
      if (steps_ > kLargestSize || batch_ > kLargestSize) return false;
      rows_ = steps_ * batch_;
    }
    return rows_ > 0 && features_ > 0 && rows_ < kLargestSize && features_ < kLargestSize;
  }

  bool read_batch_sizes() {
    Tensor &sizes = a_.batch_sizes;
    if (!sizes.describe() || sizes.dtype != torch.aoti_torch_dtype_int64() || sizes.dim != 1 ||
        !sizes.contiguous_in_order(kInOrder))
      return false;
    const int64_t *values = static_cast<const int64_t *>(sizes.data);
    steps_ = sizes.sizes[0], batch_ = values[0];
    int64_t rows = 0;
    for (int64_t t = 0; t < steps_; ++t) {
      if (values[t] < 1 || values[t] > (t ? values[t - 1] : kLargestSize)) return false;
      rows += values[t];
    }
    return rows == a_.input.sizes[0];
  }

  bool check_states() {
    if (a_.states.size() != (options_.gru ? 1u : 2u)) return false;
    for (Tensor &state : a_.states)
      if (!state.describe() || state.dim != (single_ ? 2 : 3)) return false;
    hidden_ = a_.states[0].sizes[single_ ? 1 : 2];
    if (options_.layers < 1 || options_.layers > 1024 || hidden_ < 1 || hidden_ > kLargestSize)
      return false;
    for (Tensor &state : a_.states)
      if (!(single_ ? has_shape(state, a_.input.dtype, {batch_, hidden_})
                    : has_shape(state, a_.input.dtype, {sets(), batch_, hidden_})))
        return false;
    return true;
  }

  bool check_weights() {
    const int64_t gates = options_.gates() * hidden_, width = options_.directions() * hidden_;
    if (int64_t(a_.weights.size()) != sets() * weights_per_set()) return false;
    for (int64_t set = 0; set < sets(); ++set) {
      const int64_t features = set < options_.directions() ? features_ : width;
      for (int64_t i = 0; i < weights_per_set(); ++i) {
        Tensor &weight = a_.weights[size_t(set * weights_per_set() + i)];
        if (!weight.describe() ||
            !(i >= 2 ? has_shape(weight, a_.input.dtype, {gates})
                     : has_shape(weight, a_.input.dtype, {gates, i ? hidden_ : features})))
          return false;
      }
    }
    return true;
  }

  bool check_prepacked() {
    Tensor &weights = a_.prepacked;
    if (!weights.describe() || weights.dtype != torch.aoti_torch_dtype_uint8() ||
        weights.dim != 1 || !weights.contiguous_in_order(kInOrder))
      return false;
    const fastrnn_problem first = problem_of(0, 0), other = problem_of(1, 0);
    first_bytes_ = context_.cpu.prepacked_bytes(&first);
    other_bytes_ = context_.cpu.prepacked_bytes(&other);
    return prepacked_at(sets()) == weights.sizes[0] &&
           (!a_.output.empty() || output_bytes() < kMostBytes);
  }

  bool chosen() const {
    if (output_bytes() >= kMostBytes) return false;
    const fastrnn_torch_call call = {cell(), dtype_, context_.threads, a_.packed,
                                     steps_, batch_, features_,        hidden_};
    return context_.choose(call);
  }

  bool run_layers(std::vector<Tensor> *results) {
    const int *order = options_.batch_first ? kTimeFirst : kInOrder;
    if (!a_.input.make_contiguous(order)) return false;
    for (std::vector<Tensor> *tensors : {&a_.states, &a_.weights})
      for (Tensor &tensor : *tensors)
        if (!tensor.make_contiguous(kInOrder)) return false;
    const int64_t width = options_.directions() * hidden_;
    Tensor output;
    int64_t sizes[3] = {steps_, batch_, width};
    if (options_.batch_first) std::swap(sizes[0], sizes[1]);
    if (a_.packed) sizes[0] = rows_, sizes[1] = width;
    const int64_t dim = a_.packed ? 2 : 3;
    if (!a_.output.empty()) {
      output = std::move(a_.output[0]);
      if (single_ || a_.output.size() != 1 || !output.describe() || output.dim != dim ||
          memcmp(output.sizes, sizes, size_t(dim) * sizeof(int64_t)) != 0 ||
          output.dtype != a_.input.dtype || !output.contiguous_in_order(order))
        return false;
    } else if (!single_ && !Tensor::empty(dim, sizes, order, a_.input.dtype, &output)) {
      return false;
    }
    std::vector<Tensor> made(a_.states.size());
    for (size_t i = 0; i < made.size(); ++i)
      if (!Tensor::empty(a_.states[i].dim, a_.states[i].sizes, kInOrder, a_.input.dtype, &made[i]))
        return false;
    const int64_t bytes = output_bytes();
    Scratch between[2], halves, row;
    if (single_ && !allocate(bytes, &row)) return false;
    for (int i = 0; i < 2; ++i)
      if (options_.layers > i + 1 && !allocate(bytes, &between[i])) return false;
    if (options_.bidirectional && !allocate(bytes, &halves)) return false;
    const void *x = a_.input.data;
    for (int64_t layer = 0; layer < options_.layers; ++layer) {
      const bool last = layer == options_.layers - 1;
      void *y = !last ? between[layer % 2].get() : single_ ? row.get() : output.data;
      if (!run_layer(layer, x, y, halves.get(), made)) return false;
      x = y;
    }
    if (!single_ && a_.output.empty()) made.insert(made.begin(), std::move(output));
    *results = std::move(made);
    return true;
  }

  // One layer, in all directions. `halves`: room for the outputs of both directions.
  bool run_layer(int64_t layer, const void *x, void *y, char *halves,
                 const std::vector<Tensor> &made) const {
    const int64_t row = hidden_ * element_bytes(), half = rows_ * row;
    for (int64_t direction = 0; direction < options_.directions(); ++direction) {
      void *out = options_.bidirectional ? halves + direction * half : y;
      if (!run_direction(layer, direction, x, out, made)) return false;
    }
    if (!options_.bidirectional) return true;
    char *to = static_cast<char *>(y);
    for (int64_t n = 0; n < rows_; ++n, to += 2 * row) {
      memcpy(to, halves + n * row, size_t(row));
      memcpy(to + row, halves + half + n * row, size_t(row));
    }
    return true;
  }

  bool run_direction(int64_t layer, int64_t direction, const void *x, void *y,
                     const std::vector<Tensor> &made) const {
    const int64_t set = layer * options_.directions() + direction;
    const int64_t offset = set * batch_ * hidden_ * element_bytes();
    const auto state = [offset](const Tensor &tensor) {
      return static_cast<char *>(tensor.data) + offset;
    };
    const fastrnn_problem problem = problem_of(layer, direction);
    fastrnn_forward_arrays arrays{};
    arrays.x = x, arrays.y = y;
    arrays.h0 = state(a_.states[0]), arrays.h_n = state(made[0]);
    if (!options_.gru) arrays.c0 = state(a_.states[1]), arrays.c_n = state(made[1]);
    if (a_.frozen) {
      const char *weights = static_cast<const char *>(a_.prepacked.data) + prepacked_at(set);
      return context_.cpu.forward_prepacked(&problem, &arrays, weights) == FASTRNN_OK;
    }
    const Tensor *w = &a_.weights[size_t(set * weights_per_set())];
    arrays.w_ih = w[0].data, arrays.w_hh = w[1].data;
    if (options_.biases) arrays.b_ih = w[2].data, arrays.b_hh = w[3].data;
    return context_.cpu.forward(&problem, &arrays) == FASTRNN_OK;
  }

  fastrnn_problem problem_of(int64_t layer, int64_t direction) const {
    fastrnn_problem problem{};
    problem.cell = cell(), problem.dtype = dtype_;
    problem.reverse = int32_t(direction), problem.threads = context_.threads;
    problem.steps = steps_, problem.batch = batch_;
    problem.input_size = layer ? options_.directions() * hidden_ : features_;
    problem.hidden_size = hidden_;
    if (a_.packed) problem.batch_sizes = static_cast<const int64_t *>(a_.batch_sizes.data);
    return problem;
  }

  // Where the prepacked weights of a layer and direction begin.
  int64_t prepacked_at(int64_t set) const {
    const int64_t first = set < options_.directions() ? set : options_.directions();
    return first * first_bytes_ + (set - first) * other_bytes_;
  }

  int32_t cell() const { return options_.gru ? FASTRNN_GRU : FASTRNN_LSTM; }
  int64_t sets() const { return options_.layers * options_.directions(); }
  int64_t output_bytes() const { return rows_ * options_.directions() * hidden_ * element_bytes(); }
  int64_t weights_per_set() const { return options_.biases ? 4 : 2; }
  int64_t element_bytes() const {
    return dtype_ == FASTRNN_FLOAT64 ? 8 : dtype_ == FASTRNN_FLOAT32 ? 4 : 2;
  }

  StackArguments &a_;
  const StackOptions options_;
  const StackContext &context_;
  int dtype_ = -1;                             // of fastrnn.h
  bool single_ = false;                        // one step of a cell
  int64_t first_bytes_ = 0, other_bytes_ = 0;  // of prepacked weights: first layer, other layers
  int64_t steps_ = 0, batch_ = 0, rows_ = 0, features_ = 0, hidden_ = 0;
};

}  // namespace

bool run_stack(StackArguments *arguments, const StackContext &context,
               std::vector<Tensor> *results) {
  return Stack(arguments, context).run(results);
}

}  // namespace fastrnn

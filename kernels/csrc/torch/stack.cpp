#include "stack.h"

#include <stdlib.h>
#include <string.h>

#include <memory>

#include "sizes.h"

namespace fastrnn {
namespace {

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

class Stack {
 public:
  Stack(StackArguments *arguments, const StackContext &context)
      : a_(*arguments), options_(a_.options), context_(context) {}

  bool run(std::vector<Tensor> *results) {
    return check_sizes() && (a_.frozen ? check_prepacked() : check_weights() && chosen()) &&
           run_layers(results);
  }

 private:
  bool check_sizes() {
    return size_.read_input(&a_.input, a_.packed ? &a_.batch_sizes : nullptr,
                            options_.batch_first) &&
           options_.layers >= 1 && options_.layers <= 1024 && (!size_.single || sets() == 1) &&
           check_states();
  }

  bool check_states() {
    if (a_.states.size() != (options_.gru ? 1u : 2u)) return false;
    for (Tensor &state : a_.states)
      if (!state.describe() || state.dim != (size_.single ? 2 : 3)) return false;
    const int last = size_.single ? 1 : 2;
    out_ = a_.states.front().sizes[last], size_.hidden = a_.states.back().sizes[last];
    if (out_ < 1 || out_ > size_.hidden || size_.hidden > kLargestSize ||
        (projected() && (size_.single || a_.frozen)))
      return false;
    for (size_t i = 0; i < a_.states.size(); ++i) {
      const Tensor &state = a_.states[i];
      const int64_t width = state_width(i);
      if (!(size_.single ? has_shape(state, a_.input.dtype, {size_.batch, width})
                         : has_shape(state, a_.input.dtype, {sets(), size_.batch, width})))
        return false;
    }
    return true;
  }

  bool check_weights() {
    const int64_t gates = options_.gates() * size_.hidden;
    if (int64_t(a_.weights.size()) != sets() * weights_per_set()) return false;
    for (int64_t set = 0; set < sets(); ++set) {
      const int64_t features = set < options_.directions() ? size_.features : width();
      Tensor *weight = &a_.weights[size_t(set * weights_per_set())];
      for (int64_t i = 0; i < weights_per_set(); ++i)
        if (!weight[i].describe()) return false;
      const auto has = [this](const Tensor &tensor, std::initializer_list<int64_t> shape) {
        return has_shape(tensor, a_.input.dtype, shape);
      };
      if (!has(weight[0], {gates, features}) || !has(weight[1], {gates, out_}) ||
          (options_.biases && (!has(weight[2], {gates}) || !has(weight[3], {gates}))) ||
          (projected() && !has(weight[weights_per_set() - 1], {out_, size_.hidden})))
        return false;
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
    // For a projected layer, every other kernel takes longer.
    if (output_bytes() >= kMostBytes && !projected()) return false;
    const fastrnn_torch_call call = {cell(),         size_.dtype,  context_.threads,
                                     a_.packed,      size_.steps,  size_.batch,
                                     size_.features, size_.hidden, projected() ? out_ : 0};
    return context_.choose(call);
  }

  bool run_layers(std::vector<Tensor> *results) {
    const int *order = options_.batch_first ? kTimeFirst : kInOrder;
    if (!a_.input.make_contiguous(order)) return false;
    for (std::vector<Tensor> *tensors : {&a_.states, &a_.weights})
      for (Tensor &tensor : *tensors)
        if (!tensor.make_contiguous(kInOrder)) return false;
    Tensor output;
    int64_t sizes[3] = {size_.steps, size_.batch, width()};
    if (options_.batch_first) std::swap(sizes[0], sizes[1]);
    if (a_.packed) sizes[0] = size_.rows, sizes[1] = width();
    const int64_t dim = a_.packed ? 2 : 3;
    if (!a_.output.empty()) {
      output = std::move(a_.output[0]);
      if (size_.single || a_.output.size() != 1 || !output.describe() || output.dim != dim ||
          memcmp(output.sizes, sizes, size_t(dim) * sizeof(int64_t)) != 0 ||
          output.dtype != a_.input.dtype || !output.contiguous_in_order(order))
        return false;
    } else if (!size_.single && !Tensor::empty(dim, sizes, order, a_.input.dtype, &output)) {
      return false;
    }
    std::vector<Tensor> made(a_.states.size());
    for (size_t i = 0; i < made.size(); ++i)
      if (!Tensor::empty(a_.states[i].dim, a_.states[i].sizes, kInOrder, a_.input.dtype, &made[i]))
        return false;
    const int64_t bytes = output_bytes();
    Scratch between[2], halves, row;
    if (size_.single && !allocate(bytes, &row)) return false;
    for (int i = 0; i < 2; ++i)
      if (options_.layers > i + 1 && !allocate(bytes, &between[i])) return false;
    if (options_.bidirectional && !allocate(bytes, &halves)) return false;
    const void *x = a_.input.data;
    for (int64_t layer = 0; layer < options_.layers; ++layer) {
      const bool last = layer == options_.layers - 1;
      void *y = !last ? between[layer % 2].get() : size_.single ? row.get() : output.data;
      if (!run_layer(layer, x, y, halves.get(), made)) return false;
      x = y;
    }
    if (!size_.single && a_.output.empty()) made.insert(made.begin(), std::move(output));
    *results = std::move(made);
    return true;
  }

  // One layer, in all directions. `halves`: room for the outputs of both directions.
  bool run_layer(int64_t layer, const void *x, void *y, char *halves,
                 const std::vector<Tensor> &made) const {
    const int64_t row = out_ * size_.element_bytes(), half = size_.rows * row;
    for (int64_t direction = 0; direction < options_.directions(); ++direction) {
      void *out = options_.bidirectional ? halves + direction * half : y;
      if (!run_direction(layer, direction, x, out, made)) return false;
    }
    if (!options_.bidirectional) return true;
    char *to = static_cast<char *>(y);
    for (int64_t n = 0; n < size_.rows; ++n, to += 2 * row) {
      memcpy(to, halves + n * row, size_t(row));
      memcpy(to + row, halves + half + n * row, size_t(row));
    }
    return true;
  }

  bool run_direction(int64_t layer, int64_t direction, const void *x, void *y,
                     const std::vector<Tensor> &made) const {
    const int64_t set = layer * options_.directions() + direction;
    const auto state = [this, set](const std::vector<Tensor> &states, size_t i) {
      const int64_t offset = set * size_.batch * state_width(i) * size_.element_bytes();
      return static_cast<char *>(states[i].data) + offset;
    };
    const fastrnn_problem problem = problem_of(layer, direction);
    fastrnn_forward_arrays arrays{};
    arrays.x = x, arrays.y = y;
    arrays.h0 = state(a_.states, 0), arrays.h_n = state(made, 0);
    if (!options_.gru) arrays.c0 = state(a_.states, 1), arrays.c_n = state(made, 1);
    if (a_.frozen) {
      const char *weights = static_cast<const char *>(a_.prepacked.data) + prepacked_at(set);
      return context_.cpu.forward_prepacked(&problem, &arrays, weights) == FASTRNN_OK;
    }
    const Tensor *w = &a_.weights[size_t(set * weights_per_set())];
    arrays.w_ih = w[0].data, arrays.w_hh = w[1].data;
    if (options_.biases) arrays.b_ih = w[2].data, arrays.b_hh = w[3].data;
    if (projected())
      return context_.cpu.forward_projected(&problem, &arrays, w[weights_per_set() - 1].data,
                                            out_) == FASTRNN_OK;
    return context_.cpu.forward(&problem, &arrays) == FASTRNN_OK;
  }

  fastrnn_problem problem_of(int64_t layer, int64_t direction) const {
    fastrnn_problem problem{};
    problem.cell = cell(), problem.dtype = size_.dtype;
    problem.reverse = int32_t(direction), problem.threads = context_.threads;
    problem.steps = size_.steps, problem.batch = size_.batch;
    problem.input_size = layer ? width() : size_.features;
    problem.hidden_size = size_.hidden;
    problem.batch_sizes = size_.batch_sizes;
    return problem;
  }

  // Where the prepacked weights of a layer and direction begin.
  int64_t prepacked_at(int64_t set) const {
    const int64_t first = set < options_.directions() ? set : options_.directions();
    return first * first_bytes_ + (set - first) * other_bytes_;
  }

  int32_t cell() const { return options_.gru ? FASTRNN_GRU : FASTRNN_LSTM; }
  int64_t sets() const { return options_.layers * options_.directions(); }
  int64_t output_bytes() const { return size_.rows * width() * size_.element_bytes(); }
  int64_t weights_per_set() const { return (options_.biases ? 4 : 2) + projected(); }
  bool projected() const { return out_ != size_.hidden; }
  int64_t width() const { return options_.directions() * out_; }  // of the output
  int64_t state_width(size_t i) const { return i ? size_.hidden : out_; }

  StackArguments &a_;
  const StackOptions options_;
  const StackContext &context_;
  Sizes size_;
  int64_t out_ = 0;                            // elements of h: H, or the projection's size
  int64_t first_bytes_ = 0, other_bytes_ = 0;  // of prepacked weights: first layer, other layers
};

}  // namespace

bool run_stack(StackArguments *arguments, const StackContext &context,
               std::vector<Tensor> *results) {
  return Stack(arguments, context).run(results);
}

}  // namespace fastrnn

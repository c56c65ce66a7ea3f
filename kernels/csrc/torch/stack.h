// A stack of layers in one or two directions, without gradients.
#pragma once

#include <vector>

#include "fastrnn_torch.h"
#include "tensor.h"

namespace fastrnn {

// How a stack is built, from the op's `options`: bits for what is true, and above them the number
// of layers.
struct StackOptions {
  bool gru = false, biases = false, bidirectional = false, batch_first = false;
  int64_t layers = 0;

  StackOptions() = default;
  explicit StackOptions(int64_t options)
      : gru(options & 1), biases(options & 2), bidirectional(options & 4), batch_first(options & 8),
        layers(options >> 4) {}

  int64_t directions() const { return bidirectional ? 2 : 1; }
  int64_t gates() const { return gru ? 3 : 4; }
};

struct StackArguments {
  StackOptions options;
  Tensor input;        // [T, B, I], [B, T, I] with batch_first; packed [N, I]; a cell's [B, I]
  Tensor batch_sizes;  // packed: int64 [T]
  bool packed = false;
  std::vector<Tensor> states, weights;  // in torch.nn's flat order
  // frozen: uint8, what fastrnn_cpu_prepack wrote for each layer and direction, one behind the
  // other, in place of the weights
  Tensor prepacked;
  bool frozen = false;
  std::vector<Tensor> output;  // frozen: empty, or room for the output
};

// What a call of a layer and the choice between backends need of the process.
struct StackContext {
  fastrnn_cpu_functions cpu;
  bool (*choose)(const fastrnn_torch_call &);
  int threads;
};

// Runs the layers: output and final states; the states alone of a cell, which has states [B, H],
// and where there is room for the output. False, with no results, for a call that has to go through
// Python: one that this function does not support, whose arguments do not fit together, or for
// which another backend was chosen.
bool run_stack(StackArguments *arguments, const StackContext &context,
               std::vector<Tensor> *results);

}  // namespace fastrnn

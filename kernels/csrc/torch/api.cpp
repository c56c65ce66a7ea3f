// The C interface of libfastrnn_torch, and the ops' kernels.
#include <string.h>

#include <atomic>
#include <new>
#include <string>

#include "choices.h"
#include "fastrnn_torch.h"
#include "layer.h"
#include "stack.h"

namespace fastrnn {

TorchFunctions torch;

namespace {

fastrnn_cpu_functions cpu;
fastrnn_torch_choose ask_python;
std::atomic<int> most_threads{1 << 16};

Choices &choices() {
  static Choices &made = *new Choices;  // lives on, for threads that outlive the process's end
  return made;
}

bool choose(const fastrnn_torch_call &call) { return choices()(call, ask_python); }

int threads() {
  uint32_t threads = 1;
  torch.torch_get_num_threads(&threads);
  const int most = most_threads.load(std::memory_order_relaxed);
  return threads < 1 ? 1 : threads > uint32_t(most) ? most : int(threads);
}

// stack(input, states, weights, options) or packed_stack(input, batch_sizes, states, ...): the
// results, or an empty list for a call that has to go through Python. The ops for frozen layers
// take prepacked weights and a list of outputs in place of the weights.
void stack_kernel(StableValue *values, bool packed, bool frozen) {
  const StableValue *next = values;
  StackArguments arguments;
  arguments.packed = packed, arguments.frozen = frozen;
  arguments.input = Tensor(reinterpret_cast<TensorHandle>(*next++));
  if (packed) arguments.batch_sizes = Tensor(reinterpret_cast<TensorHandle>(*next++));
  bool complete = take_list(*next++, &arguments.states);
  if (frozen) arguments.prepacked = Tensor(reinterpret_cast<TensorHandle>(*next++));
  complete = take_list(*next++, frozen ? &arguments.output : &arguments.weights) && complete;
  arguments.options = StackOptions(int64_t(*next));
  std::vector<Tensor> results;
  if (complete && !run_stack(&arguments, {cpu, choose, threads()}, &results)) results.clear();
  if (!make_list(&results, values)) throw std::bad_alloc();
}

template <bool kPacked, bool kFrozen>
void stack(StableValue *values, uint64_t, uint64_t) {
  stack_kernel(values, kPacked, kFrozen);
}

// layer(tensors, options) or layer_backward(tensors, options): the results, or an empty list.
template <bool kBackward>
void layer(StableValue *values, uint64_t, uint64_t) {
  std::vector<Tensor> tensors, results;
  const bool complete = take_list(values[0], &tensors);
  const LayerOptions options{int64_t(values[1])};
  const auto run = kBackward ? run_layer_backward : run_layer;
  if (complete && !run(&tensors, options, cpu, threads(), &results)) results.clear();
  if (!make_list(&results, values)) throw std::bad_alloc();
}

constexpr struct {
  const char *name;
  BoxedKernel kernel;
} kOps[] = {
    {"stack", stack<false, false>},
    {"packed_stack", stack<true, false>},
    {"frozen_stack", stack<false, true>},
    {"frozen_packed_stack", stack<true, true>},
    {"layer", layer<false>},
    {"layer_backward", layer<true>},
};

}  // namespace
}  // namespace fastrnn

using namespace fastrnn;

int fastrnn_abi_version(void) { return FASTRNN_ABI_VERSION; }

const char *fastrnn_torch_functions(void) {
#define FASTRNN_NAME(name, result, arguments) #name " "
  return FASTRNN_TORCH_FUNCTIONS(FASTRNN_NAME);
#undef FASTRNN_NAME
}

int fastrnn_torch_bind(void *const *torch_functions, const fastrnn_cpu_functions *cpu_functions,
                       fastrnn_torch_choose choose_function) {
  if (!torch_functions || !cpu_functions || !cpu_functions->forward || !cpu_functions->backward ||
      !cpu_functions->prepacked_bytes || !cpu_functions->forward_prepacked ||
      !cpu_functions->forward_projected || !choose_function)
    return FASTRNN_ERROR_ARGUMENT;
  constexpr size_t count = sizeof(TorchFunctions) / sizeof(void *);
  for (size_t i = 0; i < count; ++i)
    if (!torch_functions[i]) return FASTRNN_ERROR_ARGUMENT;
  memcpy(&fastrnn::torch, torch_functions, sizeof(TorchFunctions));
  cpu = *cpu_functions;
  ask_python = choose_function;
  return FASTRNN_OK;
}

const char *fastrnn_torch_ops(void) {
  static const std::string names = [] {
    std::string joined;
    for (const auto &op : kOps) joined += op.name + std::string(" ");
    return joined;
  }();
  return names.c_str();
}

int fastrnn_torch_register(void) {
  // The library object is kept, because deleting it would unregister the kernels.
  LibraryHandle library = nullptr;
  const auto &t = fastrnn::torch;
  bool failed = t.aoti_torch_library_init_impl("fastrnn", "CompositeExplicitAutograd",
                                               "libfastrnn_torch", 0, &library);
  for (const auto &op : kOps)
    failed = failed || t.torch_library_impl(library, op.name, op.kernel, kTorchVersion);
  return failed ? FASTRNN_ERROR_ARGUMENT : FASTRNN_OK;
}

void fastrnn_torch_forget(void) { choices().forget(); }

void fastrnn_torch_limit_threads(int most) { most_threads = most < 1 ? 1 : most; }

// The C interface of libfastrnn_cuda: checks a call, plans it, and launches its kernels.
#include "runtime.h"

namespace fastrnn::cuda {
namespace {

int check(const fastrnn_cuda_problem *p) {
  const bool valid = p && (p->cell == FASTRNN_LSTM || p->cell == FASTRNN_GRU) &&
                     (p->dtype == FASTRNN_FLOAT32 || p->dtype == FASTRNN_BFLOAT16 ||
                      p->dtype == FASTRNN_FLOAT16) &&
                     p->steps >= 0 && p->batch >= 0 && p->hidden_size >= 1 &&
                     p->hidden_size <= 1 << 20 && p->input_size >= 0 &&
                     p->input_size <= kMaxNarrowInput && !p->offsets == !p->lengths &&
                     (p->batch == 0 || p->steps <= (1 << 30) / p->batch);
  return valid ? FASTRNN_OK : FASTRNN_ERROR_ARGUMENT;
}

int check(const fastrnn_cuda_problem &p, const fastrnn_forward_arrays &a) {
  const bool lstm = p.cell == FASTRNN_LSTM;
  const bool valid = a.x && a.h0 && (a.w_ih || p.input_size == 0) && a.w_hh && a.y && a.h_n &&
                     !a.b_ih == !a.b_hh && (!lstm || (a.c0 && a.c_n && !a.gates == !a.cells));
  return valid ? FASTRNN_OK : FASTRNN_ERROR_ARGUMENT;
}

int check(const fastrnn_cuda_problem &p, const fastrnn_cuda_backward_arrays &a) {
  const bool lstm = p.cell == FASTRNN_LSTM;
  const bool valid = a.dh_n && a.w_hh_t && a.gates && a.dgates && a.dh0 &&
                     (lstm ? a.dc_n && a.c0 && a.cells && a.dc0 : a.h0 && a.y);
  return valid ? FASTRNN_OK : FASTRNN_ERROR_ARGUMENT;
}

template <class... Pointers>
bool aligned(int64_t bytes, const Pointers *...pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % uintptr_t(bytes) == 0) && ...);
}

// The offsets of the parts of scratch memory, in bytes: first the arrival counters, then the
// exchange buffers, then the states.
struct Scratch {
  int64_t exchange = 0, states = 0, end = 0;
};

Scratch scratch_layout(const Plan &plan, const fastrnn_cuda_problem &p) {
  Scratch scratch;
  if (!plan.grid) return scratch;
  scratch.exchange = ceil_div(plan.groups * int64_t(sizeof(uint32_t)), 256) * 256;
  scratch.states = scratch.exchange + plan.groups * 2 * plan.buffer_bytes;
  scratch.end = scratch.states;
  if (!plan.persistent) scratch.end += 2 * p.batch * p.hidden_size * int64_t(sizeof(float));
  return scratch;
}

int make_plan(const fastrnn_cuda_problem &p, bool backward, const Runtime &runtime, Plan *plan) {
  if (runtime.error()) return runtime.error();
  Device device;
  if (const int error = runtime.facts(&device)) return error;
  *plan = choose_plan(p, backward, shape_of(p.dtype, p.tf32), device);
  return plan->shared_bytes > device.shared_bytes ? FASTRNN_ERROR_MEMORY : FASTRNN_OK;
}

// Launches all steps of all sequences.
int run(const fastrnn_cuda_problem &p, bool backward, Layer layer, void *memory, int device,
        void *stream) {
  const Runtime runtime(device);
  if (const int error = make_plan(p, backward, runtime, &layer.plan)) return error;
  const Plan &plan = layer.plan;
  const Shape shape = shape_of(p.dtype, p.tf32);
  const Scratch scratch = scratch_layout(plan, p);
  if (scratch.end > 0 && !memory) return FASTRNN_ERROR_ARGUMENT;
  char *bytes = static_cast<char *>(memory);
  layer.steps = int32_t(p.steps), layer.batch = int32_t(p.batch);
  layer.hidden_size = int32_t(p.hidden_size), layer.input_size = int32_t(p.input_size);
  layer.reverse = p.reverse != 0;
  layer.offsets = p.offsets, layer.lengths = p.lengths;
  layer.paired_units = layer.paired_units && p.hidden_size % shape.wide == 0;
  layer.vector_weights = layer.vector_weights && p.hidden_size * shape.element_bytes % 16 == 0;
  layer.arrivals = reinterpret_cast<uint32_t *>(bytes);
  layer.exchange = bytes + scratch.exchange;
  layer.states[0] = reinterpret_cast<float *>(bytes + scratch.states);
  layer.states[1] = layer.states[0] + p.batch * p.hidden_size;

  const KernelId id = {p.cell == FASTRNN_LSTM, backward, p.dtype, p.tf32 != 0};
  const int rows = int(plan.groups) * plan.row_tiles * shape.rows();
  const int end = layer.steps + (backward ? 1 : 0);
  for (layer.first_sequence = 0; layer.first_sequence < p.batch; layer.first_sequence += rows) {
    if (scratch.states > 0)
      if (const int error = runtime.clear(memory, scratch.states, stream)) return error;
    // If each launch runs one step, the first forward launch only sends the initial states.
    layer.begin_step = 0;
    layer.end_step = plan.persistent ? end : backward ? 1 : 0;
    for (layer.first_launch = true;; layer.first_launch = false) {
      layer.last_launch = layer.end_step == end;
      if (const int error = runtime.launch(id, layer, stream)) return error;
      if (layer.last_launch) break;
      layer.begin_step = layer.end_step++;
    }
  }
  return FASTRNN_OK;
}

}  // namespace
}  // namespace fastrnn::cuda

using namespace fastrnn::cuda;

int fastrnn_abi_version(void) { return FASTRNN_ABI_VERSION; }

int fastrnn_cuda_check(int device) {
  const Runtime runtime(device);
  Device facts;
  return runtime.error() ? runtime.error() : runtime.facts(&facts);
}

int fastrnn_cuda_scratch(const fastrnn_cuda_problem *problem, int backward, int device,
                         int64_t *bytes) {
  if (const int error = check(problem)) return error;
  if (!bytes) return FASTRNN_ERROR_ARGUMENT;
  *bytes = 0;
  if (problem->steps == 0 || problem->batch == 0) return FASTRNN_OK;
  Plan plan;
  if (const int error = make_plan(*problem, backward != 0, Runtime(device), &plan)) return error;
  *bytes = scratch_layout(plan, *problem).end;
  return FASTRNN_OK;
}

int fastrnn_cuda_forward(const fastrnn_cuda_problem *problem, const fastrnn_forward_arrays *arrays,
                         void *scratch, int device, void *stream) {
  return fastrnn::run_call(check(problem), problem, arrays, [=](const auto &p, const auto &a) {
    if (const int error = check(p, a)) return error;
    Layer layer{};
    layer.forward = a;
    layer.paired_units = aligned(8, a.x, a.h0, a.c0, a.y, a.h_n, a.c_n, a.gates, a.cells);
    layer.vector_weights = aligned(16, a.w_hh);
    return run(p, false, layer, scratch, device, stream);
  });
}

int fastrnn_cuda_backward(const fastrnn_cuda_problem *problem,
                          const fastrnn_cuda_backward_arrays *arrays, void *scratch, int device,
                          void *stream) {
  return fastrnn::run_call(check(problem), problem, arrays, [=](const auto &p, const auto &a) {
    if (const int error = check(p, a)) return error;
    Layer layer{};
    layer.backward = a;
    layer.paired_units =
        aligned(8, a.dy, a.dh_n, a.dc_n, a.h0, a.y, a.c0, a.cells, a.gates, a.dgates, a.dh0, a.dc0);
    layer.vector_weights = aligned(16, a.w_hh_t);
    return run(p, true, layer, scratch, device, stream);
  });
}

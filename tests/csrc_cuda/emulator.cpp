// libfastrnn_cuda on an emulated GPU: the same C interface, but for memory of the CPU.
#include "emulator.h"

#include <algorithm>

#include "../../kernels/csrc/cuda/backward.h"
#include "../../kernels/csrc/cuda/forward.h"
#include "../../kernels/csrc/cuda/runtime.h"

namespace fastrnn::cuda {
namespace {

// Several kinds of device, since the resources of a device determine the plan of a layer.
const struct Kind {
  int multiprocessors, cluster;
  int64_t shared_bytes;
} kDevices[] = {
    {132, 16, 227 << 10},  // clusters
    {108, 1, 163 << 10},   // no clusters: blocks exchange states in global memory
    {6, 2, 24 << 10},      // several launches over sequences, many rows per group
    {1, 1, 24 << 10},      // one launch per step
};
int emulated;     // index into kDevices
Plan last_plan_;  // of the last launch

template <template <class, class, bool, class> class Way, class Cell, class Math>
void run_thread(const Layer &layer, Emulated &machine) {
  if (layer.plan.grid)
    Way<Cell, Math, true, Emulated>(layer, machine).run();
  else
    Way<Cell, Math, false, Emulated>(layer, machine).run();
}

using Thread = void (*)(const Layer &, Emulated &);

template <template <class, class, bool, class> class Way, class Cell>
Thread thread_of(const KernelId &id) {
  if (id.dtype == FASTRNN_FLOAT32)
    return id.tf32 ? run_thread<Way, Cell, Math<float, true>>
                   : run_thread<Way, Cell, Math<float, false>>;
  return id.dtype == FASTRNN_BFLOAT16 ? run_thread<Way, Cell, Math<bfloat16, true>>
                                      : run_thread<Way, Cell, Math<float16, true>>;
}

// Runs all blocks of a group together; groups are independent of each other.
void run_group(Thread body, const Layer &layer, int64_t index) {
  const Plan &plan = layer.plan;
  Group group;
  group.barrier.members = int64_t(plan.blocks) * plan.threads;
  group.blocks.resize(size_t(plan.blocks));
  std::vector<std::function<void()>> threads;
  for (int i = 0; i < plan.blocks; ++i) {
    Block &block = group.blocks[size_t(i)];
    block.index = index * plan.blocks + i;
    block.barrier.members = plan.threads;
    block.warps.resize(size_t(plan.threads / kWarp));
    const Words poison = {{~0u, ~0u, ~0u, ~0u}};
    block.shared.assign(size_t(plan.shared_bytes + 15) / 16, poison);
    for (int thread = 0; thread < plan.threads; ++thread)
      threads.push_back([&group, &block, &layer, thread, body] {
        Emulated machine(group, block, thread);
        body(layer, machine);
      });
  }
  // With a fault, a slow warp might wait for ever, which would end the process.
  Fibers().run(std::move(threads), Emulated::fault == Emulated::kNone);
}

}  // namespace

Runtime::Runtime(int device)
    : device_(device), error_(device == 0 ? FASTRNN_OK : FASTRNN_CUDA_ERROR + 101) {}
Runtime::~Runtime() = default;

int Runtime::facts(Device *facts) const {
  const Kind &kind = kDevices[emulated];
  *facts = {kind.multiprocessors, kind.shared_bytes, {}};
  for (int blocks = 1; blocks <= kind.cluster; ++blocks)
    facts->clusters[blocks] = kind.multiprocessors / blocks;
  return FASTRNN_OK;
}

int Runtime::clear(void *memory, int64_t bytes, void *) const {
  std::memset(memory, 0, size_t(bytes));
  return FASTRNN_OK;
}

int Runtime::launch(const KernelId &id, const Layer &layer, void *) const {
  last_plan_ = layer.plan;
  Thread body;
  if (id.lstm)
    body = id.backward ? thread_of<Backward, Lstm>(id) : thread_of<Forward, Lstm>(id);
  else
    body = id.backward ? thread_of<Backward, Gru>(id) : thread_of<Forward, Gru>(id);
  for (int64_t group = 0; group < layer.plan.groups; ++group) run_group(body, layer, group);
  return FASTRNN_OK;
}

}  // namespace fastrnn::cuda

using namespace fastrnn::cuda;

const char *fastrnn_cuda_architectures(void) { return "emulated"; }

// --- for the tests

extern "C" {
FASTRNN_API void emulate(int kind, int fault) {
  emulated = kind;
  Emulated::fault = Emulated::Fault(fault);
  Fibers::restart();
}

FASTRNN_API void last_plan(int64_t (&facts)[8]) {
  const int64_t found[] = {last_plan_.grid,      last_plan_.persistent, last_plan_.blocks,
                           last_plan_.tiles,     last_plan_.split,      last_plan_.passes,
                           last_plan_.row_tiles, last_plan_.groups};
  std::copy(std::begin(found), std::end(found), facts);
}
}

const char *fastrnn_cuda_error_string(int error) {
  return error == FASTRNN_OK          ? "no error"
         : error < FASTRNN_CUDA_ERROR ? "argument"
                                      : "no such device";
}

// libfastrnn_cuda on an emulated GPU: the same C interface, with memory of the CPU's for the device's.
#include "emulator.h"

#include <algorithm>

#include "../../kernels/csrc/cuda/backward.h"
#include "../../kernels/csrc/cuda/forward.h"
#include "../../kernels/csrc/cuda/runtime.h"

namespace fastrnn::cuda {
namespace {

// Devices of several kinds, since what fits where decides on a layer's form.
const struct Kind {
  int multiprocessors, cluster;
  int64_t shared_bytes;
} kDevices[] = {
    {132, 16, 227 << 10},  // clusters
    {108, 1, 163 << 10},   // none: blocks meet on the grid
    {6, 2, 24 << 10},      // sequences in turn, many rows a group
    {1, 1, 24 << 10},      // steps in turn
};
int emulated;  // which of them
Plan last;  // that was launched

template <template <class, class, bool, class> class Way, class Cell, class Math>
void run_thread(const Layer &layer, Emulated &machine) {
  if (layer.plan.grid)
    Way<Cell, Math, true, Emulated>(layer, machine).run();
  else
    Way<Cell, Math, false, Emulated>(layer, machine).run();
}

using Thread = void (*)(const Layer &, Emulated &);

template <template <class, class, bool, class> class Way, class Cell>
Thread thread_of(const Choice &choice) {
  if (choice.dtype == FASTRNN_FLOAT32)
    return choice.tf32 ? run_thread<Way, Cell, Math<float, true>>
                       : run_thread<Way, Cell, Math<float, false>>;
  return choice.dtype == FASTRNN_BFLOAT16 ? run_thread<Way, Cell, Math<bfloat16, true>>
                                          : run_thread<Way, Cell, Math<float16, true>>;
}

// All of a group's blocks at once; groups do not know of each other.
void run_group(Thread body, const Layer &layer, int64_t index) {
  const Plan &plan = layer.plan;
  Group group;
  group.meeting.members = int64_t(plan.blocks) * plan.threads;
  group.blocks.resize(size_t(plan.blocks));
  std::vector<std::function<void()>> threads;
  for (int i = 0; i < plan.blocks; ++i) {
    Block &block = group.blocks[size_t(i)];
    block.index = index * plan.blocks + i;
    block.meeting.members = plan.threads;
    block.warps.resize(size_t(plan.threads / kWarp));
    const Words poison = {{~0u, ~0u, ~0u, ~0u}};
    block.shared.assign(size_t(plan.shared_bytes + 15) / 16, poison);
    for (int thread = 0; thread < plan.threads; ++thread)
      threads.push_back([&group, &block, &layer, thread, body] {
        Emulated machine(group, block, thread);
        body(layer, machine);
      });
  }
  Fibers().run(std::move(threads));
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

int Runtime::launch(const Choice &choice, const Layer &layer, void *) const {
  last = layer.plan;
  Thread body;
  if (choice.lstm)
    body = choice.backward ? thread_of<Backward, Lstm>(choice) : thread_of<Forward, Lstm>(choice);
  else
    body = choice.backward ? thread_of<Backward, Gru>(choice) : thread_of<Forward, Gru>(choice);
  for (int64_t group = 0; group < layer.plan.groups; ++group) run_group(body, layer, group);
  return FASTRNN_OK;
}

}  // namespace fastrnn::cuda

using namespace fastrnn::cuda;

const char *fastrnn_cuda_architectures(void) { return "emulated"; }

// --- what the tests steer and see

extern "C" {
FASTRNN_API void emulate(int kind, int fault) {
  emulated = kind;
  Emulated::fault = Emulated::Fault(fault);
}

FASTRNN_API void last_plan(int64_t (&facts)[8]) {
  const int64_t found[] = {last.grid, last.persistent, last.blocks, last.tiles,
                           last.split, last.passes, last.row_tiles, last.groups};
  std::copy(std::begin(found), std::end(found), facts);
}
}

const char *fastrnn_cuda_error_string(int error) {
  return error == FASTRNN_OK ? "no error" : error < FASTRNN_CUDA_ERROR ? "argument" : "no such device";
}

// How a layer is divided among blocks, and the parameters of every kernel. Plain C++.
//
// A *group* of blocks runs a few sequences from the first step to the last. A warp multiplies a
// *tile* of hidden units, with all their gates, by some columns of the old state; `split` warps
// divide the columns of a tile. Columns are counted in *chunks* of 64 bytes. If a warp handles all
// its chunks in one pass, its weights stay in registers; otherwise it reads them in each step.
#pragma once

#include <stdint.h>

#include "../call.h"
#include "../fastrnn_cuda.h"

namespace fastrnn::cuda {

constexpr int kWarp = 32, kMaxWarps = 8;  // per block, which allows 255 registers per thread
constexpr int kChunkBytes = 64;
constexpr int kMaxNarrowInput = 4;  // widest input that is projected inside the step

// The shape of a warp's product. With tensor cores, each thread owns `wide` neighbouring units in
// each of `wide` rows (wide = 2); without, one unit in one row (wide = 1).
struct Shape {
  int element_bytes, wide;
  constexpr int units() const { return 8 * wide; }  // per tile
  constexpr int rows() const { return 4 * wide; }
  constexpr int chunks() const { return 8 / wide; }  // of weights that fit into a warp's registers
  constexpr int columns() const { return kChunkBytes / element_bytes; }  // per chunk
};

constexpr Shape shape_of(int dtype, bool tf32) {
  return {dtype == FASTRNN_FLOAT32 ? 4 : 2, dtype == FASTRNN_FLOAT32 && !tf32 ? 1 : 2};
}

constexpr int kMaxBlocks = 16;  // per cluster

struct Device {
  int multiprocessors;
  int64_t shared_bytes;          // per block
  int clusters[kMaxBlocks + 1];  // [n]: how many clusters of n blocks can run at the same time
};

struct Plan {
  bool grid = false;  // the blocks of a group exchange states in global memory, not as a cluster
  bool persistent = true;  // one launch runs all steps; otherwise each launch runs one
  int blocks = 1;          // per group
  int tiles = 1;           // per block
  int split = 1;           // warps that divide the columns of a tile
  int chunks = 1, passes = 1;
  int row_tiles = 1;                   // per group
  int64_t groups = 1;                  // per launch
  int pitch = 0;                       // bytes per row of an exchange buffer
  int64_t buffer_bytes = 0;            // of each of a group's two exchange buffers
  int arrivals_at = 0;                 // cluster: offset of the mbarriers of the two buffers
  int partials_at = 0, inputs_at = 0;  // offsets in bytes into the shared memory of a block
  int64_t shared_bytes = 0;
  int threads = 0;  // per block
};

// Computes the sizes that depend on the number of rows per group. The blocks exchange `exchanged`
// values per unit, and the warps of a split add up `summed` values per unit.
inline void lay_out(Plan &plan, const Shape &shape, int exchanged, int summed, int64_t inputs) {
  // An odd number of chunks, so that neighbouring rows are in different banks of shared memory.
  plan.pitch = ((exchanged * plan.chunks) | 1) * kChunkBytes;
  plan.buffer_bytes = int64_t(plan.row_tiles) * shape.rows() * plan.pitch;
  const int warps = plan.tiles * plan.split;
  const int64_t partials = plan.split > 1 ? int64_t(warps) * plan.row_tiles * shape.wide *
                                                shape.wide * summed * kWarp * 4
                                          : 0;
  plan.arrivals_at = plan.grid ? 0 : int(2 * plan.buffer_bytes);
  plan.partials_at = plan.grid ? 0 : plan.arrivals_at + 16;
  plan.inputs_at = int(plan.partials_at + partials);
  plan.shared_bytes = plan.inputs_at + 4 * inputs * plan.tiles * shape.units() * kMaxNarrowInput;
}

inline Plan choose_plan(const fastrnn_cuda_problem &p, bool backward, const Shape &shape,
                        const Device &device) {
  const int gates = p.cell == FASTRNN_LSTM ? 4 : 3;
  const int exchanged = backward ? gates : 1, summed = backward ? 1 : gates;
  const int64_t inputs = !backward && p.input_size ? gates : 0;
  const int64_t units = ceil_div(p.hidden_size, shape.units());
  const int64_t total_row_tiles = ceil_div(p.batch, shape.rows());
  Plan plan;
  plan.chunks = int(ceil_div(p.hidden_size, shape.columns()));
  const int64_t slices = ceil_div(plan.chunks, shape.chunks());
  plan.split = int(slices < kMaxWarps ? slices : kMaxWarps);
  plan.passes = int(ceil_div(slices, plan.split));
  plan.tiles = int(units < kMaxWarps / plan.split ? units : kMaxWarps / plan.split);
  plan.blocks = int(ceil_div(units, plan.tiles));
  plan.threads = plan.tiles * plan.split * kWarp;

  // Uses as few rows per group as keep all groups resident at the same time, and at most as many as
  // the threads can own. Returns whether the shared memory suffices.
  const auto spread = [&](int64_t groups) {
    const int64_t wanted = groups > 0 ? ceil_div(total_row_tiles, groups) : plan.split;
    plan.row_tiles = int(wanted < plan.split ? wanted : plan.split);
    lay_out(plan, shape, exchanged, summed, inputs);
    while (plan.shared_bytes > device.shared_bytes && plan.row_tiles > 1) {
      --plan.row_tiles;
      lay_out(plan, shape, exchanged, summed, inputs);
    }
    plan.groups = ceil_div(total_row_tiles, plan.row_tiles);
    return plan.shared_bytes <= device.shared_bytes;
  };
  if (plan.passes == 1 && plan.blocks <= kMaxBlocks && device.clusters[plan.blocks] > 0 &&
      spread(device.clusters[plan.blocks]))
    return plan;
  plan.grid = true;
  const int64_t resident = device.multiprocessors / plan.blocks;
  plan.persistent = resident > 0;
  spread(resident);
  if (plan.persistent && plan.groups > resident)
    plan.groups = resident;  // api.cpp launches the rest afterwards
  return plan;
}

// The parameters of a kernel.
struct Layer {
  Plan plan;
  int32_t steps, batch, hidden_size, input_size;  // fewer than 2^30 rows in total
  int32_t first_sequence;                         // of this launch
  int32_t begin_step, end_step;    // of this launch; a backward layer has T + 1 steps
  bool first_launch, last_launch;  // of these sequences
  bool reverse;
  bool paired_units, vector_weights;  // alignment allows loads of two units, of 16 bytes of weights
  const int64_t *offsets;
  const int32_t *lengths;
  char *exchange;      // grid: [groups][2][buffer_bytes]
  uint32_t *arrivals;  // grid: [groups], initially 0
  float *states[2];    // h and c, or their gradients, between launches: [B][H]
  fastrnn_forward_arrays forward;
  fastrnn_cuda_backward_arrays backward;
};

}  // namespace fastrnn::cuda

// How a layer is spread over blocks, and what every kernel is told. Plain C++.
//
// A *group* of blocks runs a few sequences from their first step to their last. A warp multiplies a
// *tile* of hidden units (with all gates) by a slice of the old state's columns; `split` warps share
// a tile's columns. Columns are counted in *chunks* of 64 bytes. Weights stay in registers if one
// pass over a warp's chunks is all; otherwise they are read again in each step.
#pragma once

#include <stdint.h>

#include "../fastrnn_cuda.h"

namespace fastrnn::cuda {

constexpr int kWarp = 32, kMostWarps = 8;  // of a block: 255 registers a thread
constexpr int kChunkBytes = 64;
constexpr int kMostNarrow = 4;  // input features projected inside a step

// The product's unit of work, by dtype: on the tensor cores a thread of a warp owns `wide`
// neighbouring units in each of `wide` rows, otherwise one unit in one row.
struct Shape {
  int element_bytes, wide;
  constexpr int units() const { return 8 * wide; }   // of a tile
  constexpr int rows() const { return 4 * wide; }
  constexpr int chunks() const { return 8 / wide; }  // of weights that a warp's registers hold
  constexpr int columns() const { return kChunkBytes / element_bytes; }  // of a chunk
};

constexpr Shape shape_of(int dtype, bool tf32) {
  return {dtype == FASTRNN_FLOAT32 ? 4 : 2, dtype == FASTRNN_FLOAT32 && !tf32 ? 1 : 2};
}

constexpr int kMostBlocks = 16;  // of a cluster

struct Device {
  int multiprocessors;
  int64_t shared_bytes;            // of a block
  int clusters[kMostBlocks + 1];   // by blocks of a cluster: how many run at once
};

struct Plan {
  bool grid = false;        // the group's blocks meet in global memory, not as a cluster
  bool persistent = true;   // one launch for all steps; otherwise one for each
  int blocks = 1;           // of a group
  int tiles = 1;            // of a block
  int split = 1;            // warps that share a tile's columns
  int chunks = 1, passes = 1;
  int row_tiles = 1;        // of a group
  int64_t groups = 1;       // of a launch
  int pitch = 0;            // bytes of a row in an exchange buffer
  int64_t buffer_bytes = 0;  // of a group's buffer, of which there are two
  int partials_at = 0, inputs_at = 0;  // bytes into a block's shared memory
  int64_t shared_bytes = 0;
  int threads = 0;  // of a block
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Sizes that follow from the rows a group has. `exchanged` gates are sent around and `summed` are
// shared by the warps of a split.
inline void lay_out(Plan &plan, const Shape &shape, int exchanged, int summed, int64_t inputs) {
  // Two rows' chunks lie in different banks.
  plan.pitch = ((exchanged * plan.chunks) | 1) * kChunkBytes;
  plan.buffer_bytes = int64_t(plan.row_tiles) * shape.rows() * plan.pitch;
  const int warps = plan.tiles * plan.split;
  const int64_t partials =
      plan.split > 1 ? int64_t(warps) * plan.row_tiles * shape.wide * shape.wide * summed * kWarp * 4
                     : 0;
  plan.partials_at = plan.grid ? 0 : int(2 * plan.buffer_bytes);
  plan.inputs_at = int(plan.partials_at + partials);
  plan.shared_bytes = plan.inputs_at + 4 * inputs * plan.tiles * shape.units() * kMostNarrow;
}

inline Plan choose(const fastrnn_cuda_problem &p, bool backward, const Shape &shape,
                   const Device &device) {
  const int gates = p.cell == FASTRNN_LSTM ? 4 : 3;
  const int exchanged = backward ? gates : 1, summed = backward ? 1 : gates;
  const int64_t inputs = !backward && p.input_size ? gates : 0;
  const int64_t units = ceil_div(p.hidden_size, shape.units());
  const int64_t most_row_tiles = ceil_div(p.batch, shape.rows());
  Plan plan;
  plan.chunks = int(ceil_div(p.hidden_size, shape.columns()));
  const int64_t slices = ceil_div(plan.chunks, shape.chunks());
  plan.split = int(slices < kMostWarps ? slices : kMostWarps);
  plan.passes = int(ceil_div(slices, plan.split));
  plan.tiles = int(units < kMostWarps / plan.split ? units : kMostWarps / plan.split);
  plan.blocks = int(ceil_div(units, plan.tiles));
  plan.threads = plan.tiles * plan.split * kWarp;

  // As few rows a group as keep all groups on the chip at once, and no more than a thread can own.
  const auto spread = [&](int64_t groups) {
    const int64_t wanted = groups > 0 ? ceil_div(most_row_tiles, groups) : plan.split;
    plan.row_tiles = int(wanted < plan.split ? wanted : plan.split);
    lay_out(plan, shape, exchanged, summed, inputs);
    while (plan.shared_bytes > device.shared_bytes && plan.row_tiles > 1) {
      --plan.row_tiles;
      lay_out(plan, shape, exchanged, summed, inputs);
    }
    plan.groups = ceil_div(most_row_tiles, plan.row_tiles);
    return plan.shared_bytes <= device.shared_bytes;
  };
  if (plan.passes == 1 && plan.blocks <= kMostBlocks && device.clusters[plan.blocks] > 0 &&
      spread(device.clusters[plan.blocks]))
    return plan;
  plan.grid = true;
  const int64_t resident = device.multiprocessors / plan.blocks;
  plan.persistent = resident > 0;
  spread(resident);
  if (plan.persistent && plan.groups > resident) plan.groups = resident;  // the rest in turn
  return plan;
}

// What a kernel is told.
struct Layer {
  Plan plan;
  int32_t steps, batch, hidden_size, input_size;  // below 2^30 rows in all
  int32_t first;            // sequence of this launch
  int32_t begin, end;       // steps of this launch; backward they are one more than T
  bool opens, closes;       // whether this launch is the first, and the last, of its sequences
  bool reverse;
  bool paired, vectors;     // whether neighbouring units, and 16 bytes of weights, can be read at once
  const int64_t *offsets;
  const int32_t *lengths;
  char *exchange;           // grid: [groups][2][buffer_bytes]
  uint32_t *arrivals;       // grid: [groups], 0 at first
  float *states[2];         // between launches: h and c or their gradients, [B][H]
  fastrnn_forward_arrays forward;
  fastrnn_cuda_backward_arrays backward;
};

}  // namespace fastrnn::cuda

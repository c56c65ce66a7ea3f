// How many threads a call uses, how they divide the work, and whether they pack the weights.
#pragma once

#include "../call.h"
#include "job.h"

namespace fastrnn {

// Costs are in cycles of one core. Threads and barriers cost the same for every arithmetic.
constexpr double kWakeCycles = 4000;           // to wake the other threads, per call
constexpr double kBarrierCycles = 600;         // for the threads of a row group, per step
constexpr double kNearCacheBytes = 768 << 10;  // largest weights that stay in a core's own caches
constexpr double kPackCycles = 3;              // to transpose a vector of weights

// The costs of one arithmetic.
struct CostModel {
  double product_cycles;  // to multiply a vector of weights by an element of the input or of h
  double weight_bytes;    // of one packed weight
  double near_bytes;      // of weights read per cycle from a core's own caches
  double far_bytes;       // of weights read per cycle from beyond them
};

// float32 was measured on Zen 4 with AVX-512; bfloat16 has the same inner loop and packed weights
// unless it is multiplied in pairs.
// float64 was measured by benchmarks/grid_costs.cpp on Zen 3 with AVX2: 0.9 to 1.1 cycles per
// product for H >= 128, 15 to 22 bytes per cycle up to 4 MiB, and 6 to 16 beyond. On that machine
// float32 and bfloat16 took 0.8 cycles per product and read 17 to 27 bytes per cycle; a barrier
// took 300 to 600 cycles and waking a thread 2000 to 4500, for every arithmetic.
// Transposing a vector of weights took 2.5 to 4 cycles there.
inline CostModel cost_model(int dtype, bool pairs) {
  if (pairs) return {0.5, 2, 32, 8};  // two numbers cost what one costs otherwise
  return dtype == FASTRNN_FLOAT64 ? CostModel{1, 8, 20, 12} : CostModel{1, 4, 32, 8};
}

// The vectors of weights, with `depth` for each gate and panel, that the busiest thread reads.
inline double weight_vectors(const fastrnn_problem &p, Arithmetic arithmetic, const Grid &grid,
                             int64_t depth) {
  const int64_t gates = p.cell == FASTRNN_LSTM ? 4 : 3;
  const int64_t panels = ceil_div(p.hidden_size, arithmetic.lanes);
  return double(ceil_div(panels, grid.column_groups) * gates * depth);
}

// Cycles per step on a grid: the products of the busiest thread or, if that takes longer, reading
// its weights; and a barrier if threads divide the hidden units.
inline double step_cycles(const fastrnn_problem &p, Arithmetic arithmetic, const Grid &grid) {
  const CostModel costs = cost_model(p.dtype, arithmetic.pairs);
  const int64_t depth = p.hidden_size + (p.input_size < 32 ? p.input_size : 0);
  const double vectors = weight_vectors(p, arithmetic, grid, depth);
  const double bytes = vectors * arithmetic.lanes * costs.weight_bytes;
  const double products =
      vectors * double(ceil_div(p.batch, grid.row_groups)) * costs.product_cycles;
  const double reads = bytes / (bytes < kNearCacheBytes ? costs.near_bytes : costs.far_bytes);
  return (products > reads ? products : reads) + (grid.column_groups > 1 ? kBarrierCycles : 0);
}

// Whether a forward call reads the weights as they lie in memory, because it has too few steps to
// repay packing them. Each sum of such a product costs a few instructions more, which matters less
// the more terms it has. The batch size has no say: a row must not depend on those beside it.
//
// Measured on Zen 3 for float32, H 32 to 1024, B 1 to 256 (packed / in place): 1.2 to 4 for B <= 4
// where this holds, 0.9 to 1.2 for B 64 and 256. Wide vectors and pairs make products and packing
// faster, but not the sums. Measured on Zen 5 for bfloat16 in pairs, 64 to 255 units per step: 0.9
// to 1.3 for B 1, 0.5 to 0.9 for B 128.
inline bool reads_in_place(const fastrnn_problem &p, Arithmetic arithmetic) {
  const bool many_steps = p.steps > (arithmetic.lanes < 16 ? 4 : 2);
  const int64_t units = arithmetic.pairs ? 256 : many_steps ? 128 : 64;
  return p.steps * units <= p.hidden_size;
}

// Cycles of a call on a grid: all its steps, waking threads, and transposing each weight once if
// the weights are neither prepacked nor read in place.
inline double call_cycles(const fastrnn_problem &p, Arithmetic arithmetic, const Grid &grid,
                          bool prepacked) {
  const double vectors = weight_vectors(p, arithmetic, grid, p.hidden_size + p.input_size) *
                         (arithmetic.pairs ? 0.5 : 1);
  return step_cycles(p, arithmetic, grid) * double(p.steps) +
         (prepacked || reads_in_place(p, arithmetic) ? 0 : vectors * kPackCycles) +
         (grid.threads() > 1 ? kWakeCycles : 0);
}

// The grid of at most `threads` threads with the shortest call. A larger grid must be at least 2%
// faster.
inline Grid choose_grid(const fastrnn_problem &p, Arithmetic arithmetic, int threads,
                        bool prepacked = false) {
  const int64_t panels = ceil_div(p.hidden_size, arithmetic.lanes);
  Grid best;
  double shortest = 0;
  for (int rows = 1; rows <= threads && rows <= p.batch; ++rows) {
    for (int columns = 1; rows * columns <= threads && columns <= panels; ++columns) {
      const Grid grid = {rows, columns};
      const double cycles = call_cycles(p, arithmetic, grid, prepacked);
      if (shortest == 0 || cycles < shortest * 0.98) {
        shortest = cycles;
        best = grid;
      }
    }
  }
  return best;
}

}  // namespace fastrnn

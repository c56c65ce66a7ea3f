// The work of one call, and its division among threads.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "../fastrnn.h"
#include "../inline.h"

namespace fastrnn {

// The order in which rows are processed. A step counts in this order, t in that of the caller.
struct Walk {
  int64_t steps, batch;
  bool reverse;
  const int64_t *batch_sizes;  // [T]; null: padded
  const int64_t *offsets;      // [T + 1]; null: padded

  FASTRNN_INLINE int64_t rows(int64_t t) const { return batch_sizes ? batch_sizes[t] : batch; }
  FASTRNN_INLINE int64_t offset(int64_t t) const { return offsets ? offsets[t] : t * batch; }
  FASTRNN_INLINE int64_t time(int64_t step) const { return reverse ? steps - 1 - step : step; }
  // The number of sequences of a step that also ran in the step before.
  FASTRNN_INLINE int64_t continued(int64_t step) const {
    if (step == 0) return 0;
    const int64_t now = rows(time(step)), before = rows(time(step - 1));
    return now < before ? now : before;
  }
  FASTRNN_INLINE int64_t length(int64_t b) const {  // steps of sequence b
    if (!batch_sizes) return steps;
    int64_t low = 0, high = steps;  // batch_sizes[low - 1] > b >= batch_sizes[high]
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (batch_sizes[middle] > b)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }
};

// A barrier for a group of threads. A thread spins, and yields to others once it has waited long.
class Barrier {
 public:
  void wait(int members);

 private:
  alignas(64) int arrived_ = 0;
  alignas(64) int phase_ = 0;
};

// The grid of threads. Row groups divide the batch and do not wait for each other in the time loop.
// The threads of a row group divide the hidden units and wait for each other once per step.
struct Grid {
  int row_groups = 1, column_groups = 1;
  FASTRNN_INLINE int threads() const { return row_groups * column_groups; }
};

struct Job {
  const fastrnn_problem *problem;
  const fastrnn_forward_arrays *forward;    // null in a backward call
  const fastrnn_backward_arrays *backward;  // null in a forward call
  Walk walk;
  Grid grid;
  bool in_place;              // forward: read the weights as they lie instead of packing them
  char *prepacked;            // forward: weights and biases that are packed already, or null
  const void *w_hr;           // [P, H], the weights of a projection, or null
  int64_t proj_size;          // P
  void *dw_hr;                // backward, with a projection: [P, H]
  const int64_t *row_starts;  // [row_groups + 1]: the first sequence of each row group
  Barrier *barriers;          // [1 + row_groups]: of all threads, then of each row group
  char *scratch;
};

// The functions for one cell and dtype.
struct Kernel {
  size_t (*forward_scratch)(const Job &);  // bytes
  void (*forward)(const Job &, int thread);
  // Packs weights and biases for Job::prepacked; returns their bytes. Null: only counts.
  size_t (*prepack)(const fastrnn_problem &, const fastrnn_forward_arrays *, char *prepacked);
  size_t (*backward_scratch)(const Job &);
  void (*backward)(const Job &, int thread);
};

// Pixel models run sequences in blocks of at most kPixelRows, so that the states stay in cache.
constexpr int64_t kPixelRows = 48;  // a multiple of the tile heights of both cells
struct PixelScratch {
  size_t weights, block;  // bytes of packed weights, and of each thread's block
};
struct PixelKernel {
  PixelScratch (*scratch)(const fastrnn_pixel_problem &);
  void (*pack)(const fastrnn_pixel_problem &, const fastrnn_pixel_arrays &, char *weights);
  void (*run)(const fastrnn_pixel_problem &, const fastrnn_pixel_arrays &, char *weights,
              char *block, int64_t first, int64_t count);
};

// How a level computes in one dtype.
struct Arithmetic {
  int lanes;           // sums per vector
  bool pairs = false;  // whether products take two numbers at a time
};

// The kernels of one instruction-set level.
struct Level {
  const char *name;
  int vector_bytes;
  Kernel kernels[2][3];   // by cell and dtype
  PixelKernel pixels[2];  // by cell
  bool multiplies_pairs;  // of bfloat16 numbers
  const Level *others;    // has the kernels that this level lacks; null if it lacks none

  const Kernel &kernel(int cell, int dtype) const {
    const Kernel &own = kernels[cell][dtype];
    return own.forward ? own : others->kernel(cell, dtype);
  }
  Arithmetic arithmetic(int dtype) const {
    return {vector_bytes / (dtype == FASTRNN_FLOAT64 ? 8 : 4),
            dtype == FASTRNN_BFLOAT16 && multiplies_pairs};
  }
  const PixelKernel &pixel_kernel(int cell) const {
    return pixels[cell].run ? pixels[cell] : others->pixel_kernel(cell);
  }
};

// Divides a block of scratch memory into arrays. With a null block, it only adds up their sizes.
class Arena {
 public:
  FASTRNN_INLINE explicit Arena(char *block) : block_(block) {}
  template <class T>
  FASTRNN_INLINE T *take(int64_t count) {
    const size_t at = used_;
    used_ += (size_t(count) * sizeof(T) + 63) / 64 * 64;
    return block_ ? reinterpret_cast<T *>(block_ + at) : nullptr;
  }
  FASTRNN_INLINE size_t used() const { return used_; }

 private:
  char *block_;
  size_t used_ = 0;
};

}  // namespace fastrnn

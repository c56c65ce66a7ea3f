// What one call does and how its threads share it.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "../fastrnn.h"
#include "../inline.h"

namespace fastrnn {

// The order in which rows are walked.
struct Walk {
  int64_t steps, batch;
  bool reverse;
  const int64_t *batch_sizes;  // null: padded
  const int64_t *offsets;      // [T + 1]; null: padded

  FASTRNN_INLINE int64_t rows(int64_t t) const { return batch_sizes ? batch_sizes[t] : batch; }
  FASTRNN_INLINE int64_t offset(int64_t t) const { return offsets ? offsets[t] : t * batch; }
  FASTRNN_INLINE int64_t time(int64_t step) const { return reverse ? steps - 1 - step : step; }
  // How many of step's sequences also ran in the step walked before it.
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

// Threads wait for each other in groups; a thread that waits long lets others run.
class Barrier {
 public:
  void wait(int members);

 private:
  alignas(64) int arrived_ = 0;
  alignas(64) int phase_ = 0;
};

// Threads form a grid: row groups share out the batch and never wait for each other in the time
// loop; the columns of a group share out hidden units and meet once a step.
struct Grid {
  int row_groups = 1, column_groups = 1;
  FASTRNN_INLINE int threads() const { return row_groups * column_groups; }
};

struct Job {
  const fastrnn_problem *problem;
  const fastrnn_forward_arrays *forward;    // one of the two
  const fastrnn_backward_arrays *backward;  // is null
  Walk walk;
  Grid grid;
  const int64_t *row_starts;  // [row_groups + 1]: the sequences of each row group
  Barrier *barriers;          // [1 + row_groups]: everybody's, then each row group's
  char *scratch;
};

// The kernels of one instruction-set level, by [cell][dtype].
struct Kernel {
  size_t (*forward_scratch)(const Job &);  // bytes
  void (*forward)(const Job &, int thread);
  size_t (*backward_scratch)(const Job &);
  void (*backward)(const Job &, int thread);
};

// Pixel models: sequences are run in blocks of at most kPixelRows, whose states stay in cache.
constexpr int64_t kPixelRows = 48;  // whole tiles of either cell
struct PixelScratch {
  size_t weights, block;  // bytes: packed weights, shared by all; a thread's own
};
struct PixelKernel {
  PixelScratch (*scratch)(const fastrnn_pixel_problem &);
  void (*pack)(const fastrnn_pixel_problem &, const fastrnn_pixel_arrays &, char *weights);
  void (*run)(const fastrnn_pixel_problem &, const fastrnn_pixel_arrays &, char *weights,
              char *block, int64_t first, int64_t count);
};

struct Level {
  const char *name;
  int vector_bytes;
  Kernel kernels[2][3];
  PixelKernel pixels[2];
};

// Hands out pieces of one block of scratch memory; with a null block it only adds up their sizes.
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

// Runs a job on a grid of threads.
#pragma once

#include <stdlib.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(_OPENMP)
#include <omp.h>
#endif

#include "job.h"

namespace fastrnn {

// Requests 2 MiB pages for a large array. The first write to each page causes a page fault, which
// is slow with 4 KiB pages.
inline void prefer_large_pages(void *data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t page = 2 << 20;
  const uintptr_t begin = (uintptr_t(data) + page - 1) / page * page;
  const uintptr_t end = (uintptr_t(data) + bytes) / page * page;
  if (data && end > begin) madvise(reinterpret_cast<void *>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

// A block of scratch memory, aligned to a cache line.
class Block {
 public:
  explicit Block(size_t bytes) {
    if (posix_memalign(&data_, 64, bytes ? bytes : 64)) data_ = nullptr;
    prefer_large_pages(data_, bytes);
  }
  ~Block() { free(data_); }
  Block(const Block &) = delete;
  Block &operator=(const Block &) = delete;
  template <class T>
  T *as() const {
    return static_cast<T *>(data_);
  }

 private:
  void *data_;
};

inline int64_t total_rows(const fastrnn_problem &p) {
  if (!p.batch_sizes) return p.steps * p.batch;
  int64_t total = 0;
  for (int64_t t = 0; t < p.steps; ++t) total += p.batch_sizes[t];
  return total;
}

// `offsets` is room for steps + 1 numbers; it is used only if there are batch sizes.
inline Walk walk_of(const fastrnn_problem &p, int64_t *offsets) {
  if (!p.batch_sizes) return {p.steps, p.batch, p.reverse != 0, nullptr, nullptr};
  offsets[0] = 0;
  for (int64_t t = 0; t < p.steps; ++t) offsets[t + 1] = offsets[t] + p.batch_sizes[t];
  return {p.steps, p.batch, p.reverse != 0, p.batch_sizes, offsets};
}

// Divides the sequences among row groups so that each gets about the same number of rows; the
// sequences of a packed batch differ in length.
inline void share_rows(const Walk &walk, int64_t total, int groups, int64_t *starts) {
  int64_t b = 0, rows = 0;
  for (int g = 0; g < groups; ++g) {
    starts[g] = b;
    while (b < walk.batch && rows < total * (g + 1) / groups) rows += walk.length(b++);
  }
  starts[groups] = walk.batch;
}

// Runs job.problem with job.walk on job.grid. Sets *team to the number of threads that OpenMP
// provided; if it is not that of the grid, nothing has been computed.
inline int run_on_grid(Job job, const Level &level, int *team) {
  const fastrnn_problem &p = *job.problem;
  const Kernel &kernel = level.kernel(p.cell, p.dtype);
  const int threads = job.grid.threads();
  Block starts(size_t(job.grid.row_groups + 1) * sizeof(int64_t));
  Block barriers(size_t(job.grid.row_groups + 1) * sizeof(Barrier));
  if (!starts.as<int64_t>() || !barriers.as<Barrier>()) return FASTRNN_ERROR_MEMORY;
  share_rows(job.walk, total_rows(p), job.grid.row_groups, starts.as<int64_t>());
  job.row_starts = starts.as<int64_t>();
  job.barriers = barriers.as<Barrier>();
  for (int i = 0; i <= job.grid.row_groups; ++i) job.barriers[i] = Barrier();
  Block scratch(job.forward ? kernel.forward_scratch(job) : kernel.backward_scratch(job));
  if (!scratch.as<char>()) return FASTRNN_ERROR_MEMORY;
  job.scratch = scratch.as<char>();
  const auto work = job.forward ? kernel.forward : kernel.backward;
  *team = 1;
  if (threads == 1) {
    work(job, 0);
    return FASTRNN_OK;
  }
#if defined(_OPENMP)
#pragma omp parallel num_threads(threads)
  {
    if (omp_get_thread_num() == 0) *team = omp_get_num_threads();
    if (omp_get_num_threads() == threads) work(job, omp_get_thread_num());
  }
#endif
  return FASTRNN_OK;
}

}  // namespace fastrnn

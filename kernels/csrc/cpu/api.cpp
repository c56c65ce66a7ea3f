// The C interface: checks a call, shares it out over threads and runs the best level's kernel.
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(_OPENMP)
#include <omp.h>
#endif

#include "job.h"

namespace fastrnn {

namespace baseline {
extern const Level level;
}
namespace avx2 {
extern const Level level;
}
namespace avx512 {
extern const Level level;
}

namespace {

struct Choice {
  const Level *level;
  bool (*supported)();
};

// Best first.
const Choice kLevels[] = {
#if defined(FASTRNN_HAVE_AVX512)
    {&avx512::level,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
     }},
#endif
#if defined(FASTRNN_HAVE_AVX2)
    {&avx2::level,
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
     }},
#endif
    {&baseline::level, [] { return true; }},
};

const Level *best_level() {
  for (const Choice &choice : kLevels)
    if (choice.supported()) return choice.level;
  return &baseline::level;
}

const Level *chosen = nullptr;
const Level &current_level() {
  const Level *level = __atomic_load_n(&chosen, __ATOMIC_RELAXED);
  if (!level) {
    level = best_level();
    __atomic_store_n(&chosen, level, __ATOMIC_RELAXED);
  }
  return *level;
}

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// A block of scratch memory, aligned to a cache line.
class Block {
 public:
  explicit Block(size_t bytes) {
    if (posix_memalign(&data_, 64, bytes ? bytes : 64)) data_ = nullptr;
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

// Large arrays that a call is the first to touch cost one page fault for 4 KiB; ask for 2 MiB pages.
void prefer_large_pages(void *data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t page = 2 << 20;
  const uintptr_t first = (uintptr_t(data) + page - 1) / page * page;
  const uintptr_t last = (uintptr_t(data) + bytes) / page * page;
  if (data && last > first) madvise(reinterpret_cast<void *>(first), last - first, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

size_t element_bytes(int dtype) {
  return dtype == FASTRNN_FLOAT64 ? 8 : dtype == FASTRNN_FLOAT32 ? 4 : 2;
}

int64_t total_rows(const fastrnn_problem &p) {
  if (!p.batch_sizes) return p.steps * p.batch;
  int64_t total = 0;
  for (int64_t t = 0; t < p.steps; ++t) total += p.batch_sizes[t];
  return total;
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The grid with the shortest step by a small model, in cycles: a panel's products, one vector of them
// a cycle, or the weights' way into the core where that is longer; and a meeting of column groups.
Grid choose_grid(const fastrnn_problem &p, int lanes, int threads) {
  const int64_t gates = p.cell == FASTRNN_LSTM ? 4 : 3, panels = ceil_div(p.hidden_size, lanes);
  const int64_t depth = p.hidden_size + (p.input_size < 32 ? p.input_size : 0);
  const double kMeeting = 600, kSecondCache = 768 << 10;
  const double kNearBytes = 32, kFarBytes = 8;  // a cycle, from the core's own caches and beyond
  const int lane_bytes = 64 / lanes * lanes / 16;
  Grid best;
  double shortest = 0;
  for (int rows = 1; rows <= threads && rows <= p.batch; ++rows) {
    for (int columns = 1; rows * columns <= threads && columns <= panels; ++columns) {
      const double vectors = double(ceil_div(panels, columns)) * gates * depth;
      const double bytes = vectors * lanes * lane_bytes;
      const double products = vectors * double(ceil_div(p.batch, rows));
      const double stream = bytes / (bytes < kSecondCache ? kNearBytes : kFarBytes);
      const double step = (products > stream ? products : stream) + (columns > 1 ? kMeeting : 0);
      if (shortest == 0 || step < shortest * 0.98) {
        shortest = step;
        best = {rows, columns};
      }
    }
  }
  const double kFork = 4000;  // to wake the other threads is worth a few thousand cycles
  if (shortest * double(p.steps) < kFork) return {};
  return best;
}

int check(const fastrnn_problem *p) {
  if (!p || p->cell < FASTRNN_LSTM || p->cell > FASTRNN_GRU || p->dtype < FASTRNN_FLOAT32 ||
      p->dtype > FASTRNN_BFLOAT16 || p->threads < 1 || p->steps < 0 || p->batch < 0 ||
      p->input_size < 1 || p->hidden_size < 1)
    return FASTRNN_ERROR_ARGUMENT;
  if (!p->batch_sizes) return FASTRNN_OK;
  for (int64_t t = 0, last = p->batch; t < p->steps; last = p->batch_sizes[t++])
    if (p->batch_sizes[t] < 1 || p->batch_sizes[t] > last || (t == 0 && p->batch_sizes[0] != last))
      return FASTRNN_ERROR_ARGUMENT;
  return FASTRNN_OK;
}

int check(const fastrnn_pixel_problem &p) {
  if (p.cell < FASTRNN_LSTM || p.cell > FASTRNN_GRU || p.layers < 1 || p.threads < 1 || p.steps < 0 ||
      p.batch < 0 || p.hidden_size < 1)
    return FASTRNN_ERROR_ARGUMENT;
  if (!p.lengths) return FASTRNN_OK;
  for (int64_t b = 0, last = p.steps; b < p.batch; last = p.lengths[b++])
    if (p.lengths[b] < 0 || p.lengths[b] > last) return FASTRNN_ERROR_ARGUMENT;
  return FASTRNN_OK;
}

// The sequences of each row group: as many rows each as can be, since packed sequences differ.
void share_rows(const Walk &walk, int64_t total, int groups, int64_t *starts) {
  int64_t b = 0, rows = 0;
  for (int g = 0; g < groups; ++g) {
    starts[g] = b;
    while (b < walk.batch && rows < total * (g + 1) / groups) rows += walk.length(b++);
  }
  starts[groups] = walk.batch;
}

// Runs the job on up to p.threads threads; fewer if OpenMP gives fewer.
int run(const fastrnn_problem &p, Job job, const Level &level) {
  Block offsets(p.batch_sizes ? size_t(p.steps + 1) * sizeof(int64_t) : 0);
  if (!offsets.as<int64_t>()) return FASTRNN_ERROR_MEMORY;
  job.walk = {p.steps, p.batch, p.reverse != 0, p.batch_sizes, nullptr};
  if (p.batch_sizes) {
    int64_t *offset = offsets.as<int64_t>();
    offset[0] = 0;
    for (int64_t t = 0; t < p.steps; ++t) offset[t + 1] = offset[t] + p.batch_sizes[t];
    job.walk.offsets = offset;
  }
  const Kernel &kernel = level.kernels[p.cell][p.dtype];
  const int lanes = level.vector_bytes / (p.dtype == FASTRNN_FLOAT64 ? 8 : 4);
  for (int threads = p.threads;;) {
    job.grid = choose_grid(p, lanes, threads);
    const int wanted = job.grid.threads();
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
    int team = 1;
    if (wanted == 1) {
      work(job, 0);
      return FASTRNN_OK;
    }
#if defined(_OPENMP)
#pragma omp parallel num_threads(wanted)
    {
      if (omp_get_thread_num() == 0) team = omp_get_num_threads();
      if (omp_get_num_threads() == wanted) work(job, omp_get_thread_num());
    }
#endif
    if (team == wanted) return FASTRNN_OK;
    threads = team;
  }
}

}  // namespace

void Barrier::wait(int members) {
  if (members == 1) return;
  const int phase = __atomic_load_n(&phase_, __ATOMIC_RELAXED);
  if (__atomic_add_fetch(&arrived_, 1, __ATOMIC_ACQ_REL) == members) {
    __atomic_store_n(&arrived_, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&phase_, phase + 1, __ATOMIC_RELEASE);
    return;
  }
  for (int spins = 0; __atomic_load_n(&phase_, __ATOMIC_ACQUIRE) == phase; ++spins)
    spins < 8192 ? pause() : (void)sched_yield();
}

}  // namespace fastrnn

using namespace fastrnn;

int fastrnn_abi_version(void) { return FASTRNN_ABI_VERSION; }

int fastrnn_cpu_forward(const fastrnn_problem *problem, const fastrnn_forward_arrays *arrays) {
  if (const int error = check(problem)) return error;
  if (!arrays) return FASTRNN_ERROR_ARGUMENT;
  if (problem->steps == 0 || problem->batch == 0) return FASTRNN_OK;
  const bool lstm = problem->cell == FASTRNN_LSTM;
  const fastrnn_forward_arrays &a = *arrays;
  if (!a.x || !a.h0 || !a.w_ih || !a.w_hh || !a.y || !a.h_n || !a.b_ih != !a.b_hh ||
      (lstm && (!a.c0 || !a.c_n || !a.gates != !a.cells)))
    return FASTRNN_ERROR_ARGUMENT;
  const size_t hidden = element_bytes(problem->dtype) * size_t(problem->hidden_size * total_rows(*problem));
  prefer_large_pages(a.y, hidden);
  prefer_large_pages(a.gates, 4 * hidden);
  prefer_large_pages(a.cells, hidden);
  Job job{};
  job.problem = problem;
  job.forward = arrays;
  return run(*problem, job, current_level());
}

int fastrnn_cpu_backward(const fastrnn_problem *problem, const fastrnn_backward_arrays *arrays) {
  if (const int error = check(problem)) return error;
  if (!arrays) return FASTRNN_ERROR_ARGUMENT;
  if (problem->steps == 0 || problem->batch == 0) return FASTRNN_OK;
  const bool lstm = problem->cell == FASTRNN_LSTM;
  const fastrnn_backward_arrays &a = *arrays;
  if (!a.dh_n || !a.x || !a.h0 || !a.w_ih || !a.w_hh || !a.y || !a.gates || !a.dh0 ||
      !a.dw_ih || !a.dw_hh || !a.db_ih || (lstm && (!a.dc_n || !a.c0 || !a.cells || !a.dc0)) ||
      (!lstm && !a.db_hh))
    return FASTRNN_ERROR_ARGUMENT;
  Job job{};
  job.problem = problem;
  job.backward = arrays;
  return run(*problem, job, current_level());
}

int fastrnn_cpu_pixels(const fastrnn_pixel_problem *problem, const fastrnn_pixel_arrays *arrays) {
  if (!problem || !arrays) return FASTRNN_ERROR_ARGUMENT;
  const fastrnn_pixel_problem &p = *problem;
  const fastrnn_pixel_arrays &a = *arrays;
  if (const int error = check(p)) return error;
  if (p.steps == 0 || p.batch == 0) return FASTRNN_OK;
  if (!a.weights || !a.head_weight || !a.head_bias || !a.h || (p.cell == FASTRNN_LSTM && !a.c) ||
      !a.logit || !a.pixels || !a.logits)
    return FASTRNN_ERROR_ARGUMENT;
  const PixelKernel &kernel = current_level().pixels[p.cell];
  const PixelScratch sizes = kernel.scratch(p);
  const int threads = int(p.threads < p.batch ? p.threads : p.batch);
  Block weights(sizes.weights), blocks(sizes.block * size_t(threads));
  if (!weights.as<char>() || !blocks.as<char>()) return FASTRNN_ERROR_MEMORY;
  kernel.pack(p, a, weights.as<char>());
  // As many blocks for each thread, so that all end together.
  const int64_t count = ceil_div(ceil_div(p.batch, kPixelRows), threads) * threads;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t i = 0; i < count; ++i) {
    const int64_t first = p.batch * i / count, end = p.batch * (i + 1) / count;
    int thread = 0;
#if defined(_OPENMP)
    thread = omp_get_thread_num();
#endif
    kernel.run(p, a, weights.as<char>(), blocks.as<char>() + sizes.block * size_t(thread), first,
               end - first);
  }
  return FASTRNN_OK;
}

const char *fastrnn_cpu_level(void) { return current_level().name; }

const char *fastrnn_cpu_levels(void) {
  static char names[64];
  char list[64] = "";
  for (const Choice &choice : kLevels) {
    if (!choice.supported()) continue;
    if (list[0]) strcat(list, " ");
    strcat(list, choice.level->name);
  }
  memcpy(names, list, sizeof list);
  return names;
}

int fastrnn_cpu_select_level(const char *name) {
  if (!name) return FASTRNN_ERROR_ARGUMENT;
  for (const Choice &choice : kLevels) {
    if (strcmp(choice.level->name, name) == 0 && choice.supported()) {
      __atomic_store_n(&chosen, choice.level, __ATOMIC_RELAXED);
      return FASTRNN_OK;
    }
  }
  return FASTRNN_ERROR_LEVEL;
}

const char *fastrnn_error_string(int error) {
  switch (error) {
    case FASTRNN_OK:
      return "no error";
    case FASTRNN_ERROR_ARGUMENT:
      return "an argument is out of range";
    case FASTRNN_ERROR_MEMORY:
      return "out of memory for scratch space";
    case FASTRNN_ERROR_LEVEL:
      return "the processor or the build lacks this instruction set";
    default:
      return "unknown error";
  }
}

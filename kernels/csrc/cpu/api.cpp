// The C interface of libfastrnn_cpu: checks a call, divides it among threads and runs the kernels
// of the best instruction-set level.
#include <sched.h>

#include "grid.h"
#include "levels.h"
#include "prepacked.h"
#include "run.h"

namespace fastrnn {
namespace {

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

size_t element_bytes(int dtype) {
  return dtype == FASTRNN_FLOAT64 ? 8 : dtype == FASTRNN_FLOAT32 ? 4 : 2;
}

int check(const fastrnn_problem *p) {
  if (!p || p->cell < FASTRNN_LSTM || p->cell > FASTRNN_GRU || p->dtype < FASTRNN_FLOAT32 ||
      p->dtype > FASTRNN_BFLOAT16 || p->threads < 1 || p->steps < 0 || p->batch < 0 ||
      p->input_size < 1 || p->hidden_size < 1)
    return FASTRNN_ERROR_ARGUMENT;
  if (!p->batch_sizes) return FASTRNN_OK;
  for (int64_t t = 0, previous = p->batch; t < p->steps; previous = p->batch_sizes[t++])
    if (p->batch_sizes[t] < 1 || p->batch_sizes[t] > previous ||
        (t == 0 && p->batch_sizes[0] != p->batch))
      return FASTRNN_ERROR_ARGUMENT;
  return FASTRNN_OK;
}

int check_weights(const fastrnn_forward_arrays &a) {
  return a.w_ih && a.w_hh && !a.b_ih == !a.b_hh ? FASTRNN_OK : FASTRNN_ERROR_ARGUMENT;
}

// All but the weights.
int check(const fastrnn_problem &p, const fastrnn_forward_arrays &a) {
  const bool lstm = p.cell == FASTRNN_LSTM;
  const bool valid =
      a.x && a.h0 && a.y && a.h_n && (!lstm || (a.c0 && a.c_n && !a.gates == !a.cells));
  return valid ? FASTRNN_OK : FASTRNN_ERROR_ARGUMENT;
}

int check(const fastrnn_problem &p, const fastrnn_backward_arrays &a) {
  const bool lstm = p.cell == FASTRNN_LSTM;
  const bool valid = a.dh_n && a.x && a.h0 && a.w_ih && a.w_hh && a.y && a.gates && a.dw_ih &&
                     a.dw_hh && a.db_ih && (lstm ? a.dc_n && a.c0 && a.cells : a.db_hh != nullptr);
  return valid ? FASTRNN_OK : FASTRNN_ERROR_ARGUMENT;
}

int check(const fastrnn_pixel_problem *p) {
  if (!p || p->cell < FASTRNN_LSTM || p->cell > FASTRNN_GRU || p->layers < 1 || p->threads < 1 ||
      p->steps < 0 || p->batch < 0 || p->hidden_size < 1)
    return FASTRNN_ERROR_ARGUMENT;
  if (!p->lengths) return FASTRNN_OK;
  for (int64_t b = 0, previous = p->steps; b < p->batch; previous = p->lengths[b++])
    if (p->lengths[b] < 0 || p->lengths[b] > previous) return FASTRNN_ERROR_ARGUMENT;
  return FASTRNN_OK;
}

int check(const fastrnn_pixel_problem &p, const fastrnn_pixel_arrays &a) {
  const bool valid = a.weights && a.head_weight && a.head_bias && a.h &&
                     (p.cell == FASTRNN_GRU || a.c) && a.logit && a.pixels && a.logits;
  return valid ? FASTRNN_OK : FASTRNN_ERROR_ARGUMENT;
}

// Runs the job on at most p.threads threads; on fewer if OpenMP provides fewer.
int run(const fastrnn_problem &p, Job job, const Level &level = current_level()) {
  Block offsets(p.batch_sizes ? size_t(p.steps + 1) * sizeof(int64_t) : 0);
  if (!offsets.as<int64_t>()) return FASTRNN_ERROR_MEMORY;
  job.problem = &p;
  job.walk = walk_of(p, offsets.as<int64_t>());
  const Arithmetic arithmetic = level.arithmetic(p.dtype);
  // Products in place take whole vectors.
  const int64_t vector = level.vector_bytes / int64_t(element_bytes(p.dtype));
  job.in_place = reads_in_place(p, arithmetic) && (!job.w_hr || job.proj_size >= vector);
  for (int threads = p.threads, team;; threads = team) {
    job.grid = choose_grid(p, arithmetic, threads, job.prepacked != nullptr);
    if (const int error = run_on_grid(job, level, &team)) return error;
    if (team == job.grid.threads()) return FASTRNN_OK;
  }
}

int run_forward(const fastrnn_problem &p, const fastrnn_forward_arrays &a, Job job,
                const Level &level) {
  const size_t column = element_bytes(p.dtype) * size_t(total_rows(p));
  const size_t hidden = column * size_t(p.hidden_size);
  prefer_large_pages(a.y, job.w_hr ? column * size_t(job.proj_size) : hidden);
  prefer_large_pages(a.gates, 4 * hidden);
  prefer_large_pages(a.cells, hidden);
  job.forward = &a;
  return run(p, job, level);
}

int run_pixels(const fastrnn_pixel_problem &p, const fastrnn_pixel_arrays &a) {
  const PixelKernel &kernel = current_level().pixel_kernel(p.cell);
  const PixelScratch sizes = kernel.scratch(p);
  const int threads = int(p.threads < p.batch ? p.threads : p.batch);
  Block weights(sizes.weights), blocks(sizes.block * size_t(threads));
  if (!weights.as<char>() || !blocks.as<char>()) return FASTRNN_ERROR_MEMORY;
  kernel.pack(p, a, weights.as<char>());
  // Every thread gets the same number of blocks, so that all finish together.
  const int64_t count = ceil_div(ceil_div(p.batch, kPixelRows), threads) * threads;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = p.batch * i / count, end = p.batch * (i + 1) / count;
    int thread = 0;
#if defined(_OPENMP)
    thread = omp_get_thread_num();
#endif
    kernel.run(p, a, weights.as<char>(), blocks.as<char>() + sizes.block * size_t(thread), begin,
               end - begin);
  }
  return FASTRNN_OK;
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
  return run_call(check(problem), problem, arrays, [](const auto &p, const auto &a) {
    if (const int error = check(p, a)) return error;
    if (const int error = check_weights(a)) return error;
    return run_forward(p, a, Job{}, current_level());
  });
}

int fastrnn_cpu_forward_projected(const fastrnn_problem *problem,
                                  const fastrnn_forward_arrays *arrays, const void *w_hr,
                                  int64_t proj_size) {
  return run_call(check(problem), problem, arrays, [=](const auto &p, const auto &a) {
    if (const int error = check(p, a)) return error;
    if (const int error = check_weights(a)) return error;
    if (p.cell != FASTRNN_LSTM || !w_hr || proj_size < 1) return int(FASTRNN_ERROR_ARGUMENT);
    Job job{};
    job.w_hr = w_hr, job.proj_size = proj_size;
    return run_forward(p, a, job, current_level());
  });
}

int fastrnn_cpu_backward_projected(const fastrnn_problem *problem,
                                   const fastrnn_backward_arrays *arrays, const void *w_hr,
                                   void *dw_hr, int64_t proj_size) {
  return run_call(check(problem), problem, arrays, [=](const auto &p, const auto &a) {
    if (const int error = check(p, a)) return error;
    if (p.cell != FASTRNN_LSTM || !w_hr || !dw_hr || proj_size < 1)
      return int(FASTRNN_ERROR_ARGUMENT);
    Job job{};
    job.backward = &a;
    job.w_hr = w_hr, job.dw_hr = dw_hr, job.proj_size = proj_size;
    return run(p, job);
  });
}

int64_t fastrnn_cpu_prepacked_bytes(const fastrnn_problem *problem) {
  return check(problem) ? -1 : int64_t(prepacked_bytes(*problem));
}

int fastrnn_cpu_prepack(const fastrnn_problem *problem, const fastrnn_forward_arrays *arrays,
                        void *prepacked) {
  if (const int error = check(problem)) return error;
  if (!arrays || !prepacked || uintptr_t(prepacked) % 64) return FASTRNN_ERROR_ARGUMENT;
  if (const int error = check_weights(*arrays)) return error;
  prefer_large_pages(prepacked, prepacked_bytes(*problem));
  prepack(*problem, *arrays, static_cast<char *>(prepacked));
  return FASTRNN_OK;
}

int fastrnn_cpu_forward_prepacked(const fastrnn_problem *problem,
                                  const fastrnn_forward_arrays *arrays, const void *prepacked) {
  return run_call(check(problem), problem, arrays, [=](const auto &p, const auto &a) {
    if (const int error = check(p, a)) return error;
    if (!prepacked || uintptr_t(prepacked) % 64) return int(FASTRNN_ERROR_ARGUMENT);
    const auto *header = static_cast<const PrepackedHeader *>(prepacked);
    const Level *level = header->level_for(p);
    if (!level) return int(FASTRNN_ERROR_ARGUMENT);
    Job job{};
    job.prepacked = reinterpret_cast<char *>(const_cast<PrepackedHeader *>(header + 1));
    return run_forward(p, a, job, *level);
  });
}

int fastrnn_cpu_backward(const fastrnn_problem *problem, const fastrnn_backward_arrays *arrays) {
  return run_call(check(problem), problem, arrays, [](const auto &p, const auto &a) {
    if (const int error = check(p, a)) return error;
    Job job{};
    job.backward = &a;
    return run(p, job);
  });
}

int fastrnn_cpu_pixels(const fastrnn_pixel_problem *problem, const fastrnn_pixel_arrays *arrays) {
  return run_call(check(problem), problem, arrays, [](const auto &p, const auto &a) {
    const int error = check(p, a);
    return error ? error : run_pixels(p, a);
  });
}

const char *fastrnn_cpu_level(void) { return current_level().name; }

const char *fastrnn_cpu_levels(void) {
  static char names[64];
  char list[64] = "";
  for (const LevelEntry &entry : kLevels) {
    if (!entry.supported()) continue;
    if (list[0]) strcat(list, " ");
    strcat(list, entry.level->name);
  }
  memcpy(names, list, sizeof list);
  return names;
}

int fastrnn_cpu_select_level(const char *name) {
  if (!name) return FASTRNN_ERROR_ARGUMENT;
  const Level *level = find_level(name);
  if (!level) return FASTRNN_ERROR_LEVEL;
  select_level(level);
  return FASTRNN_OK;
}

const char *fastrnn_error_string(int error) { return error_text(error); }

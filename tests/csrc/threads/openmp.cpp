#include "openmp.h"

#include <atomic>
#include <thread>
#include <vector>

namespace {

// The threads of one parallel region, and the loop that they divide.
struct Team {
  int size;
  std::atomic<long> next{0};
};

thread_local Team *team = nullptr;
thread_local int member = 0;
// Of the loop in progress; the same in all threads.
thread_local long loop_end = 0, loop_chunk = 1;
std::atomic<int> most_threads{1 << 16};

void run_member(Team *of, int number, void (*work)(void *), void *data) {
  Team *const outer = team;
  const int outer_member = member;
  team = of, member = number;
  work(data);
  team = outer, member = outer_member;
}

}  // namespace

void limit_team(int threads) { most_threads = threads; }

extern "C" {

int omp_get_thread_num(void) { return member; }
int omp_get_num_threads(void) { return team ? team->size : 1; }

// #pragma omp parallel num_threads(threads)
void GOMP_parallel(void (*work)(void *), void *data, unsigned threads, unsigned /*flags*/) {
  const int most = most_threads;
  Team made;
  made.size = int(threads) < most ? int(threads) : most;
  std::vector<std::thread> others;
  for (int i = 1; i < made.size; ++i) others.emplace_back(run_member, &made, i, work, data);
  run_member(&made, 0, work, data);
  for (std::thread &other : others) other.join();
}

// #pragma omp for schedule(dynamic, chunk), over [begin, end) with step 1. One loop per region.
bool GOMP_loop_nonmonotonic_dynamic_next(long *from, long *to) {
  const long begin = team->next.fetch_add(loop_chunk);
  *from = begin, *to = begin + loop_chunk < loop_end ? begin + loop_chunk : loop_end;
  return begin < loop_end;
}

bool GOMP_loop_nonmonotonic_dynamic_start(long begin, long end, long /*step*/, long chunk,
                                          long *from, long *to) {
  loop_end = end, loop_chunk = chunk;
  if (begin != 0) __builtin_trap();
  return GOMP_loop_nonmonotonic_dynamic_next(from, to);
}

void GOMP_loop_end_nowait(void) {}

}  // extern "C"

// A small OpenMP runtime, made of std::thread, that stands in for GCC's.
//
// The thread sanitizer knows how std::thread and atomics order memory accesses, but not how libgomp
// does, which is not compiled for it: it would report every parallel region. The kernels are
// compiled as always; only the functions that GCC calls for `#pragma omp` come from here.
#pragma once

// The most threads that a parallel region gets, as if the system had no more.
void limit_team(int threads);

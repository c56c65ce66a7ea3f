// Functions that several instruction-set levels share must always be inlined: the linker keeps only
// one copy of an out-of-line function, and that copy could use instructions the processor lacks.
#pragma once

#if defined(__CUDACC__)
#define FASTRNN_INLINE __device__ __forceinline__
#else
#define FASTRNN_INLINE inline __attribute__((always_inline))
#endif

// Code shared by several instruction-set levels must never stand out of line: the linker would keep
// one level's copy for all.
#pragma once

#if defined(__CUDACC__)
#define FASTRNN_INLINE __device__ __forceinline__
#else
#define FASTRNN_INLINE inline __attribute__((always_inline))
#endif

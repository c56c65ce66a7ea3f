// Code shared by several instruction-set levels must never stand out of line: the linker would keep
// one level's copy for all.
#pragma once
#define FASTRNN_INLINE inline __attribute__((always_inline))

// The vector functions of one instruction-set level, applied to arrays, so that one driver checks
// all levels. The size of an array must be a multiple of 16.
#pragma once

#include <stdint.h>

template <class C>
using ArrayFunction = void (*)(const C *in, C *out, int64_t size);

template <class C>
struct ArrayFunctions {
  ArrayFunction<C> exp, expm1, sigmoid, tanh;
};

struct VectorFunctions {
  ArrayFunctions<float> floats;
  ArrayFunctions<double> doubles;
};

namespace fastrnn {
namespace baseline {
extern const VectorFunctions vector_functions;
}
namespace avx2 {
extern const VectorFunctions vector_functions;
}
namespace avx512 {
extern const VectorFunctions vector_functions;
}
namespace avx512_bf16 {
extern const VectorFunctions vector_functions;
}
}  // namespace fastrnn

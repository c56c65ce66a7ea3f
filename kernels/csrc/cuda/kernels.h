// The kernels of one cell and direction (Way: Forward or Backward), for each arithmetic and for
// both ways to exchange states: within a cluster, or through global memory (kGrid).
#pragma once

#include "backward.h"
#include "forward.h"
#include "gpu.h"

namespace fastrnn::cuda {

template <template <class, class, bool, class> class Way, class Cell, class Math, bool kGrid>
__global__ void __launch_bounds__(kMaxWarps *kWarp, 1)
    layer_kernel(const __grid_constant__ Layer layer) {
  Gpu gpu;
  Way<Cell, Math, kGrid, Gpu>(layer, gpu).run();
}

struct Kernels {
  const void *exact[2], *tf32[2], *bfloat16[2], *float16[2];  // [kGrid]
};

template <template <class, class, bool, class> class Way, class Cell, class Math, bool kGrid>
const void *kernel() {
  return reinterpret_cast<const void *>(&layer_kernel<Way, Cell, Math, kGrid>);
}

template <template <class, class, bool, class> class Way, class Cell>
Kernels kernels() {
  return {
      {kernel<Way, Cell, Math<float, false>, false>(),
       kernel<Way, Cell, Math<float, false>, true>()},
      {kernel<Way, Cell, Math<float, true>, false>(), kernel<Way, Cell, Math<float, true>, true>()},
      {kernel<Way, Cell, Math<bfloat16, true>, false>(),
       kernel<Way, Cell, Math<bfloat16, true>, true>()},
      {kernel<Way, Cell, Math<float16, true>, false>(),
       kernel<Way, Cell, Math<float16, true>, true>()}};
}

}  // namespace fastrnn::cuda

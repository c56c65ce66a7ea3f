// All kernels of one instruction-set level. Compiled once per level, which FASTRNN_LEVEL names. A
// level that only adds products of bfloat16 numbers takes its other kernels from FASTRNN_OTHERS.
#include "backward.h"
#include "forward.h"
#include "pixels.h"

#if defined(FASTRNN_OTHERS)
namespace fastrnn::FASTRNN_OTHERS {
extern const Level level;
}
#endif

namespace fastrnn::FASTRNN_LEVEL {

template <class Cell, class S>
constexpr Kernel kernel() {
  return {Forward<Cell, S>::scratch, Forward<Cell, S>::run, PackedWeights<Cell, S>::prepack,
          Backward<Cell, S>::scratch, Backward<Cell, S>::run};
}

template <class Cell>
constexpr PixelKernel pixel_kernel() {
  return {Pixels<Cell>::scratch, Pixels<Cell>::pack, Pixels<Cell>::run};
}

#define FASTRNN_STRING_(name) #name
#define FASTRNN_STRING(name) FASTRNN_STRING_(name)

extern const Level level;
#if defined(FASTRNN_OTHERS)
const Level level = {FASTRNN_STRING(FASTRNN_LEVEL),
                     kVectorBytes,
                     {{{}, {}, kernel<Lstm, bfloat16>()}, {{}, {}, kernel<Gru, bfloat16>()}},
                     {},
                     kPairs,
                     &FASTRNN_OTHERS::level};
#else
const Level level = {FASTRNN_STRING(FASTRNN_LEVEL),
                     kVectorBytes,
                     {{kernel<Lstm, float>(), kernel<Lstm, double>(), kernel<Lstm, bfloat16>()},
                      {kernel<Gru, float>(), kernel<Gru, double>(), kernel<Gru, bfloat16>()}},
                     {pixel_kernel<Lstm>(), pixel_kernel<Gru>()},
                     kPairs,
                     nullptr};
#endif

}  // namespace fastrnn::FASTRNN_LEVEL

#include "kernels.h"

namespace fastrnn::cuda {
extern const Kernels lstm_backward;
const Kernels lstm_backward = kernels<Backward, Lstm>();
}  // namespace fastrnn::cuda

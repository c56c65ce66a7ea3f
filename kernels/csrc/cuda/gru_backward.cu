#include "kernels.h"

namespace fastrnn::cuda {
extern const Kernels gru_backward;
const Kernels gru_backward = kernels<Backward, Gru>();
}  // namespace fastrnn::cuda

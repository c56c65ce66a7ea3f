#include "kernels.h"

namespace fastrnn::cuda {
extern const Kernels gru_forward;
const Kernels gru_forward = kernels<Forward, Gru>();
}  // namespace fastrnn::cuda

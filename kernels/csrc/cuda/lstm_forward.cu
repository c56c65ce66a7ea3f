#include "kernels.h"

namespace fastrnn::cuda {
extern const Kernels lstm_forward;
const Kernels lstm_forward = kernels<Forward, Lstm>();
}  // namespace fastrnn::cuda

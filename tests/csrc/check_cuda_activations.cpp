// sigmoid and tanh of the CUDA kernels against the C library in double. The limits are those that
// kernels/csrc/cuda/numbers.h states. They must hold for every error that PTX permits the
// instructions.
#define FASTRNN_LEVEL cuda
#include "../csrc_cuda/emulator.h"

#include "accuracy.h"

namespace {

using fastrnn::cuda::Approximation;
using fastrnn::cuda::Number;

struct Function {
  const char *name;
  float (*function)(float);
  double (*exact)(double);
  Accuracy accuracy;
};

template <bool kFast>
float sigmoid_of(float v) {
  return sigmoid(Number<kFast>(v)).v;
}
float tanh_of(float v) { return tanh(Number<false>(v)).v; }

const Function kFunctions[] = {
    {"sigmoid", sigmoid_of<false>, exact_sigmoid, {-1, kInfinity, 6}},
    {"sigmoid", sigmoid_of<false>, exact_sigmoid, {-20, kInfinity, 22}},
    {"sigmoid", sigmoid_of<false>, exact_sigmoid, {-80, -20, 68}},
    {"sigmoid", sigmoid_of<false>, exact_sigmoid, {-kInfinity, -80, 2e-38, Accuracy::kAbsolute}},
    {"tanh", tanh_of, exact_tanh, {-0.4, 0.4, 1}},
    {"tanh", tanh_of, exact_tanh, {-kInfinity, kInfinity, 12}},
    {"fast sigmoid",
     sigmoid_of<true>,
     exact_sigmoid,
     {-kInfinity, kInfinity, 2.45e-4, Accuracy::kAbsolute}},
};

}  // namespace

void check_cuda_activations() {
  const std::vector<float> in = sample_inputs<float>();
  for (const Function &f : kFunctions) {
    const std::vector<double> exact = evaluate(in, f.exact);
    for (const int exp2_ulp : {-2, 2})
      for (const int reciprocal_ulp : {-1, 1}) {
        fastrnn::cuda::approximation = {exp2_ulp, reciprocal_ulp, exp2_ulp * 0x1p-12};
        std::vector<float> out;
        for (const float v : in) out.push_back(f.function(v));
        check_accuracy(in, out, exact, f.accuracy, std::string("CUDA ") + f.name);
      }
  }
  fastrnn::cuda::approximation = Approximation();
}

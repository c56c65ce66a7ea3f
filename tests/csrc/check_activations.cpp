// The vector functions of every instruction-set level against the C library in a wider type. The
// limits are those that kernels/csrc/cpu/activations.h states.
#include "accuracy.h"
#include "vector_functions.h"

namespace {

// Limits for one function: without FMA, with AVX2 and FMA, and with AVX-512.
template <class C>
struct Function {
  const char *name;
  ArrayFunction<C> ArrayFunctions<C>::*function;
  Wide<C> (*exact)(Wide<C>);
  double low, high;
  double limits[3];
  Accuracy::Unit unit = Accuracy::kUlp;
};

using Floats = ArrayFunctions<float>;
using Doubles = ArrayFunctions<double>;

const Function<float> kFloatFunctions[] = {
    {"exp", &Floats::exp, std::exp, -1, 1, {1, 1, 1}},
    {"exp", &Floats::exp, std::exp, -20, 20, {18, 2, 2}},
    {"exp", &Floats::exp, std::exp, -87, 80, {70, 5, 5}},
    {"exp - 1", &Floats::expm1, std::expm1, -1, 1, {2, 2, 2}},
    {"exp - 1", &Floats::expm1, std::expm1, -20, 20, {18, 2, 2}},
    {"exp - 1", &Floats::expm1, std::expm1, -87, 80, {70, 5, 5}},
    {"sigmoid", &Floats::sigmoid, exact_sigmoid, -1, kInfinity, {2, 2, 2.5}},
    {"sigmoid", &Floats::sigmoid, exact_sigmoid, -20, kInfinity, {20, 4, 18}},
    {"sigmoid", &Floats::sigmoid, exact_sigmoid, -80, -20, {70, 6, 64}},
    {"sigmoid",
     &Floats::sigmoid,
     exact_sigmoid,
     -kInfinity,
     -80,
     {2e-35, 2e-35, 1e-38},
     Accuracy::kAbsolute},
    {"tanh", &Floats::tanh, exact_tanh, -kInfinity, kInfinity, {3, 3, 4}},
};

const Function<double> kDoubleFunctions[] = {
    {"exp", &Doubles::exp, std::exp, -708, 700, {1, 1, 1}},
    {"exp - 1", &Doubles::expm1, std::expm1, -708, 700, {2, 2, 2}},
    {"sigmoid", &Doubles::sigmoid, exact_sigmoid, -700, kInfinity, {2.5, 2.5, 2.5}},
    {"sigmoid",
     &Doubles::sigmoid,
     exact_sigmoid,
     -kInfinity,
     -700,
     {1e-304, 1e-304, 1e-304},
     Accuracy::kAbsolute},
    {"tanh", &Doubles::tanh, exact_tanh, -kInfinity, kInfinity, {3, 3, 3}},
};

struct LevelFunctions {
  const char *name;
  int column;  // of Function::limits
  const VectorFunctions &functions;
};

const LevelFunctions kLevels[] = {
    {"baseline", 0, fastrnn::baseline::vector_functions},
#if defined(FASTRNN_HAVE_AVX2)
    {"avx2", 1, fastrnn::avx2::vector_functions},
#endif
#if defined(FASTRNN_HAVE_AVX512)
    {"avx512", 2, fastrnn::avx512::vector_functions},
#endif
#if defined(FASTRNN_HAVE_AVX512_BF16)
    {"avx512_bf16", 2, fastrnn::avx512_bf16::vector_functions},
#endif
};

template <class C>
void check(const Function<C> &f, const std::vector<C> &in,
           ArrayFunctions<C> VectorFunctions::*functions) {
  const std::vector<Wide<C>> exact = evaluate(in, f.exact);
  const std::vector<std::string> supported = levels();
  for (const LevelFunctions &level : kLevels) {
    if (std::find(supported.begin(), supported.end(), level.name) == supported.end()) continue;
    std::vector<C> out(in.size());
    (level.functions.*functions.*f.function)(in.data(), out.data(), int64_t(in.size()));
    const char *type = sizeof(C) == 4 ? " float " : " double ";
    check_accuracy(in, out, exact, {f.low, f.high, f.limits[level.column], f.unit},
                   level.name + std::string(type) + f.name);
  }
}

}  // namespace

void check_activations() {
  const std::vector<float> floats = sample_inputs<float>();
  for (const Function<float> &f : kFloatFunctions) check(f, floats, &VectorFunctions::floats);
  const std::vector<double> doubles = sample_inputs<double>();
  for (const Function<double> &f : kDoubleFunctions) check(f, doubles, &VectorFunctions::doubles);
}

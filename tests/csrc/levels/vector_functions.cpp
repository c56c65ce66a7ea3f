// Compiled once per instruction-set level, with the flags of that level's kernels. It uses nothing
// of the C++ library: the linker could otherwise use this level's copy of a template everywhere.
#include "../vector_functions.h"

#include <cpu/activations.h>

namespace fastrnn::FASTRNN_LEVEL {
namespace {

template <class C, Vec<C> (*function)(Vec<C>)>
void apply(const C *in, C *out, int64_t size) {
  for (int64_t i = 0; i < size; i += kLanes<C>) store(out + i, function(load(in + i)));
}

template <class V>
V exp_of(V v) {
  const Exp<V> e = exp(v);
  return e.scale + e.scale * e.p;
}
template <class V>
V expm1_of(V v) {
  const Exp<V> e = exp(v);
  return (e.scale - 1) + e.scale * e.p;
}
template <class V>
V sigmoid_of(V v) {
  return sigmoid(v);
}
template <class V>
V tanh_of(V v) {
  return tanh(v);
}

template <class C>
constexpr ArrayFunctions<C> functions() {
  return {apply<C, exp_of>, apply<C, expm1_of>, apply<C, sigmoid_of>, apply<C, tanh_of>};
}

}  // namespace

extern const VectorFunctions vector_functions = {functions<float>(), functions<double>()};

}  // namespace fastrnn::FASTRNN_LEVEL

// What the checks of sigmoid, tanh and exp share: inputs that cover a floating-point type, and the
// largest error over a range.
#pragma once

#include "check.h"

#include <cstdint>
#include <cstring>
#include <type_traits>

// The type in which exact values are computed.
template <class C>
using Wide = std::conditional_t<sizeof(C) == sizeof(float), double, long double>;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// A limit on the error for inputs from `low` to `high`.
struct Accuracy {
  enum Unit { kUlp, kAbsolute };
  double low, high, limit;
  Unit unit = kUlp;
};

// The distance between the values of C next to x: one unit in the last place.
template <class C>
Wide<C> ulp_at(Wide<C> x) {
  constexpr int kLowest = std::numeric_limits<C>::min_exponent;
  int exponent = kLowest;
  if (x != 0) std::frexp(x, &exponent);
  return std::ldexp(Wide<C>(1), std::max(exponent, kLowest) - std::numeric_limits<C>::digits);
}

// Inputs of every magnitude, and more of them where the functions are neither linear nor constant.
// Their number is a multiple of 16.
template <class C>
std::vector<C> sample_inputs() {
  using Limits = std::numeric_limits<C>;
  using Bits = std::conditional_t<sizeof(C) == 4, uint32_t, uint64_t>;
  std::vector<C> inputs;
  const C edges[] = {0,
                     Limits::denorm_min(),
                     Limits::min(),
                     C(0.34657359),
                     C(0.4),
                     C(0.5),
                     1,
                     C(9.01),
                     C(19.06),
                     C(36.7),
                     80,
                     87,
                     C(88.73),
                     104,
                     700,
                     708,
                     C(709.79),
                     C(745.14),
                     Limits::max(),
                     Limits::infinity()};
  for (const C edge : edges)
    for (const C value : {std::nextafter(edge, -Limits::infinity()), edge,
                          std::nextafter(edge, Limits::infinity())})
      inputs.insert(inputs.end(), {value, -value});
  inputs.push_back(Limits::quiet_NaN());
  // An even walk over all bit patterns: a hundred or more values per power of two.
  const Bits step =
      (sizeof(C) == 4 ? Bits(8191) : Bits(uint64_t(8191) << 32 | 8191)) * Bits(thinning);
  for (Bits bits = 0; bits <= Bits(~Bits(0)) - step; bits += step) {
    C value;
    std::memcpy(&value, &bits, sizeof value);
    inputs.push_back(value);
  }
  std::mt19937 random(5);
  for (const double width : {1.0, 20.0, sizeof(C) == 4 ? 110.0 : 750.0}) {
    std::uniform_real_distribution<C> uniform(C(-width), C(width));
    for (int i = 0; i < 100000 / thinning; ++i) inputs.push_back(uniform(random));
  }
  inputs.resize((inputs.size() + 15) / 16 * 16);
  return inputs;
}

// Fails unless out[i], computed from in[i], agrees with exact[i] within the limit over its range,
// and is NaN where in[i] is NaN.
template <class C>
void check_accuracy(const std::vector<C> &in, const std::vector<C> &out,
                    const std::vector<Wide<C>> &exact, const Accuracy &accuracy,
                    const std::string &where) {
  double largest = 0;
  for (size_t i = 0; i < in.size(); ++i) {
    if (std::isnan(in[i]) && !std::isnan(out[i])) fail(where, "not NaN for NaN", out[i], 0);
    if (!(in[i] >= accuracy.low && in[i] <= accuracy.high)) continue;
    if (Wide<C>(out[i]) == exact[i]) continue;  // also if both are infinite
    Wide<C> error = std::fabs(out[i] - exact[i]);
    if (accuracy.unit == Accuracy::kUlp) error /= ulp_at<C>(exact[i]);
    if (!(error <= largest)) largest = double(error);  // a NaN is the largest error
  }
  const char *what = accuracy.unit == Accuracy::kUlp ? "error in ULP" : "absolute error";
  if (!(largest <= accuracy.limit)) fail(where, what, largest, accuracy.limit);
}

// The exact values of a function.
template <class C, class F>
std::vector<Wide<C>> evaluate(const std::vector<C> &in, F &&function) {
  std::vector<Wide<C>> values;
  values.reserve(in.size());
  for (const C v : in) values.push_back(function(Wide<C>(v)));
  return values;
}

template <class W>
W exact_sigmoid(W v) {
  return 1 / (1 + std::exp(-v));
}
template <class W>
W exact_tanh(W v) {
  return std::tanh(v);
}

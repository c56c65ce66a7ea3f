// What the checks share: arrays of exact size on the heap, comparisons, and a count of failures.
#pragma once

#include <fastrnn.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <limits>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

using Values = std::vector<double>;

inline int failures = 0;
// Only one shape of so many, and one number, is checked: for an emulated processor and the like.
inline int thinning = 1;

inline bool skip_shape() {
  static int shapes = 0;
  return shapes++ % thinning != 0;
}

// Each prints and counts its failures; an int is the number of shapes that were checked.
int check_pixels();
void check_activations();
void check_cuda_activations();
void check_grid();

// Values that bfloat16 represents exactly, so that every dtype gets the same numbers.
inline Values draw(int64_t size, std::mt19937 &random) {
  std::uniform_int_distribution<int> integer(-64, 64);
  Values values(size);
  for (double &value : values) value = integer(random) / 128.0;
  return values;
}

// An array of exact size on the heap, so that the sanitizer catches an overrun; may be null.
template <class S>
class Buffer {
 public:
  explicit Buffer(const Values &values) : Buffer(values.size()) {
    for (size_t i = 0; i < size_; ++i) data_[i] = S(values[i]);
  }
  explicit Buffer(size_t size) : size_(size), data_(size ? new S[size] : nullptr) {
    for (size_t i = 0; i < size; ++i) data_[i] = S(std::numeric_limits<double>::quiet_NaN());
  }
  S *get() const { return data_.get(); }
  Values values() const {
    Values values(size_);
    for (size_t i = 0; i < size_; ++i) values[i] = double(data_[i]);
    return values;
  }

 private:
  size_t size_;
  std::unique_ptr<S[]> data_;
};

inline void fail(const std::string &where, const char *what, double got, double limit) {
  std::printf("FAILED %s: %s: %.3g, expected at most %.3g\n", where.c_str(), what, got, limit);
  ++failures;
}

inline void require(int error, const std::string &where) {
  if (error == FASTRNN_OK) return;
  std::printf("FAILED %s: %s\n", where.c_str(), fastrnn_error_string(error));
  std::exit(1);
}

inline double norm(const Values &values) {
  double sum = 0;
  for (double value : values) sum += value * value;
  return std::sqrt(sum);
}

inline void compare(const Values &got, const Values &expected, double limit,
                    const std::string &where, const char *what) {
  Values difference(got);
  for (size_t i = 0; i < got.size(); ++i) difference[i] -= expected[i];
  // Elements are of order 1. The norm of an array of a few elements may be small because terms
  // cancel; the error is then compared to the expected order.
  const double scale = std::max(norm(expected), 0.1 * std::sqrt(double(got.size())));
  const double error = norm(difference) / scale;
  if (!(error <= limit) && !got.empty()) fail(where, what, error, limit);  // NaN fails
}

inline std::vector<std::string> levels() {
  std::istringstream words(fastrnn_cpu_levels());
  return {std::istream_iterator<std::string>(words), {}};
}

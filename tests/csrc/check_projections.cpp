// LSTM layers with a projection, against loops in float64.
#include "projected.h"

namespace {

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// The outputs, one sequence and one step after the other.
std::array<Values, OUTPUTS> expected_outputs(const ProjectedProblem &p) {
  const Shape &s = p.shape;
  const int64_t H = s.hidden, P = p.proj_size;
  std::array<Values, OUTPUTS> out = {Values(p.rows * P), p.inputs[H0], p.inputs[C0]};
  std::vector<int64_t> offsets = {0};
  for (int64_t size : p.batch_sizes) offsets.push_back(offsets.back() + size);
  for (int64_t b = 0; b < s.batch; ++b) {
    double *h = &out[H_N][b * P], *c = &out[C_N][b * H];
    for (int64_t i = 0; i < s.steps; ++i) {
      const int64_t t = s.reverse ? s.steps - 1 - i : i;
      if (b >= p.batch_sizes[t]) continue;
      const double *x = &p.inputs[X][(offsets[t] + b) * s.input];
      Values gates(4 * H), m(H);
      for (int64_t g = 0; g < 4 * H; ++g) {
        double sum = s.bias ? p.inputs[B_IH][g] + p.inputs[B_HH][g] : 0;
        for (int64_t k = 0; k < s.input; ++k) sum += p.inputs[W_IH][g * s.input + k] * x[k];
        for (int64_t k = 0; k < P; ++k) sum += p.inputs[W_HH][g * P + k] * h[k];
        gates[g] = sum;
      }
      for (int64_t j = 0; j < H; ++j) {
        c[j] = sigmoid(gates[H + j]) * c[j] + sigmoid(gates[j]) * std::tanh(gates[2 * H + j]);
        m[j] = sigmoid(gates[3 * H + j]) * std::tanh(c[j]);
      }
      for (int64_t k = 0; k < P; ++k) {
        double sum = 0;
        for (int64_t j = 0; j < H; ++j) sum += p.w_hr[k * H + j] * m[j];
        out[Y][(offsets[t] + b) * P + k] = h[k] = sum;
      }
    }
  }
  return out;
}

template <class S>
void check(const ProjectedProblem &p, int threads, const std::array<Values, OUTPUTS> &expected,
           double limit, const std::string &where) {
  ProjectedLayer<S> layer(p, threads);
  require(fastrnn_cpu_forward_projected(&layer.problem, &layer.arrays, layer.w_hr(), p.proj_size),
          where);
  compare_projected(layer.outputs(), expected, limit, where);
}

void check_interface() {
  std::mt19937 random(1);
  const ProjectedProblem p({FASTRNN_LSTM, 2, 1, 3, 4, false, false, true}, 2, random);
  ProjectedLayer<float> layer(p, 1);
  const auto expect = [&](const char *what, const void *w_hr, int64_t size) {
    const int got = fastrnn_cpu_forward_projected(&layer.problem, &layer.arrays, w_hr, size);
    if (got != FASTRNN_ERROR_ARGUMENT) fail("projection", what, got, FASTRNN_ERROR_ARGUMENT);
  };
  expect("no weights", nullptr, 2);
  expect("no size", layer.w_hr(), 0);
  float saved[2 * 4 * 4];
  layer.arrays.gates = layer.arrays.cells = saved;
  expect("saved results", layer.w_hr(), 2);
  layer.arrays.gates = layer.arrays.cells = nullptr;
  layer.problem.cell = FASTRNN_GRU;
  expect("another cell", layer.w_hr(), 2);
}

}  // namespace

int check_projections() {
  check_interface();
  // T, B, I, H, P: around the widths of vectors and tiles, with weights packed and read in place
  // (H >= 64 T), and so large that two threads divide the rows or the hidden units.
  const int64_t sizes[][5] = {{1, 1, 1, 2, 1},   {5, 7, 3, 16, 9},   {3, 17, 40, 31, 30},
                              {2, 9, 3, 133, 3}, {1, 5, 40, 70, 35}, {2, 11, 39, 136, 16},
                              {3, 2, 9, 230, 99}};
  int shapes = 0;
  for (const int64_t *size : sizes) {
    for (bool packed : {false, true}) {
      if (skip_shape()) continue;
      std::mt19937 random(11);
      const bool reverse = ++shapes % 2, bias = shapes % 3;
      const ProjectedProblem p(
          {FASTRNN_LSTM, size[0], size[1], size[2], size[3], packed, reverse, bias}, size[4],
          random);
      const std::array<Values, OUTPUTS> expected = expected_outputs(p);
      for (const std::string &level : levels()) {
        require(fastrnn_cpu_select_level(level.c_str()), "select_level");
        for (int threads = 1; threads <= 2; ++threads) {
          const std::string where = p.name() + " " + level + " threads " + std::to_string(threads);
          check<double>(p, threads, expected, 1e-12, where + " float64");
          check<float>(p, threads, expected, 1e-6, where + " float32");
          check<Bfloat16>(p, threads, expected, 1e-2, where + " bfloat16");
        }
      }
    }
  }
  return shapes;
}

// Runs the CPU library through its C interface, under sanitizers and without Python or torch.
//
// Gradients in float64 are compared with finite differences of the forward pass; the other dtypes,
// instruction sets and thread counts with float64 on one baseline thread.
#include <cpu/grid.h>

#include "layer.h"

namespace {

// Prepacked weights give the outputs, bit for bit, of a call that packs them; and nearly those of
// one that reads them in place, which adds in another order.
template <class S>
void check_prepacked(const Problem &p, int threads, const Results &expected) {
  Layer<S> layer(p, threads, false);
  const Prepacked prepacked(layer.problem, layer.forward);
  fastrnn_forward_arrays &arrays = layer.forward;
  arrays.w_ih = arrays.w_hh = arrays.b_ih = arrays.b_hh = nullptr;
  require(fastrnn_cpu_forward_prepacked(&layer.problem, &arrays, prepacked.get()), p.shape.name());
  const double rounding = sizeof(S) == 8 ? 1e-12 : sizeof(S) == 4 ? 1e-6 : 1e-2;
  const std::string level = fastrnn_cpu_level();
  const bool wide = level.rfind("avx512", 0) == 0 && sizeof(S) < 8;
  const fastrnn::Arithmetic arithmetic{wide ? 16 : 8, sizeof(S) == 2 && level == "avx512_bf16"};
  const double limit = fastrnn::reads_in_place(layer.problem, arithmetic) ? rounding : 0;
  compare_outputs(layer.results(), expected, limit, p.shape.name() + " prepacked");
}

// The gradients of x and of the states are optional, and the others do not depend on them.
template <class S>
void check_optional_gradients(const Problem &p, int threads, const Results &all) {
  Layer<S> layer(p, threads, true);
  layer.backward.dx = layer.backward.dh0 = layer.backward.dc0 = nullptr;
  require(layer.run_forward(), p.shape.name());
  require(layer.run_backward(), p.shape.name());
  Results results = layer.results();
  for (const Input i : {X, H0, C0}) results.gradients[i] = all.gradients[i];
  compare_all(results, all, 0, 0, p.shape.name() + " without dx, dh0 and dc0");
}

template <class S>
Results run(const Problem &p, int threads, bool backward) {
  Layer<S> layer(p, threads, backward);
  require(layer.run_forward(), p.shape.name());
  if (!p.shape.proj_size) check_prepacked<S>(p, threads, layer.results());
  if (!backward) return layer.results();
  require(layer.run_backward(), p.shape.name());
  const Results results = layer.results();
  check_optional_gradients<S>(p, threads, results);
  return results;
}

// Compares the derivative along a random direction, per input, with central differences.
void check_finite_differences(const Problem &p, const Results &results, std::mt19937 &random) {
  const double step = 1e-5;
  for (int i = 0; i < INPUTS; ++i) {
    if (p.inputs[i].empty()) continue;
    const Values direction = draw(int64_t(p.inputs[i].size()), random);
    double losses[2];
    for (int side = 0; side < 2; ++side) {
      Problem moved = p;
      for (size_t j = 0; j < direction.size(); ++j)
        moved.inputs[i][j] += (side ? step : -step) * direction[j];
      losses[side] = run<double>(moved, 1, false).loss(p);
    }
    double expected = 0;
    for (size_t j = 0; j < direction.size(); ++j)
      expected += results.gradients[i][j] * direction[j];
    const double error = std::fabs((losses[1] - losses[0]) / (2 * step) - expected);
    const double limit = 1e-7 * (1 + norm(results.gradients[i]) * norm(direction));
    if (!(error <= limit)) fail(p.shape.name() + " finite difference", kInputs[i], error, limit);
  }
}

void check(const Shape &shape) {
  std::mt19937 random(7);
  const Problem problem(shape, random);
  require(fastrnn_cpu_select_level("baseline"), "select_level");
  const Results expected = run<double>(problem, 1, true);
  check_finite_differences(problem, expected, random);
  for (const std::string &level : levels()) {
    require(fastrnn_cpu_select_level(level.c_str()), "select_level");
    for (int threads = 1; threads <= 2; ++threads) {
      const std::string where = shape.name() + " " + level + " threads " + std::to_string(threads);
      compare_all(run<double>(problem, threads, true), expected, 1e-12, 1e-11, where + " float64");
      compare_all(run<float>(problem, threads, true), expected, 1e-6, 1e-5, where + " float32");
      compare_all(run<Bfloat16>(problem, threads, true), expected, 1e-2, 2e-2, where + " bfloat16");
    }
  }
}

// A sequence has the same results, bit for bit, alone and in any batch, on any number of threads.
void check_rows_alone(const Shape &shape) {
  std::mt19937 random(3);
  const Problem whole(shape, random);
  Shape single = shape;
  single.batch = 1;
  for (const std::string &level : levels()) {
    require(fastrnn_cpu_select_level(level.c_str()), "select_level");
    const Results together = run<float>(whole, 2, false);
    for (int64_t b = 0; b < shape.batch; ++b) {
      Problem alone(single, random);
      const auto copy_row = [&](Input which, int64_t steps, int64_t width) {
        for (int64_t t = 0; t < steps; ++t)
          std::copy_n(whole.inputs[which].begin() + (t * shape.batch + b) * width, width,
                      alone.inputs[which].begin() + t * width);
      };
      alone.inputs = whole.inputs;
      copy_row(X, shape.steps, shape.input);
      copy_row(H0, 1, shape.features());
      if (shape.lstm()) copy_row(C0, 1, shape.hidden);
      for (Input which : {X, H0, C0}) alone.inputs[which].resize(alone.input_size(which));
      const Results results = run<float>(alone, 1, false);
      for (int64_t t = 0; t < shape.steps; ++t)
        for (int64_t j = 0; j < shape.features(); ++j)
          if (results.outputs[Y][t * shape.features() + j] !=
              together.outputs[Y][(t * shape.batch + b) * shape.features() + j])
            return fail(shape.name() + " " + level, "a row alone differs", double(b), 0);
    }
  }
}

// Memory that does not hold the layer's prepacked weights is refused.
void check_prepacked_interface(fastrnn_problem problem) {
  const auto expect = [](const char *what, int got, int expected) {
    if (got != expected) fail("prepacked interface", what, got, expected);
  };
  const Values zeros(16 * 4);
  const Buffer<float> w_ih(zeros), w_hh(zeros), states(zeros), results(zeros);
  fastrnn_forward_arrays arrays{};
  const auto prepack = [&](void *to) { return fastrnn_cpu_prepack(&problem, &arrays, to); };
  const auto run = [&](const void *prepacked) {
    return fastrnn_cpu_forward_prepacked(&problem, &arrays, prepacked);
  };
  alignas(64) char other[64] = {};
  expect("no weights", prepack(other), FASTRNN_ERROR_ARGUMENT);
  arrays.w_ih = w_ih.get(), arrays.w_hh = w_hh.get();
  expect("no memory", prepack(nullptr), FASTRNN_ERROR_ARGUMENT);
  const Prepacked prepacked(problem, arrays);
  arrays.w_ih = arrays.w_hh = nullptr;
  arrays.x = arrays.h0 = arrays.c0 = states.get();
  arrays.y = arrays.h_n = arrays.c_n = results.get();
  expect("prepacked", run(prepacked.get()), FASTRNN_OK);
  expect("not aligned", run(prepacked.get() + 4), FASTRNN_ERROR_ARGUMENT);
  expect("no prepacked weights", run(nullptr), FASTRNN_ERROR_ARGUMENT);
  expect("other memory", run(other), FASTRNN_ERROR_ARGUMENT);
  problem.cell = FASTRNN_GRU;
  expect("another cell", run(prepacked.get()), FASTRNN_ERROR_ARGUMENT);
  problem.hidden_size = 0;
  expect("bytes", int(fastrnn_cpu_prepacked_bytes(&problem)), -1);
}

// Invalid calls of a layer with a projection.
void check_projected_interface() {
  std::mt19937 random(1);
  const Problem p({FASTRNN_LSTM, 2, 1, 3, 4, false, false, true, 2}, random);
  Layer<float> layer(p, 1, true);
  const auto expect = [&](const char *what, const void *w_hr, void *dw_hr, int64_t size) {
    const int forward = fastrnn_cpu_forward_projected(&layer.problem, &layer.forward, w_hr, size),
              backward = fastrnn_cpu_backward_projected(&layer.problem, &layer.backward, w_hr,
                                                        dw_hr, size);
    if (dw_hr && forward != FASTRNN_ERROR_ARGUMENT)
      fail("projection forward", what, forward, FASTRNN_ERROR_ARGUMENT);
    if (backward != FASTRNN_ERROR_ARGUMENT)
      fail("projection backward", what, backward, FASTRNN_ERROR_ARGUMENT);
  };
  expect("no weights", nullptr, layer.dw_hr(), 2);
  expect("no gradient", layer.w_hr(), nullptr, 2);
  expect("no size", layer.w_hr(), layer.dw_hr(), 0);
  layer.problem.cell = FASTRNN_GRU;
  expect("another cell", layer.w_hr(), layer.dw_hr(), 2);
}

// Calls with nothing to compute, and invalid calls.
void check_interface() {
  const auto expect = [](const char *what, int got, int expected) {
    if (got != expected) fail("interface", what, got, expected);
  };
  const fastrnn_forward_arrays none{};
  const fastrnn_backward_arrays no_gradients{};
  fastrnn_problem problem = {FASTRNN_LSTM, FASTRNN_FLOAT32, 0, 1, 3, 0, 2, 4, nullptr};
  expect("ABI version", fastrnn_abi_version(), FASTRNN_ABI_VERSION);
  expect("empty batch, forward", fastrnn_cpu_forward(&problem, &none), FASTRNN_OK);
  expect("empty batch, backward", fastrnn_cpu_backward(&problem, &no_gradients), FASTRNN_OK);
  problem.batch = 2;
  expect("no arrays", fastrnn_cpu_forward(&problem, &none), FASTRNN_ERROR_ARGUMENT);
  expect("no arrays", fastrnn_cpu_backward(&problem, &no_gradients), FASTRNN_ERROR_ARGUMENT);
  expect("null arrays", fastrnn_cpu_forward(&problem, nullptr), FASTRNN_ERROR_ARGUMENT);
  expect("null problem", fastrnn_cpu_forward(nullptr, &none), FASTRNN_ERROR_ARGUMENT);
  const int64_t growing[] = {2, 1, 2}, short_first[] = {1, 1, 1}, ending[] = {2, 1, 0};
  for (const int64_t *sizes : {growing, short_first, ending}) {
    problem.batch_sizes = sizes;
    expect("batch sizes", fastrnn_cpu_forward(&problem, &none), FASTRNN_ERROR_ARGUMENT);
  }
  problem.batch_sizes = nullptr;
  check_prepacked_interface(problem);
  expect("level", fastrnn_cpu_select_level("no such level"), FASTRNN_ERROR_LEVEL);
  expect("level", fastrnn_cpu_select_level(nullptr), FASTRNN_ERROR_ARGUMENT);
  for (int error = -1; error <= FASTRNN_ERROR_LEVEL + 1; ++error)
    if (!*fastrnn_error_string(error)) fail("interface", "error string", error, 0);
}

}  // namespace

// The argument, if there is one, is the thinning.
int main(int count, char **arguments) {
  if (count > 1) thinning = std::max(1, std::atoi(arguments[1]));
  check_interface();
  // T, B, I, H: around the widths of vectors and tiles; one row, one step, one unit; and sizes for
  // which two threads divide the rows or the hidden units.
  const int64_t sizes[][4] = {{1, 1, 1, 1},   {2, 3, 1, 5},    {5, 7, 3, 16},  {3, 17, 28, 31},
                              {4, 6, 33, 33}, {2, 1, 40, 130}, {9, 40, 9, 65}, {6, 13, 32, 8},
                              {1, 5, 40, 33}, {1, 7, 39, 70},  {2, 9, 3, 133}};
  int shapes = 0, bias = 0;
  const auto check_shape = [&](const Shape &shape, void (*check)(const Shape &)) {
    if (skip_shape()) return;
    check(shape);
    ++shapes;
  };
  for (int cell : {FASTRNN_LSTM, FASTRNN_GRU})
    for (const int64_t *size : sizes)
      for (bool packed : {false, true})
        for (bool reverse : {false, true})
          check_shape({cell, size[0], size[1], size[2], size[3], packed, reverse, bias++ % 3 != 0},
                      check);
  // T, B, H: packed weights, and weights that are read in place; narrow and wide inputs, which one
  // row projects ahead and many rows project in each step.
  const int64_t alone[][3] = {{1, 40, 35}, {5, 40, 35}, {1, 40, 70}, {2, 43, 131}, {2, 5, 136}};
  for (int cell : {FASTRNN_LSTM, FASTRNN_GRU})
    for (const int64_t *size : alone)
      for (const int64_t input : {9, 45})
        check_shape({cell, size[0], size[1], input, size[2], false, false, true}, check_rows_alone);
  // T, B, I, H, P: the same, and so large that two threads divide the rows or the elements of h.
  const int64_t projected[][5] = {{1, 1, 1, 2, 1},   {5, 7, 3, 16, 9},   {3, 17, 40, 31, 30},
                                  {2, 9, 3, 133, 3}, {1, 5, 40, 70, 35}, {2, 11, 39, 136, 16},
                                  {3, 2, 9, 230, 99}};
  for (const int64_t *size : projected) {
    const auto shape = [&](bool packed, bool reverse) {
      return Shape{FASTRNN_LSTM, size[0], size[1],         size[2], size[3],
                   packed,       reverse, bias++ % 3 != 0, size[4]};
    };
    check_shape(shape(false, bias % 2), check);
    check_shape(shape(true, bias % 2), check);
    check_shape(shape(false, false), check_rows_alone);
  }
  shapes += check_pixels();
  check_projected_interface();
  check_grid();
  check_activations();
  check_cuda_activations();
  std::printf("%d shapes, levels %s: %d failures\n", shapes, fastrnn_cpu_levels(), failures);
  return failures ? 1 : 0;
}

// Runs the CPU library through its C interface, under sanitizers and without Python or torch.
//
// Every array has its exact size and outputs start as NaN, so that an overrun or a missing element
// is detected. Gradients in float64 are compared with finite differences of the forward pass; the
// other dtypes, instruction sets and thread counts with float64 on one baseline thread.
#include "check.h"

#include <array>
#include <cstring>

namespace {

enum Input { X, H0, C0, W_IH, W_HH, B_IH, B_HH, INPUTS };
enum Output { Y, H_N, C_N, OUTPUTS };
const char *const kInputs[] = {"x", "h0", "c0", "w_ih", "w_hh", "b_ih", "b_hh"};
const char *const kOutputs[] = {"y", "h_n", "c_n"};

struct Shape {
  int cell;
  int64_t steps, batch, input, hidden;
  bool packed, reverse, bias;

  bool lstm() const { return cell == FASTRNN_LSTM; }
  std::string name() const {
    std::ostringstream text;
    text << (lstm() ? "LSTM" : "GRU") << " T" << steps << " B" << batch << " I" << input << " H"
         << hidden << (packed ? " packed" : "") << (reverse ? " reverse" : "")
         << (bias ? "" : " no-bias");
    return text.str();
  }
};

// A problem with its batch sizes, its inputs, and the gradient of a loss for each output.
struct Problem {
  Shape shape;
  std::vector<int64_t> batch_sizes;
  int64_t rows;
  std::array<Values, INPUTS> inputs;
  std::array<Values, OUTPUTS> output_gradients;

  Problem(const Shape &s, std::mt19937 &random) : shape(s), rows(0) {
    for (int64_t t = 0; t < s.steps; ++t) {
      // Packed: sequences have different lengths; at least one has all steps.
      const int64_t running = s.packed ? s.batch - (s.batch - 1) * t / s.steps : s.batch;
      batch_sizes.push_back(running);
      rows += running;
    }
    for (int i = 0; i < INPUTS; ++i) inputs[i] = draw(input_size(Input(i)), random);
    for (int i = 0; i < OUTPUTS; ++i) output_gradients[i] = draw(output_size(Output(i)), random);
  }

  int64_t gate_rows() const { return (shape.lstm() ? 4 : 3) * shape.hidden; }
  int64_t state() const { return shape.batch * shape.hidden; }
  int64_t input_size(Input which) const {
    switch (which) {
      case X:
        return rows * shape.input;
      case H0:
        return state();
      case C0:
        return shape.lstm() ? state() : 0;
      case W_IH:
        return gate_rows() * shape.input;
      case W_HH:
        return gate_rows() * shape.hidden;
      default:
        return shape.bias ? gate_rows() : 0;
    }
  }
  int64_t output_size(Output which) const {
    if (which == Y) return rows * shape.hidden;
    return which == H_N || shape.lstm() ? state() : 0;
  }
};

struct Results {
  std::array<Values, OUTPUTS> outputs;
  std::array<Values, INPUTS> gradients;

  double loss(const Problem &p) const {
    double sum = 0;
    for (int i = 0; i < OUTPUTS; ++i)
      for (size_t j = 0; j < outputs[i].size(); ++j)
        sum += outputs[i][j] * p.output_gradients[i][j];
    return sum;
  }
};

struct Bfloat16 {
  uint16_t bits;
  Bfloat16() = default;
  explicit Bfloat16(double value) {  // value is NaN or exact in bfloat16
    const float single = static_cast<float>(value);
    uint32_t word;
    std::memcpy(&word, &single, sizeof word);
    bits = static_cast<uint16_t>(word >> 16);
  }
  explicit operator double() const {
    const uint32_t word = uint32_t(bits) << 16;
    float single;
    std::memcpy(&single, &word, sizeof single);
    return single;
  }
};

template <class S>
constexpr int dtype() {
  return sizeof(S) == 8 ? FASTRNN_FLOAT64 : sizeof(S) == 4 ? FASTRNN_FLOAT32 : FASTRNN_BFLOAT16;
}

// Memory for prepacked weights, of exact size and aligned as a cache line.
class Prepacked {
 public:
  Prepacked(const fastrnn_problem &problem, const fastrnn_forward_arrays &arrays) {
    const int64_t bytes = fastrnn_cpu_prepacked_bytes(&problem);
    if (bytes < 64 || bytes % 64) fail("prepacked", "bytes", double(bytes), 64);
    data_.reset(static_cast<char *>(std::aligned_alloc(64, size_t(bytes))));
    std::memset(data_.get(), 0xff, size_t(bytes));
    require(fastrnn_cpu_prepack(&problem, &arrays, data_.get()), "prepack");
  }
  char *get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(char *data) const { std::free(data); }
  };
  std::unique_ptr<char, Free> data_;
};

// Prepacked weights give the outputs, bit for bit, of a call that packs them.
template <class S>
void check_prepacked(const Problem &p, const fastrnn_problem &problem,
                     fastrnn_forward_arrays arrays, const std::vector<Buffer<S>> &expected) {
  const Prepacked prepacked(problem, arrays);
  std::vector<Buffer<S>> out;
  for (int i = 0; i < OUTPUTS; ++i) out.emplace_back(size_t(p.output_size(Output(i))));
  arrays.w_ih = arrays.w_hh = arrays.b_ih = arrays.b_hh = nullptr;
  arrays.gates = arrays.cells = nullptr;
  arrays.y = out[Y].get(), arrays.h_n = out[H_N].get(), arrays.c_n = out[C_N].get();
  require(fastrnn_cpu_forward_prepacked(&problem, &arrays, prepacked.get()), p.shape.name());
  for (int i = 0; i < OUTPUTS; ++i)
    if (out[i].values() != expected[i].values())
      fail(p.shape.name() + " prepacked", kOutputs[i], 1, 0);
}

template <class S>
Results run(const Problem &p, int threads, bool backward) {
  const Shape &s = p.shape;
  const std::unique_ptr<int64_t[]> batch_sizes(new int64_t[p.batch_sizes.size()]);
  std::copy(p.batch_sizes.begin(), p.batch_sizes.end(), batch_sizes.get());
  const fastrnn_problem problem = {s.cell,  dtype<S>(), s.reverse,
                                   threads, s.steps,    s.batch,
                                   s.input, s.hidden,   s.packed ? batch_sizes.get() : nullptr};
  std::vector<Buffer<S>> in, out, gradient;
  for (const Values &values : p.inputs) in.emplace_back(values);
  for (int i = 0; i < OUTPUTS; ++i) out.emplace_back(size_t(p.output_size(Output(i))));
  // A forward call without backward saves nothing.
  const Buffer<S> gates(backward ? size_t(p.rows * 4 * s.hidden) : 0);
  const Buffer<S> cells(backward && s.lstm() ? size_t(p.rows * s.hidden) : 0);
  const fastrnn_forward_arrays forward = {
      in[X].get(),    in[H0].get(), in[C0].get(),   in[W_IH].get(), in[W_HH].get(), in[B_IH].get(),
      in[B_HH].get(), out[Y].get(), out[H_N].get(), out[C_N].get(), gates.get(),    cells.get()};
  require(fastrnn_cpu_forward(&problem, &forward), s.name());
  check_prepacked(p, problem, forward, out);

  Results results;
  for (int i = 0; i < OUTPUTS; ++i) results.outputs[i] = out[i].values();
  if (!backward) return results;

  std::vector<Buffer<S>> d;
  for (const Values &values : p.output_gradients) d.emplace_back(values);
  for (int i = 0; i < INPUTS; ++i) {
    // Bias gradients exist even without biases; the two of an LSTM are equal and stored once.
    const int64_t size =
        i < B_IH ? p.input_size(Input(i)) : (i == B_HH && s.lstm() ? 0 : p.gate_rows());
    gradient.emplace_back(size_t(size));
  }
  fastrnn_backward_arrays arrays = {
      d[Y].get(),           d[H_N].get(),        d[C_N].get(),         in[X].get(),
      in[H0].get(),         in[C0].get(),        in[W_IH].get(),       in[W_HH].get(),
      out[Y].get(),         gates.get(),         cells.get(),          gradient[X].get(),
      gradient[H0].get(),   gradient[C0].get(),  gradient[W_IH].get(), gradient[W_HH].get(),
      gradient[B_IH].get(), gradient[B_HH].get()};
  require(fastrnn_cpu_backward(&problem, &arrays), s.name());
  for (int i = 0; i < INPUTS; ++i) results.gradients[i] = gradient[i].values();
  if (s.lstm()) results.gradients[B_HH] = results.gradients[B_IH];

  arrays.dx = nullptr;  // the gradient of x is optional
  require(fastrnn_cpu_backward(&problem, &arrays), s.name());
  return results;
}

void compare_all(const Results &got, const Results &expected, double forward, double gradients,
                 const std::string &where) {
  for (int i = 0; i < OUTPUTS; ++i)
    compare(got.outputs[i], expected.outputs[i], forward, where, kOutputs[i]);
  for (int i = 0; i < INPUTS; ++i)
    compare(got.gradients[i], expected.gradients[i], gradients, where, kInputs[i]);
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
      copy_row(H0, 1, shape.hidden);
      if (shape.lstm()) copy_row(C0, 1, shape.hidden);
      for (Input which : {X, H0, C0}) alone.inputs[which].resize(alone.input_size(which));
      const Results results = run<float>(alone, 1, false);
      for (int64_t t = 0; t < shape.steps; ++t)
        for (int64_t j = 0; j < shape.hidden; ++j)
          if (results.outputs[Y][t * shape.hidden + j] !=
              together.outputs[Y][(t * shape.batch + b) * shape.hidden + j])
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

int main() {
  check_interface();
  // T, B, I, H: around the widths of vectors and tiles; one row, one step, one unit; and sizes for
  // which two threads divide the rows or the hidden units.
  const int64_t sizes[][4] = {{1, 1, 1, 1},    {2, 3, 1, 5},   {5, 7, 3, 16},
                              {3, 17, 28, 31}, {4, 6, 33, 33}, {2, 1, 40, 130},
                              {9, 40, 9, 65},  {6, 13, 32, 8}, {1, 5, 40, 33}};
  int shapes = 0;
  for (int cell : {FASTRNN_LSTM, FASTRNN_GRU})
    for (const int64_t *size : sizes)
      for (bool packed : {false, true})
        for (bool reverse : {false, true}) {
          check({cell, size[0], size[1], size[2], size[3], packed, reverse, shapes % 3 != 0});
          ++shapes;
        }
  for (int cell : {FASTRNN_LSTM, FASTRNN_GRU}) {  // so large that two steps do not pack the weights
    check({cell, 2, 2, 3, 600, cell == FASTRNN_LSTM, true, true});
    ++shapes;
  }
  for (int cell : {FASTRNN_LSTM, FASTRNN_GRU})
    for (int64_t steps : {1, 2, 5}) {
      check_rows_alone({cell, steps, 9, 40, 35, false, false, true});
      ++shapes;
    }
  shapes += check_pixels();
  check_grid();
  check_activations();
  check_cuda_activations();
  std::printf("%d shapes, levels %s: %d failures\n", shapes, fastrnn_cpu_levels(), failures);
  return failures ? 1 : 0;
}

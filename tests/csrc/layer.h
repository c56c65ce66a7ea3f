// A layer in one direction, with the arrays that a call of it needs.
//
// Every array has its exact size and outputs start as NaN, so that an overrun or a missing element
// is detected.
#pragma once

#include "check.h"

#include <array>
#include <cstring>

enum Input { X, H0, C0, W_IH, W_HH, B_IH, B_HH, W_HR, INPUTS };
enum Output { Y, H_N, C_N, OUTPUTS };
const char *const kInputs[] = {"x", "h0", "c0", "w_ih", "w_hh", "b_ih", "b_hh", "w_hr"};
const char *const kOutputs[] = {"y", "h_n", "c_n"};

struct Shape {
  int cell;
  int64_t steps, batch, input, hidden;
  bool packed, reverse, bias;
  int64_t proj_size = 0;  // of an LSTM with a projection

  int64_t features() const { return proj_size ? proj_size : hidden; }  // of h
  bool lstm() const { return cell == FASTRNN_LSTM; }
  std::string name() const {
    std::ostringstream text;
    text << (lstm() ? "LSTM" : "GRU") << " T" << steps << " B" << batch << " I" << input << " H"
         << hidden << (packed ? " packed" : "") << (reverse ? " reverse" : "")
         << (bias ? "" : " no-bias");
    if (proj_size) text << " P" << proj_size;
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
    if (s.proj_size)
      for (Input which : {W_HH, W_HR})
        for (double &w : inputs[which]) w /= 4;  // exact in bfloat16, too
  }

  int64_t gate_rows() const { return (shape.lstm() ? 4 : 3) * shape.hidden; }
  int64_t input_size(Input which) const {
    switch (which) {
      case X:
        return rows * shape.input;
      case H0:
        return shape.batch * shape.features();
      case C0:
        return shape.lstm() ? shape.batch * shape.hidden : 0;
      case W_IH:
        return gate_rows() * shape.input;
      case W_HH:
        return gate_rows() * shape.features();
      case W_HR:
        return shape.proj_size * shape.hidden;
      default:
        return shape.bias ? gate_rows() : 0;
    }
  }
  int64_t output_size(Output which) const {
    if (which == Y) return rows * shape.features();
    if (which == H_N) return shape.batch * shape.features();
    return shape.lstm() ? shape.batch * shape.hidden : 0;
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

// A problem's arrays of one dtype. `saves`: whether the forward call saves what backward needs.
template <class S>
class Layer {
 public:
  Layer(const Problem &p, int threads, bool saves)
      : p_(p), batch_sizes_(new int64_t[p.batch_sizes.size()]),
        gates_(saves ? size_t(p.rows * 4 * p.shape.hidden) : 0),
        cells_(saves && p.shape.lstm() ? size_t(p.rows * p.shape.hidden) : 0) {
    const Shape &s = p.shape;
    std::copy(p.batch_sizes.begin(), p.batch_sizes.end(), batch_sizes_.get());
    problem = {s.cell,  dtype<S>(), s.reverse,
               threads, s.steps,    s.batch,
               s.input, s.hidden,   s.packed ? batch_sizes_.get() : nullptr};
    for (const Values &values : p.inputs) in_.emplace_back(values);
    for (int i = 0; i < OUTPUTS; ++i) out_.emplace_back(size_t(p.output_size(Output(i))));
    forward = {in_[X].get(),    in_[H0].get(),   in_[C0].get(),   in_[W_IH].get(),
               in_[W_HH].get(), in_[B_IH].get(), in_[B_HH].get(), out_[Y].get(),
               out_[H_N].get(), out_[C_N].get(), gates_.get(),    cells_.get()};
    if (!saves) return;
    for (const Values &values : p.output_gradients) d_.emplace_back(values);
    for (int i = 0; i < INPUTS; ++i) {
      // Bias gradients exist even without biases; the two of an LSTM are equal and stored once.
      const bool bias = i == B_IH || i == B_HH;
      const int64_t size =
          !bias ? p.input_size(Input(i)) : (i == B_HH && s.lstm() ? 0 : p.gate_rows());
      gradient_.emplace_back(size_t(size));
    }
    backward = {d_[Y].get(),           d_[H_N].get(),         d_[C_N].get(),
                in_[X].get(),          in_[H0].get(),         in_[C0].get(),
                in_[W_IH].get(),       in_[W_HH].get(),       out_[Y].get(),
                gates_.get(),          cells_.get(),          gradient_[X].get(),
                gradient_[H0].get(),   gradient_[C0].get(),   gradient_[W_IH].get(),
                gradient_[W_HH].get(), gradient_[B_IH].get(), gradient_[B_HH].get()};
  }

  int run_forward() {
    if (!p_.shape.proj_size) return fastrnn_cpu_forward(&problem, &forward);
    return fastrnn_cpu_forward_projected(&problem, &forward, w_hr(), p_.shape.proj_size);
  }
  int run_backward() {
    if (!p_.shape.proj_size) return fastrnn_cpu_backward(&problem, &backward);
    return fastrnn_cpu_backward_projected(&problem, &backward, w_hr(), dw_hr(), p_.shape.proj_size);
  }

  const void *w_hr() const { return in_[W_HR].get(); }
  void *dw_hr() const { return gradient_[W_HR].get(); }

  Results results() const {
    Results results;
    for (int i = 0; i < OUTPUTS; ++i) results.outputs[i] = out_[i].values();
    if (gradient_.empty()) return results;
    for (int i = 0; i < INPUTS; ++i) results.gradients[i] = gradient_[i].values();
    if (p_.shape.lstm()) results.gradients[B_HH] = results.gradients[B_IH];
    return results;
  }

  fastrnn_problem problem;
  fastrnn_forward_arrays forward{};
  fastrnn_backward_arrays backward{};

 private:
  const Problem &p_;
  const std::unique_ptr<int64_t[]> batch_sizes_;
  std::vector<Buffer<S>> in_, out_, d_, gradient_;
  const Buffer<S> gates_, cells_;
};

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

inline void compare_outputs(const Results &got, const Results &expected, double limit,
                            const std::string &where) {
  for (int i = 0; i < OUTPUTS; ++i)
    compare(got.outputs[i], expected.outputs[i], limit, where, kOutputs[i]);
}

inline void compare_all(const Results &got, const Results &expected, double forward,
                        double gradients, const std::string &where) {
  compare_outputs(got, expected, forward, where);
  for (int i = 0; i < INPUTS; ++i)
    compare(got.gradients[i], expected.gradients[i], gradients, where, kInputs[i]);
}

// An LSTM layer with a projection, with the arrays that a call of it needs.
#pragma once

#include "layer.h"

struct ProjectedProblem {
  Shape shape;
  int64_t proj_size;
  std::vector<int64_t> batch_sizes;
  int64_t rows;
  std::array<Values, INPUTS> inputs;  // h0 is [B, P], w_hh is [4H, P]
  Values w_hr;                        // [P, H]

  ProjectedProblem(const Shape &s, int64_t size, std::mt19937 &random) : shape(s), proj_size(size) {
    const Problem whole(s, random);
    batch_sizes = whole.batch_sizes, rows = whole.rows, inputs = whole.inputs;
    inputs[H0] = draw(s.batch * size, random);
    inputs[W_HH] = draw(whole.gate_rows() * size, random);
    w_hr = draw(size * s.hidden, random);
    for (double &w : inputs[W_HH]) w /= 4;  // exact in bfloat16, too
    for (double &w : w_hr) w /= 4;
  }

  std::string name() const { return shape.name() + " P" + std::to_string(proj_size); }
};

template <class S>
class ProjectedLayer {
 public:
  ProjectedLayer(const ProjectedProblem &p, int threads)
      : batch_sizes_(p.batch_sizes), y_(size_t(p.rows * p.proj_size)),
        h_n_(size_t(p.shape.batch * p.proj_size)), c_n_(size_t(p.shape.batch * p.shape.hidden)),
        w_hr_(p.w_hr) {
    const Shape &s = p.shape;
    problem = {s.cell,  dtype<S>(), s.reverse,
               threads, s.steps,    s.batch,
               s.input, s.hidden,   s.packed ? batch_sizes_.data() : nullptr};
    for (const Values &values : p.inputs) in_.emplace_back(values);
    arrays.x = in_[X].get(), arrays.h0 = in_[H0].get(), arrays.c0 = in_[C0].get();
    arrays.w_ih = in_[W_IH].get(), arrays.w_hh = in_[W_HH].get();
    arrays.b_ih = in_[B_IH].get(), arrays.b_hh = in_[B_HH].get();
    arrays.y = y_.get(), arrays.h_n = h_n_.get(), arrays.c_n = c_n_.get();
  }

  const void *w_hr() const { return w_hr_.get(); }
  std::array<Values, OUTPUTS> outputs() const {
    return {y_.values(), h_n_.values(), c_n_.values()};
  }

  fastrnn_problem problem;
  fastrnn_forward_arrays arrays{};

 private:
  const std::vector<int64_t> batch_sizes_;
  std::vector<Buffer<S>> in_;
  const Buffer<S> y_, h_n_, c_n_, w_hr_;
};

inline void compare_projected(const std::array<Values, OUTPUTS> &got,
                              const std::array<Values, OUTPUTS> &expected, double limit,
                              const std::string &where) {
  for (int i = 0; i < OUTPUTS; ++i) compare(got[i], expected[i], limit, where, kOutputs[i]);
}

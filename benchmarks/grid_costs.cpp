// Measures the costs in kernels/csrc/cpu/grid.h, for each arithmetic, on the machine at hand, and
// compares the grids that the model chooses with the fastest ones. Nothing else should run
// meanwhile.
//
//   cmake -S . -B build && cmake --build build --target fastrnn_grid_costs &&
//   build/fastrnn_grid_costs
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <vector>

#include <cpu/grid.h>
#include <cpu/levels.h>
#include <cpu/run.h>

namespace {

using namespace fastrnn;

constexpr int kRepeats = 61;

double seconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

// The shortest time of a call, over many short runs: other programs only ever add to it.
template <class F>
double shortest_seconds(F &&call) {
  double shortest = 0;
  for (int i = 0; i < kRepeats; ++i) {
    const double start = seconds();
    call();
    const double time = seconds() - start;
    if (i == 0 || time < shortest) shortest = time;
  }
  return shortest;
}

// Cycles per second of a core: a multiplication that depends on the previous one takes three.
double clock_rate() {
  constexpr int kSteps = 1000000;
  volatile uint64_t sink = 3;
  return 3 * kSteps / shortest_seconds([&] {
           uint64_t x = sink;
           for (int i = 0; i < kSteps; ++i) {
             x *= x;
             __asm__ volatile("" : "+r"(x));
           }
           sink = x;
         });
}

// A forward call of an LSTM with one input feature, on a grid of choice.
class Call {
 public:
  Call(int dtype, int64_t steps, int64_t batch, int64_t hidden)
      : x_(bytes(steps * batch)), state_(bytes(2 * batch * hidden)), weights_(bytes(4 * hidden)),
        recurrent_(bytes(4 * hidden * hidden)), y_(bytes((steps + 2) * batch * hidden)),
        problem_{FASTRNN_LSTM, dtype, 0, 2, steps, batch, 1, hidden, nullptr} {
    arrays_.x = x_.data();
    arrays_.h0 = arrays_.c0 = state_.data();
    arrays_.w_ih = weights_.data();
    arrays_.w_hh = recurrent_.data();
    arrays_.h_n = y_.data();
    arrays_.c_n = y_.data() + batch * hidden;
    arrays_.y = y_.data() + 2 * batch * hidden;
    job_.problem = &problem_;
    job_.forward = &arrays_;
    job_.walk = walk_of(problem_, nullptr);
  }

  Arithmetic arithmetic() const { return current_level().arithmetic(problem_.dtype); }
  const fastrnn_problem &problem() const { return problem_; }
  double cycles(Grid grid, double rate) {
    job_.grid = grid;
    return rate * shortest_seconds([&] {
             int team = 0;
             if (run_on_grid(job_, current_level(), &team) || team != grid.threads()) std::abort();
           });
  }

 private:
  using Array = std::vector<double>;  // zeros, with room for any dtype
  static Array bytes(int64_t elements) { return Array(size_t(elements)); }

  Array x_, state_, weights_, recurrent_, y_;
  fastrnn_problem problem_;
  fastrnn_forward_arrays arrays_{};
  Job job_{};
};

// The cost of one step: the difference between calls of two lengths, which also removes the packing
// of weights and the waking of threads.
double step_cost(int dtype, int64_t batch, int64_t hidden, Grid grid, double rate) {
  const int64_t work = batch * hidden * hidden;
  const int64_t steps = std::clamp<int64_t>(4000000 / work, 2, 400);
  Call one(dtype, steps, batch, hidden), three(dtype, 3 * steps, batch, hidden);
  return (three.cycles(grid, rate) - one.cycles(grid, rate)) / double(2 * steps);
}

void measure(const char *name, int dtype, double rate) {
  const Arithmetic arithmetic = Call(dtype, 1, 1, 1).arithmetic();
  const int lanes = arithmetic.lanes;
  const CostModel model = cost_model(dtype, arithmetic.pairs);
  const auto vectors = [&](int64_t hidden) { return double(hidden / lanes * 4 * (hidden + 1)); };
  std::printf("%s\n", name);
  for (const int64_t hidden : {64, 128, 256})
    std::printf("  cycles per product, H %3d: %.2f\n", int(hidden),
                step_cost(dtype, 48, hidden, {1, 1}, rate) / vectors(hidden) / 48);
  for (const int64_t hidden : {64, 128, 256, 384, 512, 768}) {
    const double bytes = vectors(hidden) * lanes * model.weight_bytes;
    std::printf("  bytes per cycle, %5d KiB: %.1f\n", int(bytes / 1024),
                bytes / step_cost(dtype, 1, hidden, {1, 1}, rate));
  }
  for (const int64_t hidden : {2, 4}) {
    const int64_t units = hidden * lanes;
    std::printf(
        "  barrier, H %d: %.0f\n", int(units),
        step_cost(dtype, 1, units, {1, 2}, rate) - step_cost(dtype, 1, units, {1, 1}, rate) / 2);
  }
  Call two_rows(dtype, 1, 2, lanes), one_row(dtype, 1, 1, lanes);
  std::printf("  waking a thread: %.0f\n",
              two_rows.cycles({2, 1}, rate) - one_row.cycles({1, 1}, rate));
}

// The model's choice for two threads against the fastest grid.
void compare(const char *name, int dtype, double rate) {
  std::printf("%s: cycles per step predicted/measured on 1x1, 2x1 and 1x2; chosen; loss\n", name);
  for (const int64_t batch : {1, 2, 8, 32, 200})
    for (const int64_t hidden : {32, 64, 128, 256}) {
      Call call(dtype, 1, batch, hidden);
      fastrnn_problem problem = call.problem();
      problem.steps = 784;
      const Grid chosen = choose_grid(problem, call.arithmetic(), 2);
      double fastest = 0, of_chosen = 0;
      std::printf("  B %3d H %3d:", int(batch), int(hidden));
      for (const Grid grid : {Grid{1, 1}, Grid{2, 1}, Grid{1, 2}}) {
        if (grid.row_groups > batch ||
            grid.column_groups > ceil_div(hidden, call.arithmetic().lanes)) {
          std::printf("%16s", "-");
          continue;
        }
        const double cycles = step_cost(dtype, batch, hidden, grid, rate);
        std::printf(" %7.0f/%7.0f", step_cycles(problem, call.arithmetic(), grid), cycles);
        if (fastest == 0 || cycles < fastest) fastest = cycles;
        if (grid.row_groups == chosen.row_groups && grid.column_groups == chosen.column_groups)
          of_chosen = cycles;
      }
      std::printf("  %dx%d %+.0f%%\n", chosen.row_groups, chosen.column_groups,
                  100 * (of_chosen / fastest - 1));
    }
}

}  // namespace

int main() {
  const double rate = clock_rate();
  std::printf("level %s, %.2f GHz\n", current_level().name, rate / 1e9);
  const struct {
    const char *name;
    int dtype;
  } kArithmetics[] = {
      {"float32", FASTRNN_FLOAT32}, {"float64", FASTRNN_FLOAT64}, {"bfloat16", FASTRNN_BFLOAT16}};
  for (const auto &arithmetic : kArithmetics) measure(arithmetic.name, arithmetic.dtype, rate);
  for (const auto &arithmetic : kArithmetics) compare(arithmetic.name, arithmetic.dtype, rate);
}

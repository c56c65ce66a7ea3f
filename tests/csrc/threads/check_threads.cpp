// Runs the CPU kernels on every kind of grid of threads, whatever kernels/csrc/cpu/grid.h would
// choose for such small problems, and several calls at once. For the thread sanitizer; the runtime
// of openmp.h stands in for GCC's.
#include <cpu/grid.h>
#include <cpu/prepacked.h>
#include <cpu/run.h>

#include "../layer.h"
#include "openmp.h"

#include <thread>

namespace {

using fastrnn::Grid;

std::string name(const Shape &shape, Grid grid, const char *dtype) {
  std::ostringstream text;
  text << shape.name() << " " << dtype << " level " << fastrnn_cpu_level() << " grid "
       << grid.row_groups << "x" << grid.column_groups;
  return text.str();
}

// Runs a job on a grid.
void run(fastrnn::Job job, const fastrnn_problem &problem, Grid grid, const std::string &where) {
  std::vector<int64_t> offsets(size_t(problem.steps + 1));
  job.problem = &problem;
  job.walk = fastrnn::walk_of(problem, offsets.data());
  job.grid = grid;
  int team = 0;
  require(fastrnn::run_on_grid(job, fastrnn::current_level(), &team), where);
  if (team != grid.threads()) fail(where, "threads", team, grid.threads());
}

struct Runs {
  Results packed, in_place;
};

// Forward with weights that are packed, that are prepacked and that are read in place, and backward
// with and without the gradient of the input.
template <class S>
Runs run_all(const Problem &p, Grid grid, double rounding, const std::string &where) {
  Layer<S> layer(p, 1, true);
  const Prepacked prepacked(layer.problem, layer.forward);
  fastrnn::Job job{};
  job.forward = &layer.forward;
  job.in_place = true;
  run(job, layer.problem, grid, where);
  const Results in_place = layer.results();
  job.in_place = false;
  run(job, layer.problem, grid, where);
  const Results packed = layer.results();
  compare_outputs(in_place, packed, rounding, where + " in place");
  job.prepacked = prepacked.get() + sizeof(fastrnn::PrepackedHeader);
  run(job, layer.problem, grid, where);
  compare_outputs(layer.results(), packed, 0, where + " prepacked");
  fastrnn::Job back{};
  back.backward = &layer.backward;
  run(back, layer.problem, grid, where);
  const Results results = layer.results();
  layer.backward.dx = nullptr;
  run(back, layer.problem, grid, where);
  return {results, in_place};
}

template <class S>
void check(const Problem &p, const std::vector<Grid> &grids, const char *dtype, double rounding,
           double limit) {
  const int64_t lanes = fastrnn::current_level().vector_bytes / (sizeof(S) == 8 ? 8 : 4);
  const Runs expected = run_all<S>(p, {}, rounding, name(p.shape, {}, dtype));
  for (const Grid grid : grids) {
    if (grid.row_groups > p.shape.batch ||
        grid.column_groups > fastrnn::ceil_div(p.shape.hidden, lanes))
      continue;
    const std::string where = name(p.shape, grid, dtype);
    const Runs runs = run_all<S>(p, grid, rounding, where);  // outputs do not depend on the grid
    compare_all(runs.packed, expected.packed, 0, limit, where);
    compare_outputs(runs.in_place, expected.in_place, 0, where + " in place");
  }
}

// A projected layer, whose threads also wait for each other within a step.
template <class S>
void check_projected(const Problem &p, const std::vector<Grid> &grids, double limit) {
  const int64_t lanes = fastrnn::current_level().vector_bytes / (sizeof(S) == 8 ? 8 : 4);
  for (const bool in_place : {false, true}) {
    if (in_place && p.shape.proj_size < lanes) continue;
    const auto results = [&](Grid grid) {
      Layer<S> layer(p, 1, true);
      fastrnn::Job job{};
      job.w_hr = layer.w_hr(), job.proj_size = p.shape.proj_size;
      job.forward = &layer.forward, job.in_place = in_place;
      run(job, layer.problem, grid, p.shape.name());
      job.forward = nullptr, job.backward = &layer.backward, job.dw_hr = layer.dw_hr();
      run(job, layer.problem, grid, p.shape.name());
      return layer.results();
    };
    const Results expected = results({});
    for (const Grid grid : grids)
      if (grid.row_groups <= p.shape.batch &&
          grid.column_groups <= fastrnn::ceil_div(p.shape.hidden, lanes))
        compare_all(results(grid), expected, 0, limit, name(p.shape, grid, "projected"));
  }
}

// Calls through the C interface, each with several threads, from several threads.
void check_calls_at_once(const Shape &shape) {
  std::mt19937 random(9);
  const Problem problem(shape, random);
  const auto call = [&problem] {
    Layer<float> layer(problem, 3, true);
    require(fastrnn_cpu_forward(&layer.problem, &layer.forward), problem.shape.name());
    require(fastrnn_cpu_backward(&layer.problem, &layer.backward), problem.shape.name());
    return layer.results();
  };
  const Results expected = call();
  std::vector<Results> results(3);
  std::vector<std::thread> callers;
  for (Results &result : results) callers.emplace_back([&] { result = call(); });
  for (std::thread &caller : callers) caller.join();
  for (const Results &result : results)
    compare_all(result, expected, 0, 0, shape.name() + " at once");
  for (const int most : {1, 2}) {  // a system that has fewer threads than asked for
    limit_team(most);
    compare_all(call(), expected, 0, 1e-5, shape.name() + " threads " + std::to_string(most));
  }
  limit_team(1 << 16);
}

}  // namespace

int main() {
  // T, B, I, H: narrow and wide inputs, and so few rows that backward does not pack the weights.
  const int64_t sizes[][4] = {{3, 5, 2, 37}, {4, 7, 40, 21}, {2, 1, 3, 26}, {2, 4, 9, 20}};
  const std::vector<Grid> grids = {{1, 2}, {2, 1}, {1, 3}, {3, 1}, {2, 2}, {1, 4}, {4, 1}};
  std::mt19937 random(5);
  int shapes = 0;
  for (const std::string &level : levels()) {
    require(fastrnn_cpu_select_level(level.c_str()), "select_level");
    for (int cell : {FASTRNN_LSTM, FASTRNN_GRU}) {
      for (const int64_t *size : sizes) {
        const bool packed = shapes++ % 2, bias = shapes % 3;
        const Problem p({cell, size[0], size[1], size[2], size[3], packed, packed, bias}, random);
        check<float>(p, grids, "float32", 1e-6, 1e-5);
        check<double>(p, grids, "float64", 1e-12, 1e-11);
        check<Bfloat16>(p, grids, "bfloat16", 1e-2, 2e-2);
      }
      // T, B, P: fewer panels than threads, about as many as H has; few rows, and several chunks
      const int64_t projected[][3] = {{3, 5, 3}, {3, 5, 33}, {2, 4, 20}, {40, 30, 33}};
      for (const int64_t *size : projected) {
        if (cell != FASTRNN_LSTM) break;
        for (const bool packed : {false, true}) {
          const Problem p({cell, size[0], size[1], 2, 37, packed, packed, true, size[2]}, random);
          check_projected<float>(p, grids, 1e-5);
          check_projected<double>(p, grids, 1e-11);
          check_projected<Bfloat16>(p, {{1, 2}, {2, 2}}, 2e-2);
          shapes += 3;
        }
      }
      // So many rows that backward and the projection of the input work in chunks.
      const Problem large({cell, 20, 40, 33, 65, false, false, true}, random);
      check<float>(large, {{1, 3}, {2, 2}}, "float32", 1e-6, 1e-5);
      check<Bfloat16>(large, {{1, 2}}, "bfloat16", 1e-2, 2e-2);
      check_calls_at_once({cell, 20, 6, 3, 70, true, false, true});
      ++shapes;
    }
  }
  thinning = 3;
  shapes += check_pixels();
  std::printf("threads: %d shapes, levels %s: %d failures\n", shapes, fastrnn_cpu_levels(),
              failures);
  return failures ? 1 : 0;
}

// What kernels/csrc/cpu/grid.h chooses for sizes on either side of its decisions. The results of a
// layer do not depend on it; its speed does.
#include <cpu/grid.h>

#include "check.h"

namespace {

struct Choice {
  int dtype, threads;
  int64_t steps, batch, hidden;
  int row_groups, column_groups;
};

// An LSTM with one input feature and 64-byte vectors.
const Choice kChoices[] = {
    {FASTRNN_FLOAT32, 2, 1, 1, 32, 1, 1},      {FASTRNN_FLOAT32, 2, 784, 1, 32, 1, 1},
    {FASTRNN_FLOAT32, 2, 784, 1, 64, 1, 2},    {FASTRNN_FLOAT32, 2, 784, 2, 128, 1, 2},
    {FASTRNN_FLOAT32, 2, 784, 200, 128, 1, 2}, {FASTRNN_FLOAT32, 2, 784, 32, 256, 1, 2},
    {FASTRNN_FLOAT32, 4, 784, 2, 256, 1, 4},   {FASTRNN_FLOAT32, 8, 784, 200, 512, 1, 8},
    {FASTRNN_FLOAT32, 1, 784, 200, 512, 1, 1}, {FASTRNN_FLOAT64, 2, 784, 1, 48, 1, 2},
    {FASTRNN_FLOAT64, 2, 784, 2, 64, 1, 2},    {FASTRNN_FLOAT64, 2, 784, 4, 64, 1, 2},
    {FASTRNN_FLOAT64, 2, 784, 200, 128, 1, 2}, {FASTRNN_BFLOAT16, 2, 784, 2, 64, 1, 2},
    {FASTRNN_BFLOAT16, 2, 784, 1, 64, 1, 2},   {FASTRNN_BFLOAT16, 2, 784, 200, 128, 1, 2},
};

// Whether a forward call reads its weights in place.
struct InPlace {
  int64_t steps, hidden;
  bool in_place, wide, in_pairs;  // 8 and 16 lanes, and 16 that multiply pairs
};

const InPlace kInPlace[] = {
    {1, 63, false, false, false}, {1, 64, true, true, false},    {1, 256, true, true, true},
    {2, 64, false, false, false}, {2, 128, true, true, false},   {2, 511, true, true, false},
    {2, 512, true, true, true},   {4, 255, false, false, false}, {4, 256, true, false, false},
    {4, 512, true, true, false},  {4, 1024, true, true, true},   {5, 512, false, false, false},
    {5, 640, true, true, false},  {8, 1024, true, true, false},  {9, 1024, false, false, false},
};

}  // namespace

void check_grid() {
  for (const InPlace &c : kInPlace) {
    const fastrnn_problem problem = {FASTRNN_GRU, FASTRNN_FLOAT32, 0,        1,      c.steps,
                                     1,           c.hidden,        c.hidden, nullptr};
    const auto check = [&](const char *what, fastrnn::Arithmetic arithmetic, bool expected) {
      const bool in_place = fastrnn::reads_in_place(problem, arithmetic);
      if (in_place != expected) fail(what, "in place", in_place, expected);
    };
    check("weights, 8 lanes", {8}, c.in_place);
    check("weights, 16 lanes", {16}, c.wide);
    check("weights in pairs", {16, true}, c.in_pairs);
  }
  // To transpose weights is worth a second thread; to read prepacked ones in two steps is not.
  const fastrnn_problem brief = {FASTRNN_LSTM, FASTRNN_FLOAT32, 0, 2, 2, 1, 96, 96, nullptr};
  for (const bool prepacked : {false, true}) {
    const int threads = fastrnn::choose_grid(brief, {16}, 2, prepacked).threads();
    if (threads != (prepacked ? 1 : 2)) fail("grid, prepacked", "threads", threads, 2 - prepacked);
  }
  for (const Choice &c : kChoices) {
    const fastrnn_problem problem = {FASTRNN_LSTM, c.dtype, 0,        c.threads, c.steps,
                                     c.batch,      1,       c.hidden, nullptr};
    const int lanes = c.dtype == FASTRNN_FLOAT64 ? 8 : 16;
    const fastrnn::Grid grid = fastrnn::choose_grid(problem, {lanes}, c.threads);
    std::ostringstream where;
    where << "grid, dtype " << c.dtype << " threads " << c.threads << " T " << c.steps << " B "
          << c.batch << " H " << c.hidden;
    if (grid.row_groups != c.row_groups)
      fail(where.str(), "row groups", grid.row_groups, c.row_groups);
    if (grid.column_groups != c.column_groups)
      fail(where.str(), "column groups", grid.column_groups, c.column_groups);
  }
}

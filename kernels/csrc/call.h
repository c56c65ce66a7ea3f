// What the C interfaces of both libraries share.
#pragma once

#include "fastrnn.h"

namespace fastrnn {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Runs body(problem, arrays) if the problem is valid and there is something to compute. check_error
// is the result of checking the problem.
template <class Problem, class Arrays, class Body>
int run_call(int check_error, const Problem *problem, const Arrays *arrays, Body &&body) {
  if (check_error != FASTRNN_OK) return check_error;
  if (!arrays) return FASTRNN_ERROR_ARGUMENT;
  if (problem->steps == 0 || problem->batch == 0) return FASTRNN_OK;
  return body(*problem, *arrays);
}

// The text of an error of fastrnn.h.
inline const char *error_text(int error) {
  switch (error) {
    case FASTRNN_OK:
      return "no error";
    case FASTRNN_ERROR_ARGUMENT:
      return "an argument is out of range";
    case FASTRNN_ERROR_MEMORY:
      return "out of memory for scratch space";
    case FASTRNN_ERROR_LEVEL:
      return "the processor or the build lacks this instruction set";
    default:
      return "unknown error";
  }
}

}  // namespace fastrnn

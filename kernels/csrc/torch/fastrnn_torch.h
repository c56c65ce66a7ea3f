/* The C interface of libfastrnn_torch: ops that run a whole stack of layers in one call.
 *
 * The library is built without torch, see functions.h. It is optional: without it, layers run one
 * by one from Python, with the same numbers.
 */
#ifndef FASTRNN_TORCH_H
#define FASTRNN_TORCH_H

#include "fastrnn.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What decides where a stack of layers runs. */
typedef struct {
  int32_t cell, dtype, threads;                  /* as in fastrnn_problem */
  int32_t packed;                                /* whether sequences differ in length */
  int64_t steps, batch, input_size, hidden_size; /* input_size: of the first layer */
} fastrnn_torch_call;

/* Returns whether libfastrnn_cpu shall run a call. Called once for each different call, then
 * remembered. */
typedef int (*fastrnn_torch_choose)(const fastrnn_torch_call *);
typedef int (*fastrnn_cpu_forward_function)(const fastrnn_problem *,
                                            const fastrnn_forward_arrays *);
typedef int64_t (*fastrnn_cpu_prepacked_bytes_function)(const fastrnn_problem *);
typedef int (*fastrnn_cpu_forward_prepacked_function)(const fastrnn_problem *,
                                                      const fastrnn_forward_arrays *,
                                                      const void *prepacked);

/* The names of the functions of torch that fastrnn_torch_bind expects, separated by spaces. */
FASTRNN_API const char *fastrnn_torch_functions(void);
/* Must be called once, before any other function. torch_functions: the functions' addresses, in the
 * order of their names. */
FASTRNN_API int fastrnn_torch_bind(void *const *torch_functions, fastrnn_cpu_forward_function,
                                   fastrnn_torch_choose, fastrnn_cpu_prepacked_bytes_function,
                                   fastrnn_cpu_forward_prepacked_function);
/* Makes this library's kernels those of the ops stack, packed_stack, frozen_stack and
 * frozen_packed_stack of the namespace fastrnn, whose schemas must be defined. */
FASTRNN_API int fastrnn_torch_register(void);
/* Forgets every choice. */
FASTRNN_API void fastrnn_torch_forget(void);
/* Bounds the threads of a call; for a forked process, where GCC's OpenMP would hang. */
FASTRNN_API void fastrnn_torch_limit_threads(int most);

#ifdef __cplusplus
}
#endif
#endif

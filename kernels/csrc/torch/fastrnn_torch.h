/* The C interface of libfastrnn_torch: ops that run a whole stack of layers in one call,
 * or a layer's passes in training.
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
  int64_t proj_size;                             /* 0: no projection */
} fastrnn_torch_call;

/* Returns whether libfastrnn_cpu should run a call. It is called once for each different call, and
 * its answer is cached. */
typedef int (*fastrnn_torch_choose)(const fastrnn_torch_call *);
/* The functions of libfastrnn_cpu, without their prefix, that run layers. */
typedef struct {
  int (*forward)(const fastrnn_problem *, const fastrnn_forward_arrays *);
  int (*backward)(const fastrnn_problem *, const fastrnn_backward_arrays *);
  int64_t (*prepacked_bytes)(const fastrnn_problem *);
  int (*forward_prepacked)(const fastrnn_problem *, const fastrnn_forward_arrays *,
                           const void *prepacked);
  int (*forward_projected)(const fastrnn_problem *, const fastrnn_forward_arrays *,
                           const void *w_hr, int64_t proj_size);
  int (*backward_projected)(const fastrnn_problem *, const fastrnn_backward_arrays *,
                            const void *w_hr, void *dw_hr, int64_t proj_size);
} fastrnn_cpu_functions;

/* The names of the functions of torch that fastrnn_torch_bind expects, separated by spaces. */
FASTRNN_API const char *fastrnn_torch_functions(void);
/* Must be called once, before any other function below. torch_functions: the functions' addresses,
 * in the order of their names. */
FASTRNN_API int fastrnn_torch_bind(void *const *torch_functions, const fastrnn_cpu_functions *,
                                   fastrnn_torch_choose);
/* The names of the ops, separated by spaces. */
FASTRNN_API const char *fastrnn_torch_ops(void);
/* Makes this library's kernels those of its ops in the namespace fastrnn, whose schemas must be
 * defined. */
FASTRNN_API int fastrnn_torch_register(void);
/* Forgets every choice. */
FASTRNN_API void fastrnn_torch_forget(void);
/* Bounds the threads of a call; for a forked process, where GCC's OpenMP would hang. */
FASTRNN_API void fastrnn_torch_limit_threads(int most);

#ifdef __cplusplus
}
#endif
#endif

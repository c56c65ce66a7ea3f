/* The C interface of libfastrnn_cuda: whole sequences on an NVIDIA GPU. It knows neither Python nor
 * torch. Shapes, rows and the order of gates are those of fastrnn.h; every pointer but the structures'
 * own is to the device's memory. Calls queue their work on a stream and do not wait for it.
 *
 * An error is one of fastrnn.h or, from FASTRNN_CUDA_ERROR on, the CUDA runtime's own.
 */
#ifndef FASTRNN_CUDA_H
#define FASTRNN_CUDA_H

#include "fastrnn.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { FASTRNN_CUDA_ERROR = 1000 };

/* One layer in one direction. float32, bfloat16 or float16. */
typedef struct {
  int32_t cell, dtype;
  int32_t reverse; /* walk each sequence from its last step to its first */
  int32_t tf32;    /* round the operands of float32 products to TF32 */
  int64_t steps, batch, hidden_size;
  int64_t input_size;     /* at most 4, projected in each step; 0: x is the projection W_ih x */
  const int64_t *offsets; /* [T]: the first row of each step; NULL: all steps have B rows */
  const int32_t *lengths; /* [B], non-increasing: each sequence's steps; NULL with offsets */
} fastrnn_cuda_problem;

/* The matrix products over all rows stand outside: x, w_ih and y have the caller's gradients from
 * dgates, the gradients before activation. */
typedef struct {
  const void *dy;          /* [N, H], or NULL: zeros */
  const void *dh_n, *dc_n; /* [B, H]; dc_n: LSTM only */
  const void *w_hh_t;      /* [H, G*H]: W_hh transposed */
  const void *h0, *y;      /* as in the forward call; GRU only */
  const void *c0, *cells;  /* LSTM only */
  const void *gates;
  void *dgates;            /* [N, 4H]. LSTM: of i f g o. GRU: of n r z and m, so that those of the
                              input's product stand first and those of the recurrent one last */
  void *dh0, *dc0;         /* [B, H] */
} fastrnn_cuda_backward_arrays;

/* What the library was compiled for, as in "sm_80 sm_90a compute_90": the last is for newer ones. */
FASTRNN_API const char *fastrnn_cuda_architectures(void);

/* Whether the kernels can run on a device; an error where there is no driver. */
FASTRNN_API int fastrnn_cuda_check(int device);

/* How many bytes of scratch memory, aligned to 256 bytes, a call needs; perhaps none. */
FASTRNN_API int fastrnn_cuda_scratch(const fastrnn_cuda_problem *, int backward, int device,
                                     int64_t *bytes);
FASTRNN_API int fastrnn_cuda_forward(const fastrnn_cuda_problem *, const fastrnn_forward_arrays *,
                                     void *scratch, int device, void *stream);
FASTRNN_API int fastrnn_cuda_backward(const fastrnn_cuda_problem *,
                                      const fastrnn_cuda_backward_arrays *, void *scratch,
                                      int device, void *stream);

FASTRNN_API const char *fastrnn_cuda_error_string(int error);

#ifdef __cplusplus
}
#endif
#endif

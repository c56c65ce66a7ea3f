/* The C interface of libfastrnn_cuda, which runs whole sequences on an NVIDIA GPU. It depends on
 * neither Python nor torch. Shapes, rows and the order of gates are those of fastrnn.h. The
 * pointers inside the structures are to device memory. A call queues its work on a stream and does
 * not wait for it.
 *
 * An error is one of fastrnn.h, or FASTRNN_CUDA_ERROR plus the error of the CUDA runtime.
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
  int32_t reverse; /* process each sequence from its last step to its first */
  int32_t tf32;    /* round the operands of float32 products to TF32 */
  int64_t steps, batch, hidden_size;
  int64_t input_size;     /* at most 4: each step computes W_ih x; 0: x already holds W_ih x */
  const int64_t *offsets; /* [T]: the first row of each step; NULL: all steps have B rows */
  const int32_t *lengths; /* [B], non-increasing: steps per sequence, at least 1; NULL if offsets is
                             NULL */
} fastrnn_cuda_problem;

/* The caller computes the gradients of x, the weights and the biases: they are products and sums
 * over all rows of dgates, the gradients before the activations. */
typedef struct {
  const void *dy;          /* [N, H], or NULL: zeros */
  const void *dh_n, *dc_n; /* [B, H]; dc_n: LSTM only */
  const void *w_hh_t;      /* [H, G*H]: W_hh transposed */
  const void *h0, *y;      /* as in the forward call; GRU only */
  const void *c0, *cells;  /* LSTM only */
  const void *gates;
  void *dgates;    /* [N, 4H]. LSTM: i f g o. GRU: n r z m, so that the first three belong to the
                      input product and the last three to the recurrent product */
  void *dh0, *dc0; /* [B, H] */
} fastrnn_cuda_backward_arrays;

/* The architectures the library was compiled for, for example "sm_80 sm_90a compute_90". The last
 * one is PTX, which newer GPUs compile when they load it. */
FASTRNN_API const char *fastrnn_cuda_architectures(void);

/* FASTRNN_OK if the kernels can run on the device; an error if not, or if there is no driver. */
FASTRNN_API int fastrnn_cuda_check(int device);

/* Sets *bytes to the size of the scratch memory that a call needs, aligned to 256 bytes; may be 0.
 */
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

/* The C interface of fastrnn's native libraries. It depends on neither Python nor torch.
 *
 * Shapes: T steps, B sequences, I input features, H hidden units, N rows over all steps, G gates.
 * Rows have the layout of PackedSequence: step t of sequence b is row offset[t] + b, for
 * b < batch_sizes[t], where offset[t] is the sum of the batch sizes before t. In a padded,
 * time-major batch every batch_sizes[t] is B. Every array is contiguous, row-major, and of the
 * problem's dtype.
 */
#ifndef FASTRNN_H
#define FASTRNN_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define FASTRNN_API __declspec(dllexport)
#else
#define FASTRNN_API __attribute__((visibility("default")))
#endif

enum { FASTRNN_ABI_VERSION = 2 };

enum { FASTRNN_LSTM = 0, FASTRNN_GRU = 1 };

enum { FASTRNN_FLOAT32 = 0, FASTRNN_FLOAT64 = 1, FASTRNN_BFLOAT16 = 2, FASTRNN_FLOAT16 = 3 };

enum {
  FASTRNN_OK = 0,
  FASTRNN_ERROR_ARGUMENT = 1, /* a size, a pointer or an enumerator is out of range */
  FASTRNN_ERROR_MEMORY = 2,   /* scratch memory could not be allocated */
  FASTRNN_ERROR_LEVEL = 3     /* the processor or the build lacks the requested instruction set */
};

/* One layer in one direction. */
typedef struct {
  int32_t cell;    /* FASTRNN_LSTM (gates i f g o) or FASTRNN_GRU (gates r z n) */
  int32_t dtype;   /* FASTRNN_FLOAT32, ...; bfloat16 is computed in float32 */
  int32_t reverse; /* process each sequence from its last step to its first */
  int32_t threads; /* at most this many threads work, >= 1 */
  int64_t steps, batch, input_size, hidden_size;
  const int64_t *batch_sizes; /* [T], non-increasing, batch_sizes[0] == B; NULL: all B */
} fastrnn_problem;

typedef struct {
  const void *x;           /* [N, I] */
  const void *h0, *c0;     /* [B, H]; c0: LSTM only */
  const void *w_ih;        /* [G*H, I] */
  const void *w_hh;        /* [G*H, H] */
  const void *b_ih, *b_hh; /* [G*H], or both NULL */
  void *y;                 /* [N, H] */
  void *h_n, *c_n;         /* [B, H]: the final state of each sequence; c_n: LSTM only */
  void *gates;             /* [N, 4H], or NULL, in an order of its own for backward with the same
                              instruction set. LSTM: i f g o, activated. GRU: r z n, activated, and
                              m = W_hn h + b_hn, the recurrent half of n */
  void *cells;             /* [N, H]; NULL if gates is NULL, and for GRU */
} fastrnn_forward_arrays;

typedef struct {
  const void *dy;                                            /* [N, H], or NULL: zeros */
  const void *dh_n, *dc_n;                                   /* [B, H]; dc_n: LSTM only */
  const void *x, *h0, *c0, *w_ih, *w_hh, *y, *gates, *cells; /* as in the forward call */
  void *dx;            /* [N, I], or NULL if it is not needed */
  void *dh0, *dc0;     /* [B, H]; dc0: LSTM only. Each NULL if it is not needed */
  void *dw_ih, *dw_hh; /* [G*H, I], [G*H, H] */
  void *db_ih, *db_hh; /* [G*H]; for LSTM they are equal and db_hh may be NULL */
} fastrnn_backward_arrays;

/* A stack of layers that reads binary pixels, and a head that computes the logit of the next pixel
 * from the state of the last layer. float32. */
typedef struct {
  int32_t cell;
  int32_t layers;  /* L; the first layer reads the pixel, each other one the layer below */
  int32_t threads; /* at most this many threads work, >= 1 */
  int64_t steps, batch, hidden_size;
  const int64_t *lengths; /* [B], non-increasing, each from 0 to T; NULL: all T */
} fastrnn_pixel_problem;

typedef struct {
  const float *const *weights; /* per layer: w_ih, w_hh, b_ih, b_hh, as in the forward call */
  const float *head_weight;    /* [H] */
  const float *head_bias;      /* [1] */
  float *h, *c;                /* [L, B, H]: the initial states on entry, the final ones on return;
                                  c: LSTM only */
  float *logit;            /* [B]: of the first pixel on entry, of the pixel after the last one on
                              return */
  const float *thresholds; /* [B, T], or NULL if the pixels are known */
  uint8_t *pixels;         /* [B, T], 0 or 1. Read if thresholds is NULL; otherwise written: 1
                              where the logit of the pixel is above its threshold */
  float *logits;           /* [B, T]: written; entry t is the logit of pixel t + 1 */
} fastrnn_pixel_arrays;

FASTRNN_API int fastrnn_abi_version(void);
FASTRNN_API int fastrnn_cpu_forward(const fastrnn_problem *, const fastrnn_forward_arrays *);
/* An LSTM layer with a projection: its h is W_hr m, where m is what a layer without one calls h.
 * h0 and h_n are [B, P], y is [N, P], and w_hh is [4H, P]. */
FASTRNN_API int fastrnn_cpu_forward_projected(const fastrnn_problem *,
                                              const fastrnn_forward_arrays *,
                                              const void *w_hr /* [P, H] */, int64_t proj_size);
FASTRNN_API int fastrnn_cpu_backward(const fastrnn_problem *, const fastrnn_backward_arrays *);
/* The gradients of a layer with a projection: dh_n and dh0 are [B, P], dy is [N, P], and dw_hh is
 * [4H, P]. */
FASTRNN_API int fastrnn_cpu_backward_projected(const fastrnn_problem *,
                                               const fastrnn_backward_arrays *, const void *w_hr,
                                               void *dw_hr /* [P, H] */, int64_t proj_size);
/* For a layer that runs many times with the same weights: its weights and biases in the order in
 * which the kernels of the instruction set in use read them. Only the problem's cell, dtype,
 * input_size and hidden_size are read, and only the weights and biases of the arrays. */
FASTRNN_API int64_t fastrnn_cpu_prepacked_bytes(const fastrnn_problem *); /* -1 if it is invalid */
/* Writes them to `prepacked`, aligned to 64 bytes. They may be moved, but only this process can
 * read them. */
FASTRNN_API int fastrnn_cpu_prepack(const fastrnn_problem *, const fastrnn_forward_arrays *,
                                    void *prepacked);
/* A forward call that reads weights and biases from `prepacked` instead of the arrays. It runs the
 * kernels of the instruction set that they were packed for. */
FASTRNN_API int fastrnn_cpu_forward_prepacked(const fastrnn_problem *,
                                              const fastrnn_forward_arrays *,
                                              const void *prepacked);
FASTRNN_API int fastrnn_cpu_pixels(const fastrnn_pixel_problem *, const fastrnn_pixel_arrays *);

/* The instruction set in use ("avx512_bf16", "avx512", "avx2" or "baseline"), and all those that
 * both this processor and this build support, best first, separated by spaces. */
FASTRNN_API const char *fastrnn_cpu_level(void);
FASTRNN_API const char *fastrnn_cpu_levels(void);
/* Selects the instruction set for the whole process; for tests and comparisons. */
FASTRNN_API int fastrnn_cpu_select_level(const char *level);

FASTRNN_API const char *fastrnn_error_string(int error);

#ifdef __cplusplus
}
#endif
#endif

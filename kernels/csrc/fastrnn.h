/* The C interface of fastrnn's native libraries. It knows neither Python nor torch.
 *
 * Shapes: T steps, B sequences, I input features, H hidden units, N rows over all steps, G gates.
 * Rows are walked as PackedSequence lays them out: row offset[t] + b for b < batch_sizes[t], with
 * offset[t] the sum of batch_sizes before t. A padded time-major batch is batch_sizes[t] == B.
 * Every array is contiguous, row-major, and of the problem's dtype.
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
  FASTRNN_ERROR_MEMORY = 2,   /* scratch memory could not be had */
  FASTRNN_ERROR_LEVEL = 3     /* the instruction set asked for is not there */
};

/* One layer in one direction. */
typedef struct {
  int32_t cell;    /* FASTRNN_LSTM (gates i f g o) or FASTRNN_GRU (gates r z n) */
  int32_t dtype;   /* FASTRNN_FLOAT32, ... ; bfloat16 accumulates in float32 */
  int32_t reverse; /* walk each sequence from its last step to its first */
  int32_t threads; /* at most this many threads work, >= 1 */
  int64_t steps, batch, input_size, hidden_size;
  const int64_t *batch_sizes; /* [T], non-increasing, batch_sizes[0] == B; NULL: all B */
} fastrnn_problem;

typedef struct {
  const void *x;          /* [N, I] */
  const void *h0, *c0;    /* [B, H]; c0: LSTM only */
  const void *w_ih;       /* [G*H, I] */
  const void *w_hh;       /* [G*H, H] */
  const void *b_ih, *b_hh; /* [G*H], or both NULL */
  void *y;                /* [N, H] */
  void *h_n, *c_n;        /* [B, H]: each sequence's own last state; c_n: LSTM only */
  void *gates;            /* [N, 4H] or NULL. LSTM: i f g o, activated. GRU: r z n, activated, and
                             m = W_hn h + b_hn, the recurrent half of n */
  void *cells;            /* [N, H], or NULL with gates and for GRU */
} fastrnn_forward_arrays;

typedef struct {
  const void *dy;           /* [N, H], or NULL: zeros */
  const void *dh_n, *dc_n;  /* [B, H]; dc_n: LSTM only */
  const void *x, *h0, *c0, *w_ih, *w_hh, *y, *gates, *cells; /* as in the forward call */
  void *dx;                 /* [N, I], or NULL when it is not needed */
  void *dh0, *dc0;          /* [B, H]; dc0: LSTM only */
  void *dw_ih, *dw_hh;      /* [G*H, I], [G*H, H] */
  void *db_ih, *db_hh;      /* [G*H]; for LSTM the two are equal and db_hh may be NULL */
} fastrnn_backward_arrays;

/* A stack of layers that reads binary pixels, and a head that gives the next pixel's logit from the
 * last layer's state. float32. */
typedef struct {
  int32_t cell;
  int32_t layers;  /* L; the first reads one feature, the pixel, the others the states below */
  int32_t threads; /* at most this many threads work, >= 1 */
  int64_t steps, batch, hidden_size;
  const int64_t *lengths; /* [B], non-increasing, of 0 to T steps each; NULL: all T */
} fastrnn_pixel_problem;

typedef struct {
  const float *const *weights; /* for each layer w_ih, w_hh, b_ih, b_hh as in the forward call */
  const float *head_weight;    /* [H] */
  const float *head_bias;      /* [1] */
  float *h, *c;                /* [L, B, H]: in, the states before; out, those after; c: LSTM only */
  float *logit;                /* [B]: in, of the first pixel; out, of the one after the last */
  const float *thresholds;     /* [B, T], or NULL: the pixels are known */
  uint8_t *pixels;             /* [B, T], 0 or 1: in; with thresholds out: 1 where the logit of the
                                  pixel is above its threshold */
  float *logits;               /* [B, T]: of the pixel after each; out */
} fastrnn_pixel_arrays;

FASTRNN_API int fastrnn_abi_version(void);
FASTRNN_API int fastrnn_cpu_forward(const fastrnn_problem *, const fastrnn_forward_arrays *);
FASTRNN_API int fastrnn_cpu_backward(const fastrnn_problem *, const fastrnn_backward_arrays *);
FASTRNN_API int fastrnn_cpu_pixels(const fastrnn_pixel_problem *, const fastrnn_pixel_arrays *);

/* The instruction set in use ("avx512", "avx2", "baseline"), and those that this processor and this
 * build share, best first, separated by spaces. */
FASTRNN_API const char *fastrnn_cpu_level(void);
FASTRNN_API const char *fastrnn_cpu_levels(void);
/* Chooses a level for the whole process; for tests and comparisons. */
FASTRNN_API int fastrnn_cpu_select_level(const char *level);

FASTRNN_API const char *fastrnn_error_string(int error);

#ifdef __cplusplus
}
#endif
#endif

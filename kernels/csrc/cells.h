// The arithmetic of the LSTM and GRU cells, shared by CPU and GPU. V is a vector or a scalar type
// for which sigmoid(V) and tanh(V) are declared before this file is included. LSTM and GRU share
// all other code in the libraries.
#pragma once

#include "inline.h"

namespace fastrnn::FASTRNN_LEVEL {

// a * b + c. A level with fused operations has one of its own for vectors: of a sum of two
// products, the compiler would fuse one in a tile of one row and the other in a tile of three.
template <class V>
FASTRNN_INLINE V multiply_add(V a, V b, V c) {
  return a * b + c;
}

// i, f, o = sigmoid(W x + U h + b); g = tanh(W x + U h + b); c' = f c + i g; h' = o tanh(c').
struct Lstm {
  static constexpr int kGates = 4;
  static constexpr bool kHasCell = true;
  // The order of gate gradients in a row, and the block of rows of W_hh that gradient d multiplies.
  enum { kDI, kDF, kDG, kDO };
  static constexpr FASTRNN_INLINE int recurrent_block(int d) { return d; }

  // One step. gate: i f g o, before activation on entry and after it on return. c: the old cell
  // state on entry, the new one on return. Returns the new h.
  template <class V>
  static FASTRNN_INLINE V forward(V (&gate)[4], V h, V &c) {
    open(gate, c);
    return close(gate, h, c);
  }
  // The same in two parts, so that several rows can be computed together.
  template <class V>
  static FASTRNN_INLINE void open(V (&gate)[4], V &c) {
    gate[0] = sigmoid(gate[0]);
    gate[1] = sigmoid(gate[1]);
    gate[2] = tanh(gate[2]);
    gate[3] = sigmoid(gate[3]);
    c = multiply_add(gate[1], c, gate[0] * gate[2]);
  }
  template <class V>
  static FASTRNN_INLINE V close(V (&gate)[4], V /*h*/, V c) {
    return gate[3] * tanh(c);
  }

  // One step back. dh: the gradient of h' on entry; on return, the part of the gradient of h that
  // does not pass through the recurrent product. dc: the gradient of c' on entry, of c on return.
  // d: returns the gradients before the activations.
  template <class V>
  static FASTRNN_INLINE void backward(const V (&gate)[4], V /*h*/, V c, V c_new, V &dh, V &dc,
                                      V (&d)[4]) {
    const V i = gate[0], f = gate[1], g = gate[2], o = gate[3];
    const V t = tanh(c_new);
    const V dc_new = dc + dh * o * (1 - t * t);
    d[kDI] = dc_new * g * i * (1 - i);
    d[kDF] = dc_new * c * f * (1 - f);
    d[kDG] = dc_new * i * (1 - g * g);
    d[kDO] = dh * t * o * (1 - o);
    dc = dc_new * f;
    dh = V{};
  }
};

// r, z = sigmoid(W x + U h + b); m = U_n h + b_hn; n = tanh(W_n x + b_in + r m);
// h' = n + z (h - n).
struct Gru {
  static constexpr int kGates = 3;
  static constexpr bool kHasCell = false;
  // The recurrent product uses the first three columns, the input product the last three.
  enum { kDM, kDR, kDZ, kDN };
  static constexpr FASTRNN_INLINE int recurrent_block(int d) { return (d + 2) % 3; }

  // One step. gate: on entry r and z before activation, the input's part of n, and m; on return
  // r z n m, activated. Returns the new h.
  template <class V>
  static FASTRNN_INLINE V forward(V (&gate)[4], V h, V &c) {
    open(gate, c);
    return close(gate, h, c);
  }
  template <class V>
  static FASTRNN_INLINE void open(V (&gate)[4], V & /*c*/) {
    gate[0] = sigmoid(gate[0]);
    gate[1] = sigmoid(gate[1]);
    gate[2] = gate[2] + gate[0] * gate[3];
  }
  template <class V>
  static FASTRNN_INLINE V close(V (&gate)[4], V h, V /*c*/) {
    gate[2] = tanh(gate[2]);
    return gate[2] + gate[1] * (h - gate[2]);
  }

  // One step back; the arguments are as in Lstm::backward.
  template <class V>
  static FASTRNN_INLINE void backward(const V (&gate)[4], V h, V /*c*/, V /*c_new*/, V &dh,
                                      V & /*dc*/, V (&d)[4]) {
    const V r = gate[0], z = gate[1], n = gate[2], m = gate[3];
    d[kDN] = dh * (1 - z) * (1 - n * n);
    d[kDM] = d[kDN] * r;
    d[kDR] = d[kDM] * m * (1 - r);
    d[kDZ] = dh * (h - n) * z * (1 - z);
    dh = dh * z;
  }
};

}  // namespace fastrnn::FASTRNN_LEVEL

// One layer in one direction, for training: a forward pass that saves what backward needs, and the
// backward pass.
#pragma once

#include <vector>

#include "fastrnn_torch.h"
#include "tensor.h"

namespace fastrnn {

// How a layer is called, from the op's `options`. has_ says which gradients are given (the others
// are zeros), and need_ which ones backward returns besides those of the weights and biases.
struct LayerOptions {
  bool gru, biases, reverse, batch_first, packed, need_dx, projected, has_dy, has_dh_n, has_dc_n,
      need_d_states;

  explicit LayerOptions(int64_t options)
      : gru(options & 1), biases(options & 2), reverse(options & 4), batch_first(options & 8),
        packed(options & 16), need_dx(options & 32), projected(options & 64), has_dy(options & 128),
        has_dh_n(options & 256), has_dc_n(options & 512), need_d_states(options & 1024) {}

  size_t states() const { return gru ? 1 : 2; }
  size_t saved() const { return gru ? 1 : 2; }
  int64_t gates() const { return gru ? 3 : 4; }
};

// Both take tensors in this order: x [T, B, I] ([B, T, I], or [N, I] if packed, or [B, I] for one
// step), batch_sizes if packed, and the states [1, B, H] or [B, H], with a projection h [1, B, P]
// or [B, P]. y and the gradients have their forms. False, with no results, for a call that has to
// go through Python, as run_stack says.

// Then w_ih, w_hh, with biases b_ih and b_hh, and with a projection w_hr. Results: y, the final
// states, the saved tensors.
bool run_layer(std::vector<Tensor> *tensors, const LayerOptions &options,
               const fastrnn_cpu_functions &cpu, int threads, std::vector<Tensor> *results);

// Then w_ih, w_hh, with a projection w_hr, y, the saved tensors, and those of dy, dh_n and dc_n
// that are given. Results: the gradients of the states, if they are needed, of w_ih, w_hh, b_ih,
// for a GRU b_hh, with a projection w_hr and, if it is needed, x.
bool run_layer_backward(std::vector<Tensor> *tensors, const LayerOptions &options,
                        const fastrnn_cpu_functions &cpu, int threads,
                        std::vector<Tensor> *results);

}  // namespace fastrnn

"""The Triton backend: a layer in one direction over a whole sequence, on a GPU.

`launch` runs the time loop. torch allocates, and computes the gradients that are products over all
rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastrnn.kernels.contract import Backward, Cell, Forward
from fastrnn.kernels.layout import Rows
from fastrnn.kernels.products import input_and_weight_gradients

from . import launch


def forward(
    cell: Cell,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    batch_sizes: Tensor | None,
    reverse: bool,
    save: bool,
) -> Forward:
    """Runs a layer; see :class:`~fastrnn.kernels.contract.KernelModule`."""
    n, (batch, hidden_size) = x.shape[0], states[0].shape
    y = x.new_empty(n, hidden_size)
    saved = tuple(x.new_empty((n, k * hidden_size) if save else 0) for k in cell.saved_widths)
    if batch == 0:
        return y, tuple(state.clone() for state in states), saved
    final = tuple(torch.empty_like(state) for state in states)
    rows = Rows.of(x, batch, batch_sizes)
    launch.forward(cell, rows, x, states, weights, y, final, saved if save else (), reverse)
    return y, final, saved


def backward(
    cell: Cell,
    dy: Tensor | None,
    d_final: Sequence[Tensor],
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    y: Tensor,
    saved: Sequence[Tensor],
    batch_sizes: Tensor | None,
    reverse: bool,
    need_dx: bool,
    need_d_states: bool,
) -> Backward:
    """Computes a layer's gradients; see :class:`~fastrnn.kernels.contract.KernelModule`."""
    (w_ih, w_hh), h0 = weights, states[0]
    dy = torch.zeros_like(y) if dy is None else dy
    rows = Rows.of(x, h0.shape[0], batch_sizes)
    dgates = torch.empty_like(saved[0])
    if rows.batch == 0:
        d_states, sums = tuple(d.clone() for d in d_final), None
    else:
        d_states, sums = launch.backward(
            cell, rows, x, dy, d_final, states, w_hh, y, saved, dgates, reverse
        )
    dx, d_weights = input_and_weight_gradients(
        cell, rows, dgates, x, h0, y, w_ih, reverse, need_dx, sums
    )
    return dx, d_states if need_d_states else (), d_weights

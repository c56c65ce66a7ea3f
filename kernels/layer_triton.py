"""A layer on a GPU, forward and backward: whole-sequence kernels, or steps, and products outside.

Arguments and results are those of `reference`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .gru_triton import gru_backward_kernel, gru_forward_kernel
from .lstm_triton import lstm_backward_kernel, lstm_forward_kernel
from .rnn_launch import launch, narrow, plan, resident, words
from .rows import Rows, product
from .step_launch import steps_backward, steps_forward


def lstm_forward(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    batch_sizes: Tensor | None,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Outputs y [N, H], h_n, c_n [B, H], activated gates [N, 4H], cells [N, H].

    Without `save`, gates and cells are empty.
    """
    (n, i), (batch, h) = x.shape, h0.shape
    y = x.new_empty(n, h)
    gates = x.new_empty((n, 4 * h) if save else 0)
    cells = x.new_empty((n, h) if save else 0)
    if batch == 0:
        return y, h0.clone(), c0.clone(), gates, cells
    h_n, c_n = torch.empty_like(h0), torch.empty_like(c0)
    rows = Rows.of(x, batch, batch_sizes)
    weights = (w_ih, w_hh, b_ih, b_hh)
    saved, kept = (gates, cells) if save else (None, None)
    if not resident(rows.steps, h, x):
        steps_forward(rows, x, weights, h0, c0, y, h_n, c_n, saved, kept, reverse)
        return y, h_n, c_n, gates, cells
    if not narrow(i, h):
        x, i = product(x, w_ih.t()), 0
    spread = plan(h, batch, x)
    launch(
        lstm_forward_kernel, spread, batch, x.device,
        x, *weights, *words(h0, c0), y, h_n, c_n, saved, kept, rows.offsets, rows.lengths,
        rows.steps, batch, 0, i, h, spread, reverse,
    )  # fmt: skip
    return y, h_n, c_n, gates, cells


def lstm_backward(
    dy: Tensor,
    dh_n: Tensor,
    dc_n: Tensor,
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    y: Tensor,
    gates: Tensor,
    cells: Tensor,
    batch_sizes: Tensor | None,
    reverse: bool,
    need_dx: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients dx [N, I] (empty unless need_dx), dh0, dc0 [B, H], dw_ih, dw_hh, db [4H]."""
    batch, h = h0.shape
    if batch == 0:
        dx = x.new_empty(x.shape if need_dx else 0)
        dw_ih, dw_hh, db = torch.zeros_like(w_ih), torch.zeros_like(w_hh), w_hh.new_zeros(4 * h)
        return dx, dh_n.clone(), dc_n.clone(), dw_ih, dw_hh, db
    dgates = torch.empty_like(gates)
    rows = Rows.of(x, batch, batch_sizes)
    if resident(rows.steps, h, x):
        dh0, dc0 = torch.empty_like(h0), torch.empty_like(c0)
        spread = plan(h, batch, x)
        launch(
            lstm_backward_kernel, spread, batch, x.device,
            *words(dy, dh_n, dc_n), w_hh, *words(c0, gates, cells), dgates, dh0, dc0,
            rows.offsets, rows.lengths, rows.steps, batch, h, spread, reverse,
        )  # fmt: skip
    else:
        dc = steps_backward(rows, dy, dh_n, w_hh, c0, cells, gates, dc_n, dgates, reverse)
        dc0 = dc.to(dc_n.dtype)
        dh0 = product(rows.first(dgates, reverse), w_hh)
    dx, dw_ih, dw_hh, db = rows.lstm_gradients(dgates, x, h0, y, w_ih, reverse, need_dx)
    return dx, dh0, dc0, dw_ih, dw_hh, db


def gru_forward(
    x: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    batch_sizes: Tensor | None,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs y [N, H], h_n [B, H] and gates [N, 4H] = r, z, n, m (empty unless save)."""
    (n, i), (batch, h) = x.shape, h0.shape
    y = x.new_empty(n, h)
    gates = x.new_empty((n, 4 * h) if save else 0)
    if batch == 0:
        return y, h0.clone(), gates
    h_n = torch.empty_like(h0)
    rows = Rows.of(x, batch, batch_sizes)
    weights = (w_ih, w_hh, b_ih, b_hh)
    saved = gates if save else None
    if not resident(rows.steps, h, x):
        steps_forward(rows, x, weights, h0, h0, y, None, h_n, saved, None, reverse)
        return y, h_n, gates
    if not narrow(i, h):
        x, i = product(x, w_ih.t()), 0
    spread = plan(h, batch, x)
    launch(
        gru_forward_kernel, spread, batch, x.device,
        x, *weights, *words(h0), y, h_n, saved, rows.offsets, rows.lengths,
        rows.steps, batch, 0, i, h, spread, reverse,
    )  # fmt: skip
    return y, h_n, gates


def gru_backward(
    dy: Tensor,
    dh_n: Tensor,
    x: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    y: Tensor,
    gates: Tensor,
    batch_sizes: Tensor | None,
    reverse: bool,
    need_dx: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients dx [N, I] (empty unless need_dx), dh0 [B, H], dw_ih, dw_hh, db_ih, db_hh [3H]."""
    batch, h = h0.shape
    if batch == 0:
        dx = x.new_empty(x.shape if need_dx else 0)
        dw_ih, dw_hh, db = torch.zeros_like(w_ih), torch.zeros_like(w_hh), w_hh.new_zeros(3 * h)
        return dx, dh_n.clone(), dw_ih, dw_hh, db, db.clone()
    dgates = torch.empty_like(gates)
    rows = Rows.of(x, batch, batch_sizes)
    if resident(rows.steps, h, x):
        dh0 = torch.empty_like(h0)
        spread = plan(h, batch, x)
        launch(
            gru_backward_kernel, spread, batch, x.device,
            *words(dy, dh_n), w_hh, *words(h0, y, gates), dgates, dh0,
            rows.offsets, rows.lengths, rows.steps, batch, h, spread, reverse,
        )  # fmt: skip
    else:
        dh = steps_backward(rows, dy, None, w_hh, h0, y, gates, dh_n, dgates, reverse)
        dh0 = (dh + product(rows.first(dgates[:, h:], reverse), w_hh)).to(dh_n.dtype)
    gradients = rows.gru_gradients(dgates, x, h0, y, w_ih, reverse, need_dx)
    dx, dw_ih, dw_hh, db_ih, db_hh = gradients
    return dx, dh0, dw_ih, dw_hh, db_ih, db_hh

"""Matrix products over all rows of a sequence, which the GPU kernels leave to torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastrnn.kernels.contract import Cell
from fastrnn.kernels.layout import Rows

# Of a layer's gates in the order of dgates: the gradients of the biases [4H], and of w_ih or None.
Sums = tuple[Tensor, Tensor | None]


def tf32() -> bool:
    """Whether torch's switch for recurrent layers allows TF32 in float32 products."""
    rnn: Any = torch.backends.cudnn.rnn
    return rnn.fp32_precision == "tf32"


def product(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product of a and b.

    A float32 product uses TF32 only if both of torch's switches allow it: the one for matrix
    products and the one for recurrent layers. Both hold for the whole process, so neither is
    changed here. float64 is exact whatever they say.
    """
    matmul: Any = torch.backends.cuda.matmul
    if a.dtype == torch.float32 and matmul.fp32_precision == "tf32" and not tf32():
        return (a.double() @ b.double()).float()
    return a @ b


def input_and_weight_gradients(
    cell: Cell,
    rows: Rows,
    dgates: Tensor,
    x: Tensor,
    h0: Tensor,
    y: Tensor,
    w_ih: Tensor,
    reverse: bool,
    need_dx: bool,
    sums: Sums | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The gradients of the input, weights and biases, computed from those of all gates.

    Args:
        cell, x, h0, y, w_ih, reverse, need_dx: see :mod:`fastrnn.kernels.contract`.
        rows: where the rows of each step lie.
        dgates: [N, 4H], before the activations: i f g o of an LSTM; n r z m of a GRU, so that both
            the input's three blocks and the recurrent three are contiguous.
        sums: what the kernel has summed already, so that dgates need not be read again for it.

    Returns:
        dx [N, I], of shape [0] unless ``need_dx``, and dw_ih, dw_hh, db (LSTM) or dw_ih, dw_hh,
        db_ih, db_hh (GRU).
    """
    h = h0.shape[1]
    if cell.gates == 4:
        d_input = d_recurrent = dgates
        in_order, shift = w_ih, 0
    else:
        d_input, d_recurrent = dgates[:, : 3 * h], dgates[:, h:]
        in_order, shift = w_ih.roll(h, 0), -h  # n r z, and back to torch's r z n
    dx = product(d_input, in_order) if need_dx else x.new_empty(0)
    db, dw_ih = sums or (dgates.sum(0), None)
    if dw_ih is None:
        dw_ih = product(d_input.t(), x)
    dw_hh = product_with_states_before(rows, d_recurrent, h0, y, reverse)
    if not shift:
        return dx, (dw_ih, dw_hh, db)
    return dx, (dw_ih.roll(shift, 0), dw_hh, db[: 3 * h].roll(shift), db[h:].clone())


def product_with_states_before(
    rows: Rows, dgates: Tensor, h0: Tensor, y: Tensor, reverse: bool
) -> Tensor:
    """dgates^T h', where h' [N, H] is the state before each row: h0, or another row of y."""
    if rows.offsets is None:
        b = rows.batch
        if reverse:
            first, rest, before = dgates[-b:], dgates[:-b], y[b:]
        else:
            first, rest, before = dgates[:b], dgates[b:], y[:-b]
        return product(first.t(), h0) + product(rest.t(), before)
    return product(dgates.t(), torch.cat((y, h0))[rows.index_before(y.shape[0], reverse)])

"""torch's own layers (oneDNN, cuDNN, ATen) behind the contract, for graphs that run anywhere.

torch does not hand out what its backward needs, so the reference runs the calls that save.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn.kernels import reference
from fastrnn.kernels.contract import Cell, Forward
from fastrnn.kernels.layout import Rows


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
    batch = states[0].shape[0]
    if save or not len(x):
        return reference.forward(cell, x, states, weights, batch_sizes, reverse, save)
    # torch has no layer that only runs backwards: reverse every sequence, and then the output.
    turned = Rows.of(x, batch, batch_sizes).turned(x) if reverse else None
    if turned is not None:
        x = x[turned]
    flat = [w for w in weights if w is not None]
    initial = [state.unsqueeze(0) for state in states]
    options = (len(flat) == 4, 1, 0.0, False, False)
    function: Any = torch.lstm if cell.states == 2 else torch.gru
    hx = initial if cell.states == 2 else initial[0]
    if batch_sizes is None:
        y, *final = function(x.view(-1, batch, x.shape[1]), hx, flat, *options, False)
        y = y.reshape(len(x), -1)
    else:
        y, *final = function(x, batch_sizes, hx, flat, *options)
    if turned is not None:
        y = y[turned]
    nothing = tuple(x.new_empty(0) for _ in cell.saved_widths)
    return y.contiguous(), tuple(state[0].clone() for state in final), nothing


backward = reference.backward

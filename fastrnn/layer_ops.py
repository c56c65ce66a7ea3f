"""A layer's forward and backward pass in training on CPUs, each in one native op.

The ops check, allocate and run as :mod:`fastrnn.ops` and :mod:`fastrnn.kernels.cpu` do, without
the cost of Python for each tensor. :func:`forward` and :func:`backward` return None for a call that
the op does not support, or whose arguments do not fit together; :mod:`fastrnn.ops` then runs it or
says what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn import backends, inference
from fastrnn.kernels import stack
from fastrnn.kernels.contract import CELLS, Cell

_GRU = CELLS["gru"].code


def forward(
    cell: Cell,
    backend: str,
    x: Tensor,
    tensors: Sequence[Tensor | None],
    batch_sizes: Tensor | None,
    reverse: bool,
    batch_first: bool,
    w_hr: Tensor | None = None,
) -> list[Tensor] | None:
    """What a cell's op returns with ``save``: y, the final states and the saved tensors.

    Args:
        cell: of the layer.
        backend, x, batch_sizes, reverse, batch_first: as the op takes them.
        tensors: states, weights and biases.
        w_hr: the weights of a projection; None without one.
    """
    if not runs(backend, x):
        return None
    given = [t for t in (*tensors, w_hr) if t is not None]
    before = [x] if batch_sizes is None else [x, batch_sizes]
    options = stack.layer_options(
        cell.code == _GRU, tensors[-1] is not None, reverse, batch_first, batch_sizes is not None,
        projected=w_hr is not None,
    )  # fmt: skip
    results: list[Tensor] = torch.ops.fastrnn.layer.default(before + given, options)
    return results or None


def backward(
    cell: Cell,
    backend: str,
    x: Tensor,
    tensors: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    batch_sizes: Tensor | None,
    reverse: bool,
    batch_first: bool,
    need_dx: bool,
    need_d_states: bool,
    projected: bool = False,
) -> list[Any] | None:
    """What a cell's backward op returns, but with dx at the end, and only if it is needed.

    The gradients of the states are None unless they are needed. With a projection, the gradient of
    w_hr comes before dx.

    Args:
        cell: of the layer.
        backend, x, batch_sizes, reverse, batch_first, need_dx: as the op takes them.
        tensors: states, w_ih, w_hh, with a projection w_hr, y and the saved tensors.
        gradients: of y and the final states.
        need_d_states: whether the gradients of the initial states are wanted.
        projected: whether the layer has a projection.
    """
    if not runs(backend, x):
        return None
    given = [t for t in gradients if t is not None]
    before = [x] if batch_sizes is None else [x, batch_sizes]
    options = stack.layer_options(
        cell.code == _GRU, False, reverse, batch_first, batch_sizes is not None, need_dx, projected,
        tuple([t is not None for t in gradients]), need_d_states,
    )  # fmt: skip
    op = torch.ops.fastrnn.layer_backward.default
    results: list[Tensor] = op([*before, *tensors, *given], options)
    if not results:
        return None
    return results if need_d_states else [None] * cell.states + results


def runs(backend: str, x: Tensor) -> bool:
    """Whether these ops can run calls of a backend on x: of the native backend, on a CPU.

    If no backend is named, they cannot: the cell's op chooses one.
    """
    record = backends.BACKENDS.get(backend)
    known = record is not None and record.stacks and x is not None
    return known and x.is_cpu and inference.is_ready()

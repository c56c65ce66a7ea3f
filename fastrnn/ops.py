"""The torch.library ops: schemas, checks, fake kernels and autograd formulas; no arithmetic.

``fastrnn::lstm`` and ``fastrnn::gru`` run one layer in one direction over a whole sequence, and
``fastrnn::lstm_backward`` and ``fastrnn::gru_backward`` compute its gradients. Their arguments and
results are those of :class:`fastrnn.kernels.contract.KernelModule`, with tuples spelled out, and:

- x is [N, I], or a padded batch [T, B, I] ([B, T, I] with ``batch_first``), and y has its form;
- states are [B, H] or [1, B, H], and so are the final states and all their gradients;
- ``backend`` names the kernels that run. An empty name leaves the choice to the machine on which
  the op runs; graphs that are traced, compiled or exported hold that.
- ``save`` keeps what backward needs. Without it, or after y was changed in place, backward runs
  the layer again.

``dy`` is None for a model that uses only the final states: the native kernels then never read or
write zeros of that size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn import backends, flops, inference, layer_ops
from fastrnn.checks import check, check_alike, check_rows
from fastrnn.gradients import formula_of, setup_context_of
from fastrnn.kernels.contract import CELLS, Cell, KernelModule

_library = torch.library.Library("fastrnn", "DEF")


def _tensors(*names: str) -> str:
    return ", ".join(f"Tensor {name}" for name in names)


def _names(cell: Cell) -> tuple[list[str], list[str], list[str]]:
    """The names of the initial states, the final states and the saved tensors."""
    initial = [f"{name}0" for name in cell.state_names]
    final = [f"{name}_n" for name in cell.state_names]
    return initial, final, ["gates", "cells"][: len(cell.saved_widths)]


def _define(cell: Cell) -> None:
    """Declares the two ops of a cell."""
    initial, final, saved = _names(cell)
    biases = ["db"] if cell.bias_gradients == 1 else ["db_ih", "db_hh"]
    _library.define(
        f"{cell.name}({_tensors('x', *initial, 'w_ih', 'w_hh')}, Tensor? b_ih, Tensor? b_hh,"
        " Tensor? batch_sizes, bool reverse, bool save, str backend, bool batch_first=False)"
        f" -> ({_tensors('y', *final, *saved)})"
    )
    inputs = _tensors(*(f"d{name}" for name in final), "x", *initial, "w_ih", "w_hh", "y", *saved)
    results = _tensors("dx", *(f"d{name}" for name in initial), "dw_ih", "dw_hh", *biases)
    _library.define(
        f"{cell.name}_backward(Tensor? dy, {inputs}, Tensor? batch_sizes, bool reverse,"
        f" bool need_dx, str backend, bool batch_first=False) -> ({results})"
    )


# ---- kernels


def _kernels(
    cell: Cell,
    backend: str,
    x: Tensor,
    h0: Tensor,
    rows: int,
    batch_sizes: Tensor | None,
    save: bool,
) -> KernelModule:
    """The module that runs a call; see :func:`fastrnn.backends.kernels_for`."""
    batch, hidden = h0.shape[-2:]
    steps = rows // max(batch, 1) if batch_sizes is None else len(batch_sizes)
    call = backends.Call(
        cell.name.upper(), x.device.type, x.dtype, steps, batch, x.shape[-1], hidden, save,
        packed=batch_sizes is not None, device_index=x.device.index,
    )  # fmt: skip
    return backends.kernels_for(backend, call)


def _flat(tensor: Tensor, batch_first: bool) -> Tensor:
    """Contiguous rows [N, …] of a tensor that may have time and batch axes."""
    if tensor.dim() != 3:
        return tensor.contiguous()
    if batch_first:
        tensor = tensor.transpose(0, 1)
    return tensor.contiguous().view(-1, tensor.shape[2])


def _shaped(rows: Tensor, like: Tensor, batch_first: bool) -> Tensor:
    """New rows [N, …] with the axes of ``like``; no view, because views cannot be detached."""
    if like.dim() != 3:
        return rows
    first, second = like.shape[:2]
    if not batch_first:
        return rows.resize_(first, second, rows.shape[1])
    return rows.resize_(second, first, rows.shape[1]).transpose_(0, 1)


def _state(tensor: Tensor) -> Tensor:
    """A state [B, H] or [1, B, H] as contiguous [B, H]."""
    return (tensor[0] if tensor.dim() == 3 else tensor).contiguous()


def _states(tensors: Sequence[Tensor], like: Tensor) -> list[Tensor]:
    """New states [B, H] with the axes that ``like`` has."""
    return [t.unsqueeze_(0) for t in tensors] if like.dim() == 3 else list(tensors)


def _forward_kernel(cell: Cell) -> Callable[..., tuple[Tensor, ...]]:
    n = cell.states
    names = ("x", *_names(cell)[0], "w_ih", "w_hh", "b_ih", "b_hh")

    def kernel(
        x: Tensor,
        *args: Any,
        batch_first: bool = False,
    ) -> tuple[Tensor, ...]:
        if len(args) > n + 8:
            *args, batch_first = args  # type: ignore[assignment]
        *tensors, batch_sizes, reverse, save, backend = args
        if save:
            results = layer_ops.forward(
                cell, backend, x, tensors, batch_sizes, reverse, batch_first
            )
            if results is not None:
                return tuple(results)
        elif batch_sizes is None and not reverse:
            results = inference.layer(cell, backend, x, tensors, batch_first)
            if results is not None:
                return (*results, *[x.new_empty(0) for _ in cell.saved_widths])
        h0 = tensors[0]
        rows, _ = check_rows(cell.name, x, h0, batch_sizes, batch_first)
        width, features = cell.gates * h0.shape[-1], x.shape[-1]
        bias = (width,)
        shapes = [*[h0.shape] * n, (width, features), (width, h0.shape[-1]), bias, bias]
        check(cell.name, x, names, (x, *tensors), x.shape, *shapes)
        if (tensors[-1] is None) != (tensors[-2] is None):
            raise RuntimeError(
                f"fastrnn::{cell.name}: one bias is given; expected both, or neither"
            )
        kernels = _kernels(cell, backend, x, h0, rows, batch_sizes, save)
        states = [_state(t) for t in tensors[:n]]
        weights = [None if t is None else t.contiguous() for t in tensors[n:]]
        y, final, saved = kernels.forward(
            cell, _flat(x, batch_first), states, weights, batch_sizes, reverse, save
        )
        return (_shaped(y, x, batch_first), *_states(final, h0), *saved)

    return kernel


def _backward_kernel(cell: Cell) -> Callable[..., tuple[Any, ...]]:
    n, op = cell.states, f"{cell.name}_backward"
    initial, final, saved_names = _names(cell)
    names = (
        "x", "dy", *(f"d{name}" for name in final), *initial, "w_ih", "w_hh", "y", *saved_names
    )  # fmt: skip
    count = len(names)

    def kernel(
        *args: Any, batch_first: bool = False, need_d_states: bool = True
    ) -> tuple[Any, ...]:
        if len(args) > count + 4:
            *args, batch_first = args  # type: ignore[assignment]
        *tensors, batch_sizes, reverse, need_dx, backend = args
        x = tensors.pop(1 + n)
        inputs = tensors[1 + n :]
        results = layer_ops.backward(
            cell, backend, x, inputs, tensors[: 1 + n], batch_sizes, reverse, batch_first, need_dx,
            need_d_states,
        )  # fmt: skip
        if results is not None:
            dx = results.pop() if need_dx else x.new_empty(0)
            return (dx, *results)
        h0 = inputs[0]
        tensors[1 : 1 + n] = [
            torch.zeros_like(like) if grad is None else grad
            for grad, like in zip(tensors[1 : 1 + n], inputs[:n], strict=True)
        ]
        rows, _ = check_rows(op, x, h0, batch_sizes, batch_first)
        hidden, features = h0.shape[-1], x.shape[-1]
        width, out = cell.gates * hidden, (*x.shape[:-1], hidden)
        saved_shapes = [(rows, k * hidden) for k in cell.saved_widths]
        shapes = [out, *[h0.shape] * 2 * n, (width, features), (width, hidden), out, *saved_shapes]
        check(op, x, names, (x, *tensors), x.shape, *shapes)
        kernels = _kernels(cell, backend, x, h0, rows, batch_sizes, True)
        dy, *others = tensors
        d_final, states = ([_state(t) for t in others[i : i + n]] for i in (0, n))
        w_ih, w_hh, y, *saved = others[2 * n :]
        dx, d_states, d_weights = kernels.backward(
            cell,
            None if dy is None else _flat(dy, batch_first),
            d_final,
            _flat(x, batch_first),
            states,
            (w_ih.contiguous(), w_hh.contiguous()),
            _flat(y, batch_first),
            [t.contiguous() for t in saved],
            batch_sizes,
            reverse,
            need_dx,
            need_d_states,
        )
        dx = _shaped(dx, x, batch_first) if need_dx else dx
        return (dx, *(_states(d_states, h0) if need_d_states else [None] * n), *d_weights)

    return kernel


# ---- fake kernels: shapes and strides only


def _fake_rows(x: Tensor, width: int, batch_first: bool) -> Tensor:
    """What :func:`_shaped` makes of new rows of this width."""
    if x.dim() == 3 and batch_first:
        return x.new_empty(x.shape[1], x.shape[0], width).transpose(0, 1)
    return x.new_empty(*x.shape[:-1], width)


def _fake_forward(cell: Cell) -> Callable[..., tuple[Tensor, ...]]:
    n = cell.states

    def fake(x: Tensor, *args: Any, batch_first: bool = False) -> tuple[Tensor, ...]:
        if len(args) > n + 8:
            *args, batch_first = args  # type: ignore[assignment]
        check_alike(cell.name, (x, *args[:-4]), args[-4])
        states, save, hidden = args[:n], args[-2], args[0].shape[-1]
        rows = x.shape[0] if x.dim() == 2 else x.shape[0] * x.shape[1]
        final = [torch.empty_like(h, memory_format=torch.contiguous_format) for h in states]
        saved = [x.new_empty((rows, k * hidden) if save else (0,)) for k in cell.saved_widths]
        return (_fake_rows(x, hidden, batch_first), *final, *saved)

    return fake


def _fake_backward(cell: Cell) -> Callable[..., tuple[Tensor, ...]]:
    n = cell.states
    count = 1 + n + 1 + n + 3 + len(cell.saved_widths)

    def fake(*args: Any, batch_first: bool = False) -> tuple[Tensor, ...]:
        if len(args) > count + 4:
            *args, batch_first = args  # type: ignore[assignment]
        check_alike(f"{cell.name}_backward", args[:-4], args[-4])
        x, need_dx = args[1 + n], args[-2]
        *states, w_ih, w_hh = args[2 + n : 4 + 2 * n]
        biases = [w_ih[:, 0]] * cell.bias_gradients
        dx = _fake_rows(x, x.shape[-1], batch_first) if need_dx else x.new_empty((0,))
        return (dx, *(x.new_empty(t.shape) for t in (*states, w_ih, w_hh, *biases)))

    return fake


# The kernel of each op, for callers that do not need the dispatcher.
FORWARD_KERNELS = {cell.name: _forward_kernel(cell) for cell in CELLS.values()}
BACKWARD_KERNELS = {cell.name: _backward_kernel(cell) for cell in CELLS.values()}

for _cell in CELLS.values():
    _define(_cell)
    _library.impl(_cell.name, FORWARD_KERNELS[_cell.name], "CompositeExplicitAutograd")
    _library.impl(
        f"{_cell.name}_backward", BACKWARD_KERNELS[_cell.name], "CompositeExplicitAutograd"
    )
    torch.library.register_fake(f"fastrnn::{_cell.name}", _fake_forward(_cell), lib=_library)
    torch.library.register_fake(
        f"fastrnn::{_cell.name}_backward", _fake_backward(_cell), lib=_library
    )
    torch.library.register_autograd(
        f"fastrnn::{_cell.name}",
        formula_of(_cell),
        setup_context=setup_context_of(_cell),
        lib=_library,
    )

flops.register()

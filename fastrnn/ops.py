"""The torch.library ops: schemas, checks, fake kernels and autograd formulas; no arithmetic.

``fastrnn::lstm`` and ``fastrnn::gru`` run one layer in one direction over a whole sequence, and
``fastrnn::lstm_backward`` and ``fastrnn::gru_backward`` compute its gradients. Their arguments and
results are those of :class:`fastrnn.kernels.contract.KernelModule`, with tuples spelled out;
``backend`` names the kernels that run. ``dy`` is None for a model that uses only the final states:
the native kernels then never read or write zeros of that size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn import backends
from fastrnn.kernels.contract import CELLS, Cell, KernelModule

_library = torch.library.Library("fastrnn", "DEF")


def _tensors(*names: str) -> str:
    return ", ".join(f"Tensor {name}" for name in names)


def _define(cell: Cell) -> None:
    """Declares the two ops of a cell."""
    initial = [f"{name}0" for name in cell.state_names]
    final = [f"{name}_n" for name in cell.state_names]
    saved = ["gates", "cells"][: len(cell.saved_widths)]
    biases = ["db"] if cell.bias_gradients == 1 else ["db_ih", "db_hh"]
    _library.define(
        f"{cell.name}({_tensors('x', *initial, 'w_ih', 'w_hh')}, Tensor? b_ih, Tensor? b_hh,"
        " Tensor? batch_sizes, bool reverse, bool save, str backend)"
        f" -> ({_tensors('y', *final, *saved)})"
    )
    inputs = _tensors(*(f"d{name}" for name in final), "x", *initial, "w_ih", "w_hh", "y", *saved)
    results = _tensors("dx", *(f"d{name}" for name in initial), "dw_ih", "dw_hh", *biases)
    _library.define(
        f"{cell.name}_backward(Tensor? dy, {inputs},"
        f" Tensor? batch_sizes, bool reverse, bool need_dx, str backend) -> ({results})"
    )


# ---- kernels


def _kernels(backend: str) -> KernelModule:
    return backends.BACKENDS[backends.checked_name(backend, "fastrnn op")].kernels()


def _check_sizes(
    cell: Cell,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    batch_sizes: Tensor | None,
) -> None:
    """Refuses sizes that do not fit: native kernels would read outside of the tensors."""
    (rows, inputs), (batch, hidden) = x.shape, states[0].shape
    given = [*states, *(w for w in weights if w is not None)]
    width = cell.gates * hidden
    wanted: list[tuple[int, ...]] = [(batch, hidden)] * cell.states
    wanted += [(width, inputs), (width, hidden)]
    wanted += [(width,)] * (len(given) - len(wanted))
    if (found := [tuple(t.shape) for t in given]) != wanted:
        raise RuntimeError(
            f"fastrnn::{cell.name}: for x {tuple(x.shape)}, {found} should be {wanted}"
        )
    if batch_sizes is None:
        fits = rows % batch == 0 if batch else rows == 0
    else:
        fits = int(batch_sizes.sum()) == rows and int(batch_sizes[0]) == batch
    if not fits:
        raise RuntimeError(f"fastrnn::{cell.name}: {rows} rows do not fit a batch of {batch}")


def _forward_kernel(cell: Cell) -> Callable[..., tuple[Tensor, ...]]:
    n = 1 + cell.states

    def kernel(*args: Any) -> tuple[Tensor, ...]:
        *tensors, reverse, save, backend = args
        x, *others = [t if t is None else t.contiguous() for t in tensors]
        states, weights, batch_sizes = others[: n - 1], others[n - 1 : -1], others[-1]
        _check_sizes(cell, x, states, weights, batch_sizes)
        y, final, saved = _kernels(backend).forward(
            cell, x, states, weights, batch_sizes, reverse, save
        )
        return (y, *final, *saved)

    return kernel


def _backward_kernel(cell: Cell) -> Callable[..., tuple[Tensor, ...]]:
    n = cell.states

    def kernel(*args: Any) -> tuple[Tensor, ...]:
        *tensors, reverse, need_dx, backend = args
        dy, *others, batch_sizes = [t if t is None else t.contiguous() for t in tensors]
        d_final, x, states = others[:n], others[n], others[n + 1 : 2 * n + 1]
        w_ih, w_hh, y, *saved = others[2 * n + 1 :]
        dx, d_states, d_weights = _kernels(backend).backward(
            cell, dy, d_final, x, states, (w_ih, w_hh), y, saved, batch_sizes, reverse, need_dx
        )
        return (dx, *d_states, *d_weights)

    return kernel


# ---- fake kernels: shapes and strides only


def _fake_forward(cell: Cell) -> Callable[..., tuple[Tensor, ...]]:
    def fake(x: Tensor, *args: Any) -> tuple[Tensor, ...]:
        states, save, hidden = args[: cell.states], args[-2], args[0].shape[1]
        final = [torch.empty_like(h, memory_format=torch.contiguous_format) for h in states]
        saved = [x.new_empty((x.shape[0], k * hidden) if save else (0,)) for k in cell.saved_widths]
        return (x.new_empty(x.shape[0], hidden), *final, *saved)

    return fake


def _fake_backward(cell: Cell) -> Callable[..., tuple[Tensor, ...]]:
    n = cell.states

    def fake(*args: Any) -> tuple[Tensor, ...]:
        x, need_dx = args[1 + n], args[-2]
        *states, w_ih, w_hh = args[2 + n : 4 + 2 * n]
        biases = [w_ih[:, 0]] * cell.bias_gradients
        dx = x.new_empty(x.shape if need_dx else (0,))
        return (dx, *(x.new_empty(t.shape) for t in (*states, w_ih, w_hh, *biases)))

    return fake


# ---- autograd


def _setup_context(cell: Cell) -> Callable[..., None]:
    """Saves the inputs x, states, weights, biases and batch_sizes, then y and the saved tensors."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.reverse, ctx.save, ctx.backend = inputs
        y, saved = output[0], output[1 + cell.states :]
        ctx.set_materialize_grads(False)  # zeros for gates and cells would be large
        ctx.mark_non_differentiable(*saved)
        ctx.save_for_backward(*tensors, y, *saved)

    return setup_context


def _formula(cell: Cell) -> Callable[..., tuple[Tensor | None, ...]]:
    n = 1 + cell.states  # x and the states; behind them w_ih, w_hh, b_ih, b_hh

    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, batch_sizes, y = ctx.saved_tensors[: n + 6]
        saved = ctx.saved_tensors[n + 6 :]
        x, *states = tensors[:n]
        dy, *others = grads[:n]
        d_final = [
            torch.zeros_like(like) if grad is None else grad
            for grad, like in zip(others, states, strict=True)
        ]
        if torch.is_grad_enabled():  # create_graph: the gradients must themselves have gradients
            results = _differentiable_gradients(ctx, cell, tensors, batch_sizes, [dy, *d_final])
            return (*results, None, None, None, None)
        if not ctx.save:
            raise RuntimeError(
                f"fastrnn::{cell.name} was called with save=False, so it has no backward"
            )
        w_ih, w_hh, b_ih, _ = tensors[n:]
        op = getattr(torch.ops.fastrnn, f"{cell.name}_backward")
        dx, *rest = op(
            dy, *d_final, x, *states, w_ih, w_hh, y, *saved, batch_sizes, ctx.reverse,
            ctx.needs_input_grad[0], ctx.backend,
        )  # fmt: skip
        if cell.bias_gradients == 1:
            rest.append(rest[-1])  # both biases have the same gradient
        if b_ih is None:
            rest[-2:] = [None, None]
        return (dx if ctx.needs_input_grad[0] else None, *rest, None, None, None, None)

    return backward


def _differentiable_gradients(
    ctx: Any,
    cell: Cell,
    tensors: Sequence[Tensor | None],
    batch_sizes: Tensor | None,
    grads: list[Tensor | None],
) -> list[Tensor | None]:
    """Gradients through the reference's arithmetic, which autograd follows to any order."""
    x, *others = tensors
    states, weights = others[: cell.states], others[cell.states :]
    y, final, _ = backends.REFERENCE.kernels().forward(
        cell,
        x,  # type: ignore[arg-type]
        states,  # type: ignore[arg-type]
        weights,
        batch_sizes,
        ctx.reverse,
        False,
    )
    outputs = (y, *final)
    if grads[0] is None:
        outputs, grads = outputs[1:], grads[1:]
    wanted = {i: t for i, t in enumerate(tensors) if t is not None and ctx.needs_input_grad[i]}
    found = torch.autograd.grad(
        outputs, list(wanted.values()), grads, create_graph=True, allow_unused=True
    )
    results: list[Tensor | None] = [None] * len(tensors)
    for i, grad in zip(wanted, found, strict=True):
        results[i] = grad
    return results


for _cell in CELLS.values():
    _define(_cell)
    _library.impl(_cell.name, _forward_kernel(_cell), "CompositeExplicitAutograd")
    _library.impl(f"{_cell.name}_backward", _backward_kernel(_cell), "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastrnn::{_cell.name}", _fake_forward(_cell), lib=_library)
    torch.library.register_fake(
        f"fastrnn::{_cell.name}_backward", _fake_backward(_cell), lib=_library
    )
    torch.library.register_autograd(
        f"fastrnn::{_cell.name}",
        _formula(_cell),
        setup_context=_setup_context(_cell),
        lib=_library,
    )

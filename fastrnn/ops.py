"""The torch.library ops: schemas, fake kernels and autograd formulas; no arithmetic.

``fastrnn::lstm`` and ``fastrnn::gru`` run one layer in one direction over a whole sequence;
``fastrnn::lstm_backward`` and ``fastrnn::gru_backward`` are their gradients. Arguments and results
are those of the functions of the same names in :mod:`fastrnn.kernels.reference`, with ``backend``
naming the kernels that run. A gradient ``dy`` of None is one of zeros, which the native
kernels never write: a model that uses the last state alone has no other.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_FORWARD_WEIGHTS = "Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? batch_sizes"
_TAIL = "bool reverse, bool save, str backend"
_BACKWARD_TAIL = "Tensor? batch_sizes, bool reverse, bool need_dx, str backend"

_library = torch.library.Library("fastrnn", "DEF")
_library.define(
    f"lstm(Tensor x, Tensor h0, Tensor c0, {_FORWARD_WEIGHTS}, {_TAIL})"
    " -> (Tensor y, Tensor h_n, Tensor c_n, Tensor gates, Tensor cells)"
)
_library.define(
    "lstm_backward(Tensor? dy, Tensor dh_n, Tensor dc_n, Tensor x, Tensor h0, Tensor c0,"
    f" Tensor w_ih, Tensor w_hh, Tensor y, Tensor gates, Tensor cells, {_BACKWARD_TAIL})"
    " -> (Tensor dx, Tensor dh0, Tensor dc0, Tensor dw_ih, Tensor dw_hh, Tensor db)"
)
_library.define(
    f"gru(Tensor x, Tensor h0, {_FORWARD_WEIGHTS}, {_TAIL}) -> (Tensor y, Tensor h_n, Tensor gates)"
)
_library.define(
    "gru_backward(Tensor? dy, Tensor dh_n, Tensor x, Tensor h0, Tensor w_ih, Tensor w_hh, Tensor y,"
    f" Tensor gates, {_BACKWARD_TAIL})"
    " -> (Tensor dx, Tensor dh0, Tensor dw_ih, Tensor dw_hh, Tensor db_ih, Tensor db_hh)"
)

# The modules that hold each backend's kernels, loaded when first called.
_MODULES = {
    ("reference", "lstm"): "reference",
    ("reference", "gru"): "reference",
    ("cpu", "lstm"): "native",
    ("cpu", "gru"): "native",
    ("triton", "lstm"): "layer_triton",
    ("triton", "gru"): "layer_triton",
    ("cuda", "lstm"): "native_cuda",
    ("cuda", "gru"): "native_cuda",
}


def _kernels(backend: str, cell: str) -> ModuleType:
    return importlib.import_module(f"fastrnn.kernels.{_MODULES[backend, cell]}")


def _check(cell: str, x: Tensor, *args: Any) -> None:
    """Refuses sizes that do not fit: native kernels would read outside of the tensors."""
    gates, states = (4, 2) if cell == "lstm" else (3, 1)
    w_ih, w_hh, b_ih, b_hh, batch_sizes = args[states : states + 5]
    (rows, inputs), (batch, hidden) = x.shape, args[0].shape
    given = [*args[:states], w_ih, w_hh, *(b for b in (b_ih, b_hh) if b is not None)]
    wanted = [(batch, hidden)] * states + [(gates * hidden, inputs), (gates * hidden, hidden)]
    wanted += [(gates * hidden,)] * (len(given) - len(wanted))  # type: ignore[list-item]
    if (found := [tuple(t.shape) for t in given]) != wanted:
        raise RuntimeError(f"fastrnn::{cell}: for x {tuple(x.shape)}, {found} should be {wanted}")
    if batch_sizes is None:
        fits = rows % batch == 0 if batch else rows == 0
    else:
        fits = int(batch_sizes.sum()) == rows and int(batch_sizes[0]) == batch
    if not fits:
        raise RuntimeError(f"fastrnn::{cell}: {rows} rows do not fit a batch of {batch}")


def _implement(op: str, cell: str, function: str) -> None:
    y = {"lstm_backward": 8, "gru_backward": 6}.get(op)

    def kernel(*args: Any) -> tuple[Tensor, ...]:
        *args, backend = args  # type: ignore[assignment]
        if y is None:
            _check(cell, *args)
        elif args[0] is None and backend not in ("cpu", "cuda"):
            args = (torch.zeros_like(args[y]), *args[1:])
        contiguous = [a.contiguous() if isinstance(a, Tensor) else a for a in args]
        return getattr(_kernels(backend, cell), function)(*contiguous)

    _library.impl(op, kernel, "CompositeExplicitAutograd")


for _cell in ("lstm", "gru"):
    _implement(_cell, _cell, f"{_cell}_forward")
    _implement(f"{_cell}_backward", _cell, f"{_cell}_backward")


# ---- fake kernels: shapes and strides only


def _fake_forward(states: int, saved: tuple[int, ...]) -> Callable[..., tuple[Tensor, ...]]:
    """For `states` states and saved tensors of widths `saved` times H."""

    def fake(x: Tensor, *args: Any) -> tuple[Tensor, ...]:
        save, hidden = args[-2], args[0].shape[1]
        finals = [torch.empty_like(h, memory_format=torch.contiguous_format) for h in args[:states]]
        kept = [x.new_empty((x.shape[0], w * hidden) if save else (0,)) for w in saved]
        return (x.new_empty(x.shape[0], hidden), *finals, *kept)

    return fake


def _fake_lstm_backward(
    dy: Tensor | None, dh_n: Tensor, dc_n: Tensor, x: Tensor, h0: Tensor, c0: Tensor, w_ih: Tensor,
    w_hh: Tensor, y: Tensor, gates: Tensor, cells: Tensor, batch_sizes: Tensor | None,
    reverse: bool, need_dx: bool, backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    dx = x.new_empty(x.shape if need_dx else (0,))
    return (dx, *(x.new_empty(t.shape) for t in (h0, c0, w_ih, w_hh, w_ih[:, 0])))


def _fake_gru_backward(
    dy: Tensor | None, dh_n: Tensor, x: Tensor, h0: Tensor, w_ih: Tensor, w_hh: Tensor, y: Tensor,
    gates: Tensor, batch_sizes: Tensor | None, reverse: bool, need_dx: bool, backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    dx = x.new_empty(x.shape if need_dx else (0,))
    bias = w_ih[:, 0]
    return (dx, *(x.new_empty(t.shape) for t in (h0, w_ih, w_hh, bias, bias)))


torch.library.register_fake("fastrnn::lstm", _fake_forward(2, (4, 1)), lib=_library)
torch.library.register_fake("fastrnn::gru", _fake_forward(1, (4,)), lib=_library)
torch.library.register_fake("fastrnn::lstm_backward", _fake_lstm_backward, lib=_library)
torch.library.register_fake("fastrnn::gru_backward", _fake_gru_backward, lib=_library)


# ---- autograd


def _setup(states: int) -> Callable[..., None]:
    """Saves the inputs [x, states, weights, biases, batch_sizes] and y, gates (and cells)."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.reverse, ctx.save, ctx.backend = inputs
        y, saved = output[0], output[1 + states :]
        ctx.set_materialize_grads(False)  # zeros for gates and cells would be large
        ctx.mark_non_differentiable(*saved)
        ctx.save_for_backward(*tensors, y, *saved)

    return setup


def _formula(cell: str, states: int) -> Callable[..., tuple[Tensor | None, ...]]:
    inputs = 1 + states + 4  # x, states, w_ih, w_hh, b_ih, b_hh

    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        tensors, batch_sizes, (y, *kept) = saved[:inputs], saved[inputs], saved[inputs + 1 :]
        x, *first = tensors[: 1 + states]
        dy, *others = grads[: 1 + states]
        last = [
            torch.zeros_like(like) if grad is None else grad
            for grad, like in zip(others, first, strict=True)
        ]
        if torch.is_grad_enabled():  # create_graph: the gradients must themselves have gradients
            results = _differentiable_gradients(ctx, cell, tensors, batch_sizes, [dy, *last])
            return (*results, None, None, None, None)
        if not ctx.save:
            raise RuntimeError(f"fastrnn::{cell} was called with save=False, so it has no backward")
        w_ih, w_hh, b_ih, _ = tensors[1 + states :]
        op = getattr(torch.ops.fastrnn, f"{cell}_backward")
        dx, *rest = op(
            dy, *last, x, *first, w_ih, w_hh, y, *kept, batch_sizes, ctx.reverse,
            ctx.needs_input_grad[0], ctx.backend,
        )  # fmt: skip
        if cell == "lstm":
            rest.append(rest[-1])  # both biases have one gradient
        if b_ih is None:
            rest[-2:] = [None, None]
        return (dx if ctx.needs_input_grad[0] else None, *rest, None, None, None, None)

    return backward


def _differentiable_gradients(
    ctx: Any,
    cell: str,
    tensors: tuple[Tensor | None, ...],
    batch_sizes: Tensor | None,
    grads: list[Tensor | None],
) -> list[Tensor | None]:
    """Gradients through the reference's arithmetic, which autograd follows to any order."""
    wanted = {i: t for i, t in enumerate(tensors) if t is not None and ctx.needs_input_grad[i]}
    forward = getattr(_kernels("reference", cell), f"{cell}_forward")
    outputs = forward(*tensors, batch_sizes, ctx.reverse, False)[: len(grads)]
    if grads[0] is None:
        outputs, grads = outputs[1:], grads[1:]
    found = torch.autograd.grad(
        outputs, list(wanted.values()), grads, create_graph=True, allow_unused=True
    )
    results: list[Tensor | None] = [None] * len(tensors)
    for i, grad in zip(wanted, found, strict=True):
        results[i] = grad
    return results


for _cell, _states in (("lstm", 2), ("gru", 1)):
    torch.library.register_autograd(
        f"fastrnn::{_cell}", _formula(_cell, _states), setup_context=_setup(_states), lib=_library
    )

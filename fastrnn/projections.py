"""Projected LSTM layers (``proj_size``), except in inference on CPUs (:mod:`fastrnn.inference`).

:func:`trained` is for training in eager mode on CPUs, whose kernels support projections. All other
calls run an equivalent layer without a projection, see :func:`projected`.

A projected layer's h_t is ``W_hr m_t`` with ``m_t = o_t * tanh(c_t)``, and m_t is what a layer
without a projection calls h_t. Its recurrent product ``W_hh h_t`` equals ``(W_hh W_hr) m_t``. So an
ordinary layer with ``W_hh W_hr`` as its recurrent weights computes all m_t and c_t, and one product
then gives all h_t. h_0 need not be the projection of any m_0, so m_0 is zero, and h_0 enters
through the input of the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from fastrnn import choice, eager, layer_ops
from fastrnn._compat import not_compiled, transforms_active
from fastrnn.gradients import NO_GRADIENTS, gradients_by_autograd, of_biases, setup_context_of
from fastrnn.kernels.contract import LSTM
from fastrnn.kernels.layout import Rows


def projected(op: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """A function that runs projected layers by fastrnn::lstm or a function with its arguments.

    It takes w_hr [P, H] after the biases; h0 and h_n are [B, P] or [1, B, P]. It returns y, h_n and
    c_n, and raises RuntimeError if h0, c0, w_hh and w_hr do not fit together.
    """

    def layer(
        x: Tensor,
        h0: Tensor,
        c0: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None,
        b_hh: Tensor | None,
        w_hr: Tensor,
        batch_sizes: Tensor | None,
        reverse: bool,
        save: bool,
        backend: str,
        batch_first: bool,
    ) -> tuple[Tensor, ...]:
        _check(h0, c0, w_hh, w_hr)
        if not _is_zero(h0):
            x = torch.cat([x, _in_first_step(h0, x, batch_sizes, reverse, batch_first)], -1)
            w_ih = torch.cat([w_ih, w_hh], 1)
        m0, recurrent = torch.zeros_like(c0), w_hh @ w_hr
        y, m_n, c_n, *_ = op(
            x, m0, c0, w_ih, recurrent, b_ih, b_hh, batch_sizes, reverse, save, backend, batch_first
        )
        return linear(y, w_hr), linear(m_n, w_hr), c_n

    return layer


def _check(h0: Tensor, c0: Tensor, w_hh: Tensor, w_hr: Tensor) -> None:
    size, hidden = h0.shape[-1], c0.shape[-1]
    for name, tensor, shape in (
        ("h0", h0, (*c0.shape[:-1], size)),
        ("w_hh", w_hh, (4 * hidden, size)),
        ("w_hr", w_hr, (size, hidden)),
    ):
        if tensor.shape != shape:
            raise RuntimeError(
                f"projected LSTM: {name} is {tuple(tensor.shape)}; expected {tuple(shape)} with "
                f"H {hidden} and a projection to {size}"
            )


def _is_zero(h0: Tensor) -> bool:
    """Whether h_0 is known to add nothing. On a GPU, finding out would mean waiting for it."""
    unknown = (
        not h0.is_cpu
        or h0.requires_grad
        or choice.in_graph()
        or transforms_active()
        or not choice.are_plain((h0,))
    )
    return not unknown and not h0.any()


def _in_first_step(
    h0: Tensor, x: Tensor, batch_sizes: Tensor | None, reverse: bool, batch_first: bool
) -> Tensor:
    """Rows [..., P] beside those of x: h0 in each sequence's first step, otherwise zeros."""
    batch, size = h0.shape[-2:]
    if batch_sizes is not None:
        h0 = h0.reshape(batch, size)
        if not reverse:
            return pad(h0, (0, 0, 0, len(x) - batch))
        places = torch.arange(len(x), device=x.device)
        first = Rows.of(x, batch, batch_sizes).first(places, reverse)
        return h0.new_zeros(len(x), size).index_copy(0, first, h0)
    others = x.shape[1 if batch_first else 0] - 1
    steps = (others, 0) if reverse else (0, others)
    if batch_first:
        return pad(h0.reshape(batch, 1, size), (0, 0, *steps))
    return pad(h0.reshape(1, batch, size), (0, 0, 0, 0, *steps))


# ---- training on kernels that support projections


class _Trained(torch.autograd.Function):
    """A projected layer with autograd, but without the dispatcher; see :mod:`fastrnn.eager`.

    Gradients of the gradients, and whatever else the kernels cannot do, come from the equivalent
    layer without a projection.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        *tensors, w_hr, batch_sizes, reverse, save, backend, batch_first = args
        _check(tensors[1], tensors[2], tensors[4], w_hr)
        results = layer_ops.forward(
            LSTM, backend, tensors[0], tensors[1:], batch_sizes, reverse, batch_first, w_hr
        )
        if results is None:
            save = False
            empty = [tensors[0].new_empty(0) for _ in LSTM.saved_widths]
            results = [*_folded()(*args), *empty]
        inputs = (*tensors, w_hr, batch_sizes, reverse, save, backend, batch_first)
        _setup_context(ctx, inputs, tuple(results))
        return tuple(results)

    @staticmethod
    @not_compiled
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        everything = ctx.saved_tensors
        *tensors, batch_sizes, y = everything[:10]
        if ctx.set_aside:
            ctx.set_aside.put_back(tensors)
        x, h0, c0, w_ih, w_hh, b_ih, _, w_hr = tensors
        results = None
        need_dx, need_d_states = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:3])
        if (
            ctx.save
            and not ctx.changes
            and not torch.is_grad_enabled()
            and eager.runs_kernels(everything, grads)
        ):
            results = layer_ops.backward(
                LSTM, ctx.backend, x, (h0, c0, w_ih, w_hh, w_hr, y, *everything[10:]), grads[:3],
                batch_sizes, ctx.reverse, ctx.batch_first, need_dx, need_d_states, projected=True,
            )  # fmt: skip
        if results is None:
            if ctx.set_aside:
                ctx.set_aside.check()
            return (*_gradients(ctx, tensors, batch_sizes, grads[:3]), *NO_GRADIENTS)
        dx = results.pop() if need_dx else None
        *others, db, dw_hr = results
        d_biases = of_biases([db], given=b_ih is not None)
        return (dx, *others, *d_biases, dw_hr, *NO_GRADIENTS)


_setup_context = setup_context_of(LSTM)
# Takes the arguments of the function that projected() returns, and returns y, h_n, c_n and what
# backward needs. For calls on a CPU backend that are direct and save, with plain tensors.
trained: Callable[..., tuple[Tensor, ...]] = _Trained.apply


def _folded() -> Callable[..., tuple[Tensor, ...]]:
    return projected(torch.ops.fastrnn.lstm.default)


def _gradients(
    ctx: Any,
    tensors: Sequence[Tensor | None],
    batch_sizes: Tensor | None,
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The gradients of a layer's tensors, by autograd through the layer without a projection."""
    create_graph = torch.is_grad_enabled()
    if not create_graph:
        tensors = [
            None if t is None else t.detach().requires_grad_(t.requires_grad) for t in tensors
        ]
    with torch.enable_grad():
        results = _folded()(*tensors, batch_sizes, ctx.reverse, True, ctx.backend, ctx.batch_first)
        return gradients_by_autograd(ctx, tensors, results, grads, create_graph)

"""Projected LSTM layers (``proj_size``), run as layers without a projection.

This is for training, and for backends that have no kernel for a projection. Inference on CPUs has
one, see :mod:`fastrnn.inference`.

A projected layer's h_t is ``W_hr m_t`` with ``m_t = o_t * tanh(c_t)``, and m_t is what a layer
without a projection calls h_t. Its recurrent product ``W_hh h_t`` equals ``(W_hh W_hr) m_t``. So an
ordinary layer with ``W_hh W_hr`` as its recurrent weights computes all m_t and c_t, and one product
then gives all h_t. h_0 need not be the projection of any m_0, so m_0 is zero, and h_0 enters
through the input of the first step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from fastrnn import choice
from fastrnn._compat import transforms_active
from fastrnn.kernels.layout import Rows


def projected(op: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """An op for projected layers, made from fastrnn::lstm or a function with its arguments.

    The result takes w_hr [P, H] after the biases, and h0 and h_n are [B, P] or [1, B, P]. It
    returns y, h_n and c_n.

    Raises:
        RuntimeError: h0, c0, w_hh and w_hr do not fit together.
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
    """Whether h_0 is known to add nothing; on a GPU, to ask would be to wait."""
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

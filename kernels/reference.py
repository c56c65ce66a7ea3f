"""LSTM and GRU step by step in eager torch: the oracle that every other backend is held against.

Layout and arguments: :mod:`fastrnn.kernels.contract`. 16-bit tensors are computed in float32. The
forward pass consists of differentiable, out-of-place operations, so double backward, forward-mode
gradients and vmap pass through it. Equations: torch.nn.LSTM and torch.nn.GRU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from fastrnn.kernels.contract import Backward, Cell, Forward


def lstm_step(
    x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor | None]
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """One LSTM step over some rows of x [rows, I] and states h, c [rows, H].

    ::

        i, f, o = sigmoid(W x + U h + b),  g = tanh(W x + U h + b)
        c' = f c + i g,  h' = o tanh(c')

    Returns h', c', and what is saved: i f g o [rows, 4H] and c'.
    """
    (h, c), (w_ih, w_hh, b_ih, b_hh) = states, weights
    assert w_ih is not None
    assert w_hh is not None
    i, f, g, o = (linear(x, w_ih, b_ih) + linear(h, w_hh, b_hh)).chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    c = f * c + i * g
    return (o * c.tanh(), c), (torch.cat([i, f, g, o], 1), c)


def gru_step(
    x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor | None]
) -> tuple[tuple[Tensor], tuple[Tensor]]:
    """One GRU step over some rows of x [rows, I] and the state h [rows, H].

    ::

        r, z = sigmoid(W x + U h + b)
        n = tanh(W_n x + b_in + r m),  m = U_n h + b_hn
        h' = n + z (h - n)

    Returns h', and what is saved: r z n m [rows, 4H].
    """
    (h,), (w_ih, w_hh, b_ih, b_hh) = states, weights
    assert w_ih is not None
    assert w_hh is not None
    xr, xz, xn = linear(x, w_ih, b_ih).chunk(3, 1)
    hr, hz, m = linear(h, w_hh, b_hh).chunk(3, 1)
    r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
    n = (xn + r * m).tanh()
    return (n + z * (h - n),), (torch.cat([r, z, n, m], 1),)


def lstm_step_backward(
    d_states: Sequence[Tensor], before: Tensor, saved: Sequence[Tensor], w_hh: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Gradients of one LSTM step from those of h' and c'; ``before`` is c.

    Returns the gradients [rows, 4H] before activation, of the input's share and of the recurrent
    share, which are the same here, and those of h and c.
    """
    (dh, dc), (gates, c_new) = d_states, saved
    i, f, g, o = gates.chunk(4, 1)
    t = c_new.tanh()
    dc = dc + dh * o * (1 - t * t)
    da = torch.cat(
        [
            dc * g * i * (1 - i),
            dc * before * f * (1 - f),
            dc * i * (1 - g * g),
            dh * t * o * (1 - o),
        ],
        1,
    )
    return da, da, (da @ w_hh, dc * f)


def gru_step_backward(
    d_states: Sequence[Tensor], before: Tensor, saved: Sequence[Tensor], w_hh: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor]]:
    """Gradients of one GRU step from that of h'; ``before`` is h.

    Returns the gradients [rows, 3H] before activation of the input's share, of r z n, and of the
    recurrent share, of r z m, and that of h.
    """
    (dh,), (gates,) = d_states, saved
    r, z, n, m = gates.chunk(4, 1)
    da_n = dh * (1 - z) * (1 - n * n)
    dm = da_n * r
    da_r = dm * m * (1 - r)
    da_z = dh * (before - n) * z * (1 - z)
    recurrent = torch.cat([da_r, da_z, dm], 1)
    return torch.cat([da_r, da_z, da_n], 1), recurrent, (dh * z + recurrent @ w_hh,)


_STEPS = {"lstm": (lstm_step, lstm_step_backward), "gru": (gru_step, gru_step_backward)}


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
    dtype, step = x.dtype, _STEPS[cell.name][0]
    x, *current = _widened(x, *states)
    weights = _widened(*weights)
    outputs: list[Tensor] = []
    saved: list[list[Tensor]] = [[] for _ in cell.saved_widths]
    for rows, n in _walk(len(x), len(current[0]), batch_sizes, reverse):
        new, kept = step(x[rows], [state[:n] for state in current], weights)
        current = [_replaced(old, state) for old, state in zip(current, new, strict=True)]
        outputs.append(new[0])
        if save:
            for parts, part in zip(saved, kept, strict=True):
                parts.append(part)
    y = _in_time_order(outputs, reverse) if outputs else x.new_empty(0, current[0].shape[1])
    return (
        y.to(dtype),
        tuple(state.to(dtype) for state in current),
        tuple(
            (_in_time_order(parts, reverse) if parts else x.new_empty(0)).to(dtype)
            for parts in saved
        ),
    )


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
    dtype, step_backward = x.dtype, _STEPS[cell.name][1]
    dy = torch.zeros_like(y) if dy is None else dy
    dy, x, y, w_ih, w_hh = _widened(dy, x, y, *weights)
    current, states, saved = _widened(*d_final), _widened(*states), _widened(*saved)
    steps = _walk(len(x), len(states[0]), batch_sizes, reverse)
    h_before = _before(y, states[0], steps)
    # What a step needs from the step before it: the cell state (LSTM) or h (GRU).
    before = _before(saved[1], states[1], steps) if cell.states == 2 else h_before
    da_x = x.new_empty(len(x), cell.gates * y.shape[1])
    da_h = torch.empty_like(da_x)
    for rows, n in reversed(steps):
        d_states = [current[0][:n] + dy[rows], *(d[:n] for d in current[1:])]
        da_x[rows], da_h[rows], new = step_backward(
            d_states, before[rows], [part[rows] for part in saved], w_hh
        )
        current = [_replaced(old, d) for old, d in zip(current, new, strict=True)]
    dx = da_x @ w_ih if need_dx else x.new_empty(0)
    d_bias = [da_x.sum(0), da_h.sum(0)][: cell.bias_gradients]
    d_weights = (da_x.T @ x, da_h.T @ h_before, *d_bias)
    return (
        dx.to(dtype),
        tuple(d.to(dtype) for d in current) if need_d_states else (),
        tuple(d.to(dtype) for d in d_weights),
    )


def _widened(*tensors: Tensor | None) -> list[Tensor]:
    """16-bit tensors as float32, others as they are; None stays None."""
    narrow = (torch.float16, torch.bfloat16)
    return [t.float() if t is not None and t.dtype in narrow else t for t in tensors]  # type: ignore[misc]


def _walk(
    rows: int, batch: int, batch_sizes: Tensor | None, reverse: bool
) -> list[tuple[slice, int]]:
    """The rows of each step and their number, in the order in which steps are taken."""
    if batch_sizes is not None:
        sizes = batch_sizes.tolist()
    else:
        sizes = [batch] * (rows // batch) if batch else []
    steps, start = [], 0
    for n in sizes:
        steps.append((slice(start, start + n), n))
        start += n
    return steps[::-1] if reverse else steps


def _replaced(state: Tensor, new: Tensor) -> Tensor:
    """The state with its first rows replaced; sequences without this step keep theirs."""
    return new if len(new) == len(state) else torch.cat([new, state[len(new) :]])


def _in_time_order(steps: list[Tensor], reverse: bool) -> Tensor:
    """The rows of all steps, first step first."""
    return torch.cat(steps[::-1] if reverse else steps)


def _before(states: Tensor, initial: Tensor, steps: Sequence[tuple[slice, int]]) -> Tensor:
    """For every row [N, H], the state that its step started from."""
    before, state = torch.empty_like(states), initial
    for rows, n in steps:
        before[rows] = state[:n]
        state = _replaced(state, states[rows])
    return before

"""LSTM and GRU step by step in eager torch: the oracle that every other backend is held against.

N rows are walked as PackedSequence lays them out: row offset[t] + b for b < batch_sizes[t]; a
padded time-major batch (``batch_sizes=None``) is the case batch_sizes[t] == B. ``reverse`` walks
each sequence from its own last step to its first. All tensors are of one floating dtype; 16-bit
ones are computed in float32.

The forward functions are made of differentiable, out-of-place operations, so double backward,
forward-mode gradients and vmap pass through them. Equations: torch.nn.LSTM and torch.nn.GRU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear


def lstm_forward(
    x: Tensor,  # [N, I]
    h0: Tensor,  # [B, H]
    c0: Tensor,  # [B, H]
    w_ih: Tensor,  # [4H, I], gates in order i f g o
    w_hh: Tensor,  # [4H, H]
    b_ih: Tensor | None,  # [4H]
    b_hh: Tensor | None,  # [4H]
    batch_sizes: Tensor | None,  # [T], int64 on CPU, non-increasing
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """i, f, o = sigmoid(W x + U h + b); g = tanh(W x + U h + b); c' = f c + i g; h' = o tanh(c').

    Returns y [N, H], h_n and c_n [B, H], and for the backward pass gates [N, 4H] (activated i f g
    o) and cells [N, H]; the last two are empty unless ``save``.
    """
    dtype = x.dtype
    x, h, c, w_ih, w_hh, b_ih, b_hh = _widened(x, h0, c0, w_ih, w_hh, b_ih, b_hh)
    ys, gates, cells = [], [], []
    steps = _walk(len(x), len(h), batch_sizes, reverse)
    for rows, n in steps:
        a = linear(x[rows], w_ih, b_ih) + linear(h[:n], w_hh, b_hh)
        i, f, g, o = a.chunk(4, 1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c_new = f * c[:n] + i * g
        h_new = o * c_new.tanh()
        h, c = _replaced(h, h_new), _replaced(c, c_new)
        ys.append(h_new)
        if save:
            gates.append(torch.cat([i, f, g, o], 1))
            cells.append(c_new)
    y, gates_, cells_ = (_in_time_order(part, reverse, x, w_hh) for part in (ys, gates, cells))
    return y.to(dtype), h.to(dtype), c.to(dtype), gates_.to(dtype), cells_.to(dtype)


def lstm_backward(
    dy: Tensor,  # [N, H]
    dh_n: Tensor,  # [B, H]
    dc_n: Tensor,  # [B, H]
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
    """Returns dx (empty unless ``need_dx``), dh0, dc0, dw_ih, dw_hh and db (of either bias)."""
    dtype = x.dtype
    dy, dh, dc, x, h0, c0, w_ih, w_hh, y, gates, cells = _widened(
        dy, dh_n, dc_n, x, h0, c0, w_ih, w_hh, y, gates, cells
    )
    steps = _walk(len(x), len(h0), batch_sizes, reverse)
    h_old, c_old = _before(y, h0, steps), _before(cells, c0, steps)
    da = torch.empty_like(gates)
    for rows, n in reversed(steps):
        i, f, g, o = gates[rows].chunk(4, 1)
        t = cells[rows].tanh()
        dh_t = dh[:n] + dy[rows]
        dc_t = dc[:n] + dh_t * o * (1 - t * t)
        da[rows] = torch.cat(
            [
                dc_t * g * i * (1 - i),
                dc_t * c_old[rows] * f * (1 - f),
                dc_t * i * (1 - g * g),
                dh_t * t * o * (1 - o),
            ],
            1,
        )
        dh, dc = _replaced(dh, da[rows] @ w_hh), _replaced(dc, dc_t * f)
    dx = da @ w_ih if need_dx else x.new_empty(0)
    grads = (dx, dh, dc, da.T @ x, da.T @ h_old, da.sum(0))
    return tuple(grad.to(dtype) for grad in grads)  # type: ignore[return-value]


def gru_forward(
    x: Tensor,  # [N, I]
    h0: Tensor,  # [B, H]
    w_ih: Tensor,  # [3H, I], gates in order r z n
    w_hh: Tensor,  # [3H, H]
    b_ih: Tensor | None,  # [3H]
    b_hh: Tensor | None,  # [3H]
    batch_sizes: Tensor | None,  # [T], int64 on CPU, non-increasing
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """r, z = sigmoid(W x + U h + b); n = tanh(W_n x + b_in + r (U_n h + b_hn)); h' = n + z (h - n).

    Returns y [N, H], h_n [B, H] and for the backward pass gates [N, 4H] (r z n, activated, and
    m = U_n h + b_hn), empty unless ``save``.
    """
    dtype = x.dtype
    x, h, w_ih, w_hh, b_ih, b_hh = _widened(x, h0, w_ih, w_hh, b_ih, b_hh)
    ys, gates = [], []
    steps = _walk(len(x), len(h), batch_sizes, reverse)
    for rows, count in steps:
        xr, xz, xn = linear(x[rows], w_ih, b_ih).chunk(3, 1)
        hr, hz, m = linear(h[:count], w_hh, b_hh).chunk(3, 1)
        r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
        n = (xn + r * m).tanh()
        h_new = n + z * (h[:count] - n)
        h = _replaced(h, h_new)
        ys.append(h_new)
        if save:
            gates.append(torch.cat([r, z, n, m], 1))
    y, gates_ = (_in_time_order(part, reverse, x, w_hh) for part in (ys, gates))
    return y.to(dtype), h.to(dtype), gates_.to(dtype)


def gru_backward(
    dy: Tensor,  # [N, H]
    dh_n: Tensor,  # [B, H]
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
    """Returns dx (empty unless ``need_dx``), dh0, dw_ih, dw_hh, db_ih and db_hh."""
    dtype = x.dtype
    dy, dh, x, h0, w_ih, w_hh, y, gates = _widened(dy, dh_n, x, h0, w_ih, w_hh, y, gates)
    steps = _walk(len(x), len(h0), batch_sizes, reverse)
    h_old = _before(y, h0, steps)
    hidden = h0.shape[1]
    # Gradients before activation: of r, z, n and of m, the recurrent half of n.
    da_r, da_z, da_n, dm = (gates.new_empty(len(x), hidden) for _ in range(4))
    for rows, count in reversed(steps):
        r, z, n, m = gates[rows].chunk(4, 1)
        dh_t = dh[:count] + dy[rows]
        da_n[rows] = dh_t * (1 - z) * (1 - n * n)
        dm[rows] = da_n[rows] * r
        da_r[rows] = dm[rows] * m * (1 - r)
        da_z[rows] = dh_t * (h_old[rows] - n) * z * (1 - z)
        recurrent = torch.cat([da_r[rows], da_z[rows], dm[rows]], 1)
        dh = _replaced(dh, dh_t * z + recurrent @ w_hh)
    da_x, da_h = torch.cat([da_r, da_z, da_n], 1), torch.cat([da_r, da_z, dm], 1)
    dx = da_x @ w_ih if need_dx else x.new_empty(0)
    grads = (dx, dh, da_x.T @ x, da_h.T @ h_old, da_x.sum(0), da_h.sum(0))
    return tuple(grad.to(dtype) for grad in grads)  # type: ignore[return-value]


def _widened(*tensors: Tensor | None) -> list[Tensor]:
    """16-bit tensors as float32, others as they are; None stays None."""
    narrow = (torch.float16, torch.bfloat16)
    return [t.float() if t is not None and t.dtype in narrow else t for t in tensors]  # type: ignore[misc]


def _walk(
    rows: int, batch: int, batch_sizes: Tensor | None, reverse: bool
) -> list[tuple[slice, int]]:
    """(the step's rows, how many they are), in the order in which steps are taken."""
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
    """The states with the first ones new; sequences that do not run in this step keep theirs."""
    return new if len(new) == len(state) else torch.cat([new, state[len(new) :]])


def _in_time_order(steps: list[Tensor], reverse: bool, x: Tensor, w_hh: Tensor) -> Tensor:
    """The steps' rows under each other; without steps, an empty tensor."""
    if not steps:
        return x.new_empty(0) if len(x) else x.new_empty(0, w_hh.shape[1])
    return torch.cat(steps[::-1] if reverse else steps)


def _before(states: Tensor, initial: Tensor, steps: Sequence[tuple[slice, int]]) -> Tensor:
    """For every row [N, H] the state that its step started from."""
    before, state = torch.empty_like(states), initial
    for rows, n in steps:
        before[rows] = state[:n]
        state = _replaced(state, states[rows])
    return before

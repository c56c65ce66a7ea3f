"""LSTM on a GPU: one kernel for the whole sequence forward, one backward.

With W = W_hh, a_* = W_ih x + b (b_ih + b_hh), per step:

    i, f, o = sigmoid(a + W h),  g = tanh(a_g + W_g h)
    c = f c + i g,  h = o tanh(c)

backward, from dh (of y and of the next step) and dc:

    dc += dh o (1 - tanh²(c))
    di = dc g i (1-i),  df = dc c' f (1-f),  dg = dc i (1-g²),  do = dh tanh(c) o (1-o)
    dh' = W^T [di df dg do],  dc' = dc f
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: RUF005 (Triton compiles no starred tuples)
from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from .rnn_launch import NARROW, Rows, launch, plan, with_precision
from .rnn_triton import (
    DYNAMIC,
    active,
    ahead,
    buffer,
    gl,
    gluon,
    input_columns,
    load_all,
    next_row,
    partial,
    project,
    put,
    row,
    sequences,
    sigmoid,
    tanh,
    time,
    total,
    units,
    weight,
)


@gluon.jit(**DYNAMIC)
def lstm_forward_kernel(
    x,  # [N, I]; wide input (IN = 0): W_ih x [N, 4H]
    w_ih,  # [4H, I]
    w_hh,  # [4H, H]
    b_ih,  # [4H] or None
    b_hh,  # [4H] or None
    h0,  # [B, H]
    c0,  # [B, H]
    y,  # [N, H]
    h_n,  # [B, H]
    c_n,  # [B, H]
    gates,  # [N, 4H] or None
    cells,  # [N, H], with gates
    offsets,  # int64 [T + 4] or None
    lengths,  # int32 [B] or None
    T,
    B,
    IN: tl.constexpr,
    H: tl.constexpr,
    P: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """Run `P.rows` sequences a program, first step to last (REVERSE: last to first)."""
    E: tl.constexpr = y.dtype.element_ty
    b, length, steps = sequences(lengths, T, B, P)
    j = gl.arange(0, P.units, gl.SliceLayout(1, P.state))
    real = (j < H)[:, None]
    b = b.to(gl.int64)[None, :]
    length = length[None, :]
    state = b * H + j[:, None]
    gate = b * (4 * H) + j[:, None]
    mask = real & (length > 0)

    w_i = weight(w_hh, H, H, 1, P)
    w_f = weight(w_hh + H * H, H, H, 1, P)
    w_g = weight(w_hh + 2 * H * H, H, H, 1, P)
    w_o = weight(w_hh + 3 * H * H, H, H, 1, P)
    columns = input_columns(w_ih, 4, IN, H, P)
    bias = ()
    for k in gl.static_range(4):
        if b_ih is None:
            bias = bias + (units(None, 1, H, P),)
        else:
            bias = bias + (units(b_ih + k * H, 1, H, P) + units(b_hh + k * H, 1, H, P),)

    h = gl.load(h0 + state, mask=mask, other=0.0).to(gl.float32)
    c = gl.load(c0 + state, mask=mask, other=0.0).to(gl.float32)
    shared = buffer(y, P)
    C: tl.constexpr = IN if IN else 4
    S: tl.constexpr = 1 if IN else H
    W: tl.constexpr = IN if IN else 4 * H
    xcol = b * IN if IN else gate
    t0 = time(0, steps, REVERSE)
    t1 = time(1, steps, REVERSE)
    r0 = row(offsets, t0, B)
    r1 = next_row(offsets, r0, t1, B, REVERSE)
    x0 = load_all(x + r0 * W, xcol, ahead(t0, length) & real, C, S)
    x1 = load_all(x + r1 * W, xcol, ahead(t1, length) & real, C, S)
    for step in range(steps):
        t = time(step, steps, REVERSE)
        t2 = time(step + 2, steps, REVERSE)
        r2 = next_row(offsets, r1, t2, B, REVERSE)
        x2 = load_all(x + r2 * W, xcol, ahead(t2, length) & real, C, S)
        put(shared, h, y, P)
        hs = shared.load(P.operand)
        i = sigmoid(total(partial(w_i, hs, P), P) + project(x0, columns, bias, 0, IN), P)
        f = sigmoid(total(partial(w_f, hs, P), P) + project(x0, columns, bias, 1, IN), P)
        g = tanh(total(partial(w_g, hs, P), P) + project(x0, columns, bias, 2, IN), P)
        o = sigmoid(total(partial(w_o, hs, P), P) + project(x0, columns, bias, 3, IN), P)
        c_new = f * c + i * g
        h_new = o * tanh(c_new, P)
        now = active(t, length, lengths)
        out = now & real
        gl.store(y + r0 * H + state, h_new.to(E), mask=out)
        if gates is not None:
            at = gates + r0 * (4 * H) + gate
            gl.store(at, i.to(E), mask=out)
            gl.store(at + H, f.to(E), mask=out)
            gl.store(at + 2 * H, g.to(E), mask=out)
            gl.store(at + 3 * H, o.to(E), mask=out)
            gl.store(cells + r0 * H + state, c_new.to(E), mask=out)
        c = c_new if lengths is None else gl.where(now, c_new, c)
        h = h_new if lengths is None else gl.where(now, h_new, h)
        x0 = x1
        x1 = x2
        r0 = r1
        r1 = r2
    gl.store(h_n + state, h.to(E), mask=mask)
    gl.store(c_n + state, c.to(E), mask=mask)


@gluon.jit(**DYNAMIC)
def lstm_backward_kernel(
    dy,  # [N, H]
    dh_n,  # [B, H]
    dc_n,  # [B, H]
    w_hh,  # [4H, H]
    c0,  # [B, H]
    gates,  # [N, 4H]
    cells,  # [N, H]
    dgates,  # [N, 4H]: gradients before the activations
    dh0,  # [B, H]
    dc0,  # [B, H]
    offsets,  # int64 [T + 4] or None
    lengths,  # int32 [B] or None
    T,
    B,
    H: tl.constexpr,
    P: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """Write `dgates` and the initial state's gradient, walking against the forward's way."""
    E: tl.constexpr = dgates.dtype.element_ty
    BACKWARDS: tl.constexpr = not REVERSE
    b, length, steps = sequences(lengths, T, B, P)
    j = gl.arange(0, P.units, gl.SliceLayout(1, P.state))
    real = (j < H)[:, None]
    b = b.to(gl.int64)[None, :]
    length = length[None, :]
    state = b * H + j[:, None]
    gate = b * (4 * H) + j[:, None]
    mask = real & (length > 0)

    w_i = weight(w_hh, H, 1, H, P)
    w_f = weight(w_hh + H * H, H, 1, H, P)
    w_g = weight(w_hh + 2 * H * H, H, 1, H, P)
    w_o = weight(w_hh + 3 * H * H, H, 1, H, P)
    dh = gl.load(dh_n + state, mask=mask, other=0.0).to(gl.float32)
    dc = gl.load(dc_n + state, mask=mask, other=0.0).to(gl.float32)
    first = gl.load(c0 + state, mask=mask, other=0.0).to(gl.float32)
    s_i = buffer(dgates, P)
    s_f = buffer(dgates, P)
    s_g = buffer(dgates, P)
    s_o = buffer(dgates, P)
    t0 = time(0, steps, BACKWARDS)
    t1 = time(1, steps, BACKWARDS)
    r0 = row(offsets, t0, B)
    r1 = next_row(offsets, r0, t1, B, BACKWARDS)
    m0 = ahead(t0, length) & real
    m1 = ahead(t1, length) & real
    g0 = load_all(gates + r0 * (4 * H), gate, m0, 4, H)
    g1 = load_all(gates + r1 * (4 * H), gate, m1, 4, H)
    d0 = gl.load(dy + r0 * H + state, mask=m0, other=0.0)
    d1 = gl.load(dy + r1 * H + state, mask=m1, other=0.0)
    c0 = gl.load(cells + r0 * H + state, mask=m0, other=0.0)
    c1 = gl.load(cells + r1 * H + state, mask=m1, other=0.0)
    for step in range(steps):
        t = time(step, steps, BACKWARDS)
        t2 = time(step + 2, steps, BACKWARDS)
        r2 = next_row(offsets, r1, t2, B, BACKWARDS)
        m2 = ahead(t2, length) & real
        g2 = load_all(gates + r2 * (4 * H), gate, m2, 4, H)
        d2 = gl.load(dy + r2 * H + state, mask=m2, other=0.0)
        c2 = gl.load(cells + r2 * H + state, mask=m2, other=0.0)
        i = g0[0].to(gl.float32)
        f = g0[1].to(gl.float32)
        g = g0[2].to(gl.float32)
        o = g0[3].to(gl.float32)
        before = gl.where(ahead(time(step + 1, steps, BACKWARDS), length), c1.to(gl.float32), first)
        tc = tanh(c0.to(gl.float32), P)
        dh_t = dh + d0.to(gl.float32)
        dc_t = dc + dh_t * (o * (1.0 - tc * tc))
        di = dc_t * (g * i * (1.0 - i))
        df = dc_t * (before * f * (1.0 - f))
        dg = dc_t * (i * (1.0 - g * g))
        do = dh_t * (tc * o * (1.0 - o))
        put(s_i, di, dgates, P)
        put(s_f, df, dgates, P)
        put(s_g, dg, dgates, P)
        put(s_o, do, dgates, P)
        now = active(t, length, lengths)
        out = now & real
        at = dgates + r0 * (4 * H) + gate
        gl.store(at, di.to(E), mask=out)
        gl.store(at + H, df.to(E), mask=out)
        gl.store(at + 2 * H, dg.to(E), mask=out)
        gl.store(at + 3 * H, do.to(E), mask=out)
        # Four sums, so that four products are under way at once.
        dh_if = partial(w_i, s_i.load(P.operand), P) + partial(w_f, s_f.load(P.operand), P)
        dh_go = partial(w_g, s_g.load(P.operand), P) + partial(w_o, s_o.load(P.operand), P)
        dh_new = total(dh_if + dh_go, P)
        dc_new = dc_t * f
        dh = dh_new if lengths is None else gl.where(now, dh_new, dh)
        dc = dc_new if lengths is None else gl.where(now, dc_new, dc)
        g0 = g1
        g1 = g2
        d0 = d1
        d1 = d2
        c0 = c1
        c1 = c2
        r0 = r1
        r1 = r2
    gl.store(dh0 + state, dh.to(E), mask=mask)
    gl.store(dc0 + state, dc.to(E), mask=mask)


@with_precision
def lstm_forward(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    batch_sizes: Tensor | None,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Outputs y [N, H], h_n, c_n [B, H], activated gates [N, 4H], cells [N, H].

    Without `save`, gates and cells are empty.
    """
    (n, i), (batch, h) = x.shape, h0.shape
    y = x.new_empty(n, h)
    gates = x.new_empty((n, 4 * h) if save else 0)
    cells = x.new_empty((n, h) if save else 0)
    if batch == 0:
        return y, h0.clone(), c0.clone(), gates, cells
    h_n, c_n = torch.empty_like(h0), torch.empty_like(c0)
    rows = Rows.of(x, batch, batch_sizes)
    if i > NARROW:
        x, i = torch.nn.functional.linear(x, w_ih), 0
    spread = plan(h, batch, x)
    saved = (gates, cells) if save else (None, None)
    launch(
        lstm_forward_kernel, spread, batch, x.device,
        x, w_ih, w_hh, b_ih, b_hh, h0, c0, y, h_n, c_n, *saved, rows.offsets, rows.lengths,
        rows.steps, batch, i, h, spread, reverse,
    )  # fmt: skip
    return y, h_n, c_n, gates, cells


@with_precision
def lstm_backward(
    dy: Tensor,
    dh_n: Tensor,
    dc_n: Tensor,
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
    """Gradients dx [N, I] (empty unless need_dx), dh0, dc0 [B, H], dw_ih, dw_hh, db [4H]."""
    batch, h = h0.shape
    if batch == 0:
        dx = x.new_empty(x.shape if need_dx else 0)
        dw_ih, dw_hh, db = torch.zeros_like(w_ih), torch.zeros_like(w_hh), w_hh.new_zeros(4 * h)
        return dx, dh_n.clone(), dc_n.clone(), dw_ih, dw_hh, db
    dgates = torch.empty_like(gates)
    dh0, dc0 = torch.empty_like(h0), torch.empty_like(c0)
    rows = Rows.of(x, batch, batch_sizes)
    spread = plan(h, batch, x)
    launch(
        lstm_backward_kernel, spread, batch, x.device,
        dy, dh_n, dc_n, w_hh, c0, gates, cells, dgates, dh0, dc0, rows.offsets, rows.lengths,
        rows.steps, batch, h, spread, reverse,
    )  # fmt: skip
    dx = dgates @ w_ih if need_dx else x.new_empty(0)
    dw_hh = rows.recurrent_gradient(dgates, h0, y, reverse)
    return dx, dh0, dc0, dgates.t() @ x, dw_hh, dgates.sum(0)

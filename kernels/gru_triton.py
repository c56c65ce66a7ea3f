"""GRU on a GPU: one kernel for the whole sequence forward, one backward.

With W = W_hh, a_* = W_ih x + b_ih (and b_hh for r and z), per step:

    r, z = sigmoid(a + W h),  m = W_n h + b_hn,  n = tanh(a_n + r m)
    h = n + z (h' - n)

backward, from dh (of y and of the next step):

    dn = dh (1-z) (1-n²),  dr = dn m r (1-r),  dz = dh (h' - n) z (1-z),  dm = dn r
    dh' = dh z + W^T [dr dz dm]
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
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
def gru_forward_kernel(
    x,  # [N, I]; wide input (IN = 0): W_ih x [N, 3H]
    w_ih,  # [3H, I]
    w_hh,  # [3H, H]
    b_ih,  # [3H] or None
    b_hh,  # [3H] or None
    h0,  # [B, H]
    y,  # [N, H]
    h_n,  # [B, H]
    gates,  # [N, 4H]: r, z, n, m; or None
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

    w_r = weight(w_hh, H, H, 1, P)
    w_z = weight(w_hh + H * H, H, H, 1, P)
    w_n = weight(w_hh + 2 * H * H, H, H, 1, P)
    columns = input_columns(w_ih, 3, IN, H, P)
    if b_ih is None:
        zero = units(None, 1, H, P)
        bias = (zero, zero, zero)
        b_n = zero
    else:
        b_r = units(b_ih, 1, H, P) + units(b_hh, 1, H, P)
        b_z = units(b_ih + H, 1, H, P) + units(b_hh + H, 1, H, P)
        bias = (b_r, b_z, units(b_ih + 2 * H, 1, H, P))
        b_n = units(b_hh + 2 * H, 1, H, P)

    h = gl.load(h0 + state, mask=mask, other=0.0).to(gl.float32)
    shared = buffer(y, P)
    C: tl.constexpr = IN if IN else 3
    S: tl.constexpr = 1 if IN else H
    W: tl.constexpr = IN if IN else 3 * H
    xcol = b * IN if IN else b * (3 * H) + j[:, None]
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
        r = sigmoid(total(partial(w_r, hs, P), P) + project(x0, columns, bias, 0, IN), P)
        m = total(partial(w_n, hs, P), P) + b_n
        z = sigmoid(total(partial(w_z, hs, P), P) + project(x0, columns, bias, 1, IN), P)
        n = tanh(project(x0, columns, bias, 2, IN) + r * m, P)
        h_new = n + z * (h - n)
        now = active(t, length, lengths)
        out = now & real
        gl.store(y + r0 * H + state, h_new.to(E), mask=out)
        if gates is not None:
            at = gates + r0 * (4 * H) + gate
            gl.store(at, r.to(E), mask=out)
            gl.store(at + H, z.to(E), mask=out)
            gl.store(at + 2 * H, n.to(E), mask=out)
            gl.store(at + 3 * H, m.to(E), mask=out)
        h = h_new if lengths is None else gl.where(now, h_new, h)
        x0 = x1
        x1 = x2
        r0 = r1
        r1 = r2
    gl.store(h_n + state, h.to(E), mask=mask)


@gluon.jit(**DYNAMIC)
def gru_backward_kernel(
    dy,  # [N, H]
    dh_n,  # [B, H]
    w_hh,  # [3H, H]
    h0,  # [B, H]
    y,  # [N, H]
    gates,  # [N, 4H]
    dgates,  # [N, 4H]: dn, dr, dz, dm, so that the recurrent half's three are neighbours
    dh0,  # [B, H]
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

    w_r = weight(w_hh, H, 1, H, P)
    w_z = weight(w_hh + H * H, H, 1, H, P)
    w_n = weight(w_hh + 2 * H * H, H, 1, H, P)
    dh = gl.load(dh_n + state, mask=mask, other=0.0).to(gl.float32)
    first = gl.load(h0 + state, mask=mask, other=0.0).to(gl.float32)
    s_r = buffer(dgates, P)
    s_z = buffer(dgates, P)
    s_m = buffer(dgates, P)
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
    y1 = gl.load(y + r1 * H + state, mask=m1, other=0.0)
    for step in range(steps):
        t = time(step, steps, BACKWARDS)
        t2 = time(step + 2, steps, BACKWARDS)
        r2 = next_row(offsets, r1, t2, B, BACKWARDS)
        m2 = ahead(t2, length) & real
        g2 = load_all(gates + r2 * (4 * H), gate, m2, 4, H)
        d2 = gl.load(dy + r2 * H + state, mask=m2, other=0.0)
        y2 = gl.load(y + r2 * H + state, mask=m2, other=0.0)
        r = g0[0].to(gl.float32)
        z = g0[1].to(gl.float32)
        n = g0[2].to(gl.float32)
        m = g0[3].to(gl.float32)
        before = gl.where(ahead(time(step + 1, steps, BACKWARDS), length), y1.to(gl.float32), first)
        dh_t = dh + d0.to(gl.float32)
        dn = dh_t * ((1.0 - z) * (1.0 - n * n))
        dz = dh_t * ((before - n) * z * (1.0 - z))
        dr = dn * (m * r * (1.0 - r))
        dm = dn * r
        put(s_r, dr, dgates, P)
        put(s_z, dz, dgates, P)
        put(s_m, dm, dgates, P)
        now = active(t, length, lengths)
        out = now & real
        at = dgates + r0 * (4 * H) + gate
        gl.store(at, dn.to(E), mask=out)
        gl.store(at + H, dr.to(E), mask=out)
        gl.store(at + 2 * H, dz.to(E), mask=out)
        gl.store(at + 3 * H, dm.to(E), mask=out)
        # Three sums, so that three products are under way at once.
        dh_rz = partial(w_r, s_r.load(P.operand), P) + partial(w_z, s_z.load(P.operand), P)
        dh_new = dh_t * z + total(dh_rz + partial(w_n, s_m.load(P.operand), P), P)
        dh = dh_new if lengths is None else gl.where(now, dh_new, dh)
        g0 = g1
        g1 = g2
        d0 = d1
        d1 = d2
        y1 = y2
        r0 = r1
        r1 = r2
    gl.store(dh0 + state, dh.to(E), mask=mask)


@with_precision
def gru_forward(
    x: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    batch_sizes: Tensor | None,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs y [N, H], h_n [B, H] and gates [N, 4H] = r, z, n, m (empty unless save)."""
    (n, i), (batch, h) = x.shape, h0.shape
    y = x.new_empty(n, h)
    gates = x.new_empty((n, 4 * h) if save else 0)
    if batch == 0:
        return y, h0.clone(), gates
    h_n = torch.empty_like(h0)
    rows = Rows.of(x, batch, batch_sizes)
    if i > NARROW:
        x, i = torch.nn.functional.linear(x, w_ih), 0
    spread = plan(h, batch, x)
    launch(
        gru_forward_kernel, spread, batch, x.device,
        x, w_ih, w_hh, b_ih, b_hh, h0, y, h_n, gates if save else None, rows.offsets, rows.lengths,
        rows.steps, batch, i, h, spread, reverse,
    )  # fmt: skip
    return y, h_n, gates


@with_precision
def gru_backward(
    dy: Tensor,
    dh_n: Tensor,
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
    """Gradients dx [N, I] (empty unless need_dx), dh0 [B, H], dw_ih, dw_hh, db_ih, db_hh [3H]."""
    batch, h = h0.shape
    if batch == 0:
        dx = x.new_empty(x.shape if need_dx else 0)
        dw_ih, dw_hh, db = torch.zeros_like(w_ih), torch.zeros_like(w_hh), w_hh.new_zeros(3 * h)
        return dx, dh_n.clone(), dw_ih, dw_hh, db, db.clone()
    dgates = torch.empty_like(gates)
    dh0 = torch.empty_like(h0)
    rows = Rows.of(x, batch, batch_sizes)
    spread = plan(h, batch, x)
    launch(
        gru_backward_kernel, spread, batch, x.device,
        dy, dh_n, w_hh, h0, y, gates, dgates, dh0, rows.offsets, rows.lengths,
        rows.steps, batch, h, spread, reverse,
    )  # fmt: skip
    d_input, d_recurrent = dgates[:, : 3 * h], dgates[:, h:]  # n r z, r z m
    dx = d_input @ w_ih.roll(h, 0) if need_dx else x.new_empty(0)
    dw_ih = (d_input.t() @ x).roll(-h, 0)
    dw_hh = rows.recurrent_gradient(d_recurrent, h0, y, reverse)
    db = dgates.sum(0)
    return dx, dh0, dw_ih, dw_hh, db[: 3 * h].roll(-h), db[h:].clone()

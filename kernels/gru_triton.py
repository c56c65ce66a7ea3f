"""GRU on a GPU: one kernel for the whole sequence forward, one backward.

With W = W_hh, a_* = W_ih x + b_ih (and b_hh for r and z), per step:

    r, z = sigmoid(a + W h),  m = W_n h + b_hn,  n = tanh(a_n + r m)
    h = n + z (h' - n)

backward, from dh (of y and of the next step):

    dn = dh (1-z) (1-n²),  dr = dn m r (1-r),  dz = dh (h' - n) z (1-z),  dm = dn r
    dh' = dh z + W^T [dr dz dm]
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: RUF005 (Triton compiles no starred tuples)
from __future__ import annotations

import triton.language as tl

from .rnn_triton import DYNAMIC, buffer, gl, gluon, partial, put, sigmoid, tanh, total, weights
from .rows_triton import (
    active,
    ahead,
    existing,
    from_memory,
    going,
    input_bias,
    input_columns,
    input_places,
    load,
    load_all,
    load_input,
    places,
    project,
    row,
    row_after_two,
    sequences,
    store,
    time,
    units,
)


@gluon.jit
def activate(s, h, P: tl.constexpr):
    """r, z, n and h, from the sums of r and z (times `slope`), n's of x and m, and the old h."""
    reset = sigmoid(s[0], P)
    z = sigmoid(s[1], P)
    n = tanh(s[2] + reset * s[3], P)
    return reset, z, n, n + z * (h - n)


@gluon.jit
def _forward_step(
    a, b_n, h, w, shared, y, gates, r, t, real, length, lengths, H: tl.constexpr, P: tl.constexpr
):  # fmt: skip
    """One step at time t, row r; `a` is the input's share of the gates. Returns h."""
    put(shared, h, P)
    hs = shared.load(P.operand)
    s0 = total(partial(w[0], hs, P), P) * P.slope + a[0]
    m = total(partial(w[2], hs, P), P) + b_n
    s1 = total(partial(w[1], hs, P), P) * P.slope + a[1]
    reset, z, n, h_new = activate((s0, s1, a[2], m), h, P)
    mask = active(t, length, real, lengths)
    store(y, r * H, (h_new,), mask, H, P)
    if gates is not None:
        store(gates, r * (4 * H), (reset, z, n, m), mask, H, P)
    return going(h_new, h, t, length, lengths)


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
    offsets,  # int64 [T + 10] or None
    lengths,  # int32 [B] or None
    T,
    B,
    skew,  # 0
    IN: tl.constexpr,
    H: tl.constexpr,
    P: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """Run `P.rows` sequences a program, first step to last (REVERSE: last to first)."""
    E: tl.constexpr = y.dtype.element_ty
    first, length, steps = sequences(lengths, T, B, P)
    real = existing(H, P)
    state = places(H, P)
    w = weights(w_hh, 3, H, 1, H, P)
    columns = input_columns(w_ih, 3, IN, H, P)
    bias = input_bias(b_ih, b_hh, 3, 2, H, P)
    b_n = units(None if b_hh is None else b_hh + 2 * H, 1, H, P)
    mask = real[1] & (length[1] > 0)
    h = from_memory(load(h0 + first * H + state, mask, H, P), E, P)
    shared0 = buffer(E, P)
    shared1 = buffer(E, P)
    x += input_places(skew, 3, IN, H, P)
    y += state
    if gates is not None:
        gates += places(4 * H, P)

    # Two steps a turn: each has its own shared memory, so that one barrier a step is enough, and
    # its own registers for early loads, which would be waited for if they were handed on.
    t0 = time(0, steps, REVERSE)
    t1 = time(1, steps, REVERSE)
    r0 = row(offsets, first, t0, B)
    r1 = row(offsets, first, t1, B)
    r2 = row(offsets, first, time(2, steps, REVERSE), B)
    r3 = row(offsets, first, time(3, steps, REVERSE), B)
    x0 = load_input(x, r0, t0, real, length, 3, IN, H, P, REVERSE)
    x1 = load_input(x, r1, t1, real, length, 3, IN, H, P, REVERSE)
    for step in range(0, steps - 1, 2):
        t = time(step, steps, REVERSE)
        a = project(x0, columns, bias, E, 3, IN, P)
        x0 = load_input(x, r2, time(step + 2, steps, REVERSE), real, length, 3, IN, H, P, REVERSE)
        h = _forward_step(a, b_n, h, w, shared0, y, gates, r0, t, real, length, lengths, H, P)
        r0 = r2
        r2 = row_after_two(offsets, first, r2, time(step + 4, steps, REVERSE), B, REVERSE)
        t = time(step + 1, steps, REVERSE)
        a = project(x1, columns, bias, E, 3, IN, P)
        x1 = load_input(x, r3, time(step + 3, steps, REVERSE), real, length, 3, IN, H, P, REVERSE)
        h = _forward_step(a, b_n, h, w, shared1, y, gates, r1, t, real, length, lengths, H, P)
        r1 = r3
        r3 = row_after_two(offsets, first, r3, time(step + 5, steps, REVERSE), B, REVERSE)
    if steps % 2 == 1:
        t = time(steps - 1, steps, REVERSE)
        a = project(x0, columns, bias, E, 3, IN, P)
        h = _forward_step(a, b_n, h, w, shared0, y, gates, r0, t, real, length, lengths, H, P)
    store(h_n + first * H, state, (h,), mask, H, P)


@gluon.jit
def _load_saved(
    gates, dy, y, h0, state, gate, r, r_before, t, t_before, real, length,
    H: tl.constexpr, P: tl.constexpr, BACKWARDS: tl.constexpr,
):  # fmt: skip
    """What the backward step at time t, row r, reads: r, z, n, m, dy, and h before it."""
    mask = ahead(t, length[1], BACKWARDS) & real[1]
    before = gl.where(ahead(t_before, length[1], BACKWARDS), y + r_before * H, h0)
    return load_all(gates + r * (4 * H) + gate, mask, 4, H, P) + (
        load(dy + r * H + state, mask, H, P),
        load(before + state, mask, H, P),
    )


@gluon.jit
def _factors(saved, E: tl.constexpr, P: tl.constexpr):
    """The part of a backward step that does not wait for the step before it.

    Returns dn, dz per dh, dr, dm per dn, z and dy.
    """
    reset = from_memory(saved[0], E, P)
    z = from_memory(saved[1], E, P)
    n = from_memory(saved[2], E, P)
    return (
        (1.0 - z) * (1.0 - n * n),
        (from_memory(saved[5], E, P) - n) * z * (1.0 - z),
        from_memory(saved[3], E, P) * reset * (1.0 - reset),
        reset,
        z,
        from_memory(saved[4], E, P),
    )


@gluon.jit
def _backward_step(
    k, dh, w, shared, dgates, gate, r, t, real, length, lengths, H: tl.constexpr, P: tl.constexpr
):  # fmt: skip
    """One step back from time t, row r, with its factors k. Returns dh."""
    dh_t = dh + k[5]
    dn = dh_t * k[0]
    dz = dh_t * k[1]
    dr = dn * k[2]
    dm = dn * k[3]
    put(shared[0], dr, P)
    put(shared[1], dz, P)
    put(shared[2], dm, P)
    mask = active(t, length, real, lengths)
    store(dgates + r * (4 * H), gate, (dn, dr, dz, dm), mask, H, P)
    # Three sums, so that three products are under way at once.
    dh_rz = partial(w[0], shared[0].load(P.operand), P) + partial(
        w[1], shared[1].load(P.operand), P
    )
    dh_n = partial(w[2], shared[2].load(P.operand), P)
    dh_new = dh_t * k[4] + total(dh_rz + dh_n, P)
    return going(dh_new, dh, t, length, lengths)


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
    offsets,  # int64 [T + 10] or None
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
    first, length, steps = sequences(lengths, T, B, P)
    real = existing(H, P)
    state = places(H, P)
    gate = places(4 * H, P)
    w = weights(w_hh, 3, 1, H, H, P)
    mask = real[1] & (length[1] > 0)
    dh = from_memory(load(dh_n + first * H + state, mask, H, P), E, P)
    h0 += first * H
    shared0 = (buffer(E, P), buffer(E, P), buffer(E, P))
    shared1 = (buffer(E, P), buffer(E, P), buffer(E, P))

    t0 = time(0, steps, BACKWARDS)
    t1 = time(1, steps, BACKWARDS)
    t2 = time(2, steps, BACKWARDS)
    r0 = row(offsets, first, t0, B)
    r1 = row(offsets, first, t1, B)
    r2 = row(offsets, first, t2, B)
    r3 = row(offsets, first, time(3, steps, BACKWARDS), B)
    r4 = row(offsets, first, time(4, steps, BACKWARDS), B)
    s0 = _load_saved(gates, dy, y, h0, state, gate, r0, r1, t0, t1, real, length, H, P, BACKWARDS)
    s1 = _load_saved(gates, dy, y, h0, state, gate, r1, r2, t1, t2, real, length, H, P, BACKWARDS)
    for step in range(0, steps - 1, 2):
        t2 = time(step + 2, steps, BACKWARDS)
        t3 = time(step + 3, steps, BACKWARDS)
        t4 = time(step + 4, steps, BACKWARDS)
        k = _factors(s0, E, P)
        s0 = _load_saved(
            gates, dy, y, h0, state, gate, r2, r3, t2, t3, real, length, H, P, BACKWARDS
        )
        t = time(step, steps, BACKWARDS)
        dh = _backward_step(k, dh, w, shared0, dgates, gate, r0, t, real, length, lengths, H, P)
        k = _factors(s1, E, P)
        s1 = _load_saved(
            gates, dy, y, h0, state, gate, r3, r4, t3, t4, real, length, H, P, BACKWARDS
        )
        t = time(step + 1, steps, BACKWARDS)
        dh = _backward_step(k, dh, w, shared1, dgates, gate, r1, t, real, length, lengths, H, P)
        r0 = r2
        r1 = r3
        r2 = r4
        r3 = row_after_two(offsets, first, r1, time(step + 5, steps, BACKWARDS), B, BACKWARDS)
        r4 = row_after_two(offsets, first, r2, time(step + 6, steps, BACKWARDS), B, BACKWARDS)
    if steps % 2 == 1:
        k = _factors(s0, E, P)
        t = time(steps - 1, steps, BACKWARDS)
        dh = _backward_step(k, dh, w, shared0, dgates, gate, r0, t, real, length, lengths, H, P)
    store(dh0 + first * H, state, (dh,), mask, H, P)

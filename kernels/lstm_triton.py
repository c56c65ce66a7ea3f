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
)


@gluon.jit
def activate(s, c, P: tl.constexpr):
    """The gates, c and h, from the gates' sums (times `slope`, but the third) and the old c."""
    i = sigmoid(s[0], P)
    f = sigmoid(s[1], P)
    g = tanh(s[2], P)
    o = sigmoid(s[3], P)
    c = f * c + i * g
    return i, f, g, o, c, o * tanh(c, P)


@gluon.jit
def _forward_step(
    a, h, c, w, shared, y, gates, cells, r, t, real, length, lengths,
    H: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """One step at time t, row r; `a` is the input's share of the gates. Returns h and c."""
    put(shared, h, P)
    hs = shared.load(P.operand)
    s0 = total(partial(w[0], hs, P), P) * P.slope + a[0]
    s1 = total(partial(w[1], hs, P), P) * P.slope + a[1]
    s2 = total(partial(w[2], hs, P), P) + a[2]
    s3 = total(partial(w[3], hs, P), P) * P.slope + a[3]
    i, f, g, o, c_new, h_new = activate((s0, s1, s2, s3), c, P)
    mask = active(t, length, real, lengths)
    store(y, r * H, (h_new,), mask, H, P)
    if gates is not None:
        store(cells, r * H, (c_new,), mask, H, P)
        store(gates, r * (4 * H), (i, f, g, o), mask, H, P)
    return going(h_new, h, t, length, lengths), going(c_new, c, t, length, lengths)


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
    w = weights(w_hh, 4, H, 1, H, P)
    columns = input_columns(w_ih, 4, IN, H, P)
    bias = input_bias(b_ih, b_hh, 4, 4, H, P)
    mask = real[1] & (length[1] > 0)
    h = from_memory(load(h0 + first * H + state, mask, H, P), E, P)
    c = from_memory(load(c0 + first * H + state, mask, H, P), E, P)
    shared0 = buffer(E, P)
    shared1 = buffer(E, P)
    x += input_places(skew, 4, IN, H, P)
    y += state
    if gates is not None:
        gates += places(4 * H, P)
        cells += state

    # Two steps a turn: each has its own shared memory, so that one barrier a step is enough, and
    # its own registers for early loads, which would be waited for if they were handed on.
    t0 = time(0, steps, REVERSE)
    t1 = time(1, steps, REVERSE)
    r0 = row(offsets, first, t0, B)
    r1 = row(offsets, first, t1, B)
    r2 = row(offsets, first, time(2, steps, REVERSE), B)
    r3 = row(offsets, first, time(3, steps, REVERSE), B)
    x0 = load_input(x, r0, t0, real, length, 4, IN, H, P, REVERSE)
    x1 = load_input(x, r1, t1, real, length, 4, IN, H, P, REVERSE)
    for step in range(0, steps - 1, 2):
        t = time(step, steps, REVERSE)
        a = project(x0, columns, bias, E, 4, IN, P)
        x0 = load_input(x, r2, time(step + 2, steps, REVERSE), real, length, 4, IN, H, P, REVERSE)
        h, c = _forward_step(
            a, h, c, w, shared0, y, gates, cells, r0, t, real, length, lengths, H, P
        )  # fmt: skip
        r0 = r2
        r2 = row_after_two(offsets, first, r2, time(step + 4, steps, REVERSE), B, REVERSE)
        t = time(step + 1, steps, REVERSE)
        a = project(x1, columns, bias, E, 4, IN, P)
        x1 = load_input(x, r3, time(step + 3, steps, REVERSE), real, length, 4, IN, H, P, REVERSE)
        h, c = _forward_step(
            a, h, c, w, shared1, y, gates, cells, r1, t, real, length, lengths, H, P
        )  # fmt: skip
        r1 = r3
        r3 = row_after_two(offsets, first, r3, time(step + 5, steps, REVERSE), B, REVERSE)
    if steps % 2 == 1:
        t = time(steps - 1, steps, REVERSE)
        a = project(x0, columns, bias, E, 4, IN, P)
        h, c = _forward_step(
            a, h, c, w, shared0, y, gates, cells, r0, t, real, length, lengths, H, P
        )  # fmt: skip
    store(h_n + first * H, state, (h,), mask, H, P)
    store(c_n + first * H, state, (c,), mask, H, P)


@gluon.jit
def _load_saved(
    gates, dy, cells, c0, state, gate, r, r_before, t, t_before, real, length,
    H: tl.constexpr, P: tl.constexpr, BACKWARDS: tl.constexpr,
):  # fmt: skip
    """What the backward step at time t, row r, reads: i, f, g, o, dy, and c before it."""
    mask = ahead(t, length[1], BACKWARDS) & real[1]
    before = gl.where(ahead(t_before, length[1], BACKWARDS), cells + r_before * H, c0)
    return load_all(gates + r * (4 * H) + gate, mask, 4, H, P) + (
        load(dy + r * H + state, mask, H, P),
        load(before + state, real[1] & (length[1] > 0), H, P),
    )


@gluon.jit
def _factors(saved, c, E: tl.constexpr, P: tl.constexpr):
    """The part of a backward step that does not wait for the step before it.

    Returns dc per dh, di, df, dg per dc, do per dh, f, dy, and c before the step.
    """
    i = from_memory(saved[0], E, P)
    f = from_memory(saved[1], E, P)
    g = from_memory(saved[2], E, P)
    o = from_memory(saved[3], E, P)
    before = from_memory(saved[5], E, P)
    tc = tanh(c, P)
    return (
        o * (1.0 - tc * tc),
        g * i * (1.0 - i),
        before * f * (1.0 - f),
        i * (1.0 - g * g),
        tc * o * (1.0 - o),
        f,
        from_memory(saved[4], E, P),
        before,
    )


@gluon.jit
def _backward_step(
    k, dh, dc, w, shared, dgates, gate, r, t, real, length, lengths,
    H: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """One step back from time t, row r, with its factors k. Returns dh and dc."""
    dh_t = dh + k[6]
    dc_t = dc + dh_t * k[0]
    di = dc_t * k[1]
    df = dc_t * k[2]
    dg = dc_t * k[3]
    do = dh_t * k[4]
    put(shared[0], di, P)
    put(shared[1], df, P)
    put(shared[2], dg, P)
    put(shared[3], do, P)
    mask = active(t, length, real, lengths)
    store(dgates + r * (4 * H), gate, (di, df, dg, do), mask, H, P)
    # Four sums, so that four products are under way at once.
    dh_if = partial(w[0], shared[0].load(P.operand), P) + partial(
        w[1], shared[1].load(P.operand), P
    )
    dh_go = partial(w[2], shared[2].load(P.operand), P) + partial(
        w[3], shared[3].load(P.operand), P
    )
    dh_new = total(dh_if + dh_go, P)
    dc_new = dc_t * k[5]
    return going(dh_new, dh, t, length, lengths), going(dc_new, dc, t, length, lengths)


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
    # Registers for two steps' early loads, except beside 128 units' weights.
    DEEP: tl.constexpr = P.split > 0 or P.units < 128
    first, length, steps = sequences(lengths, T, B, P)
    real = existing(H, P)
    state = places(H, P)
    gate = places(4 * H, P)
    w = weights(w_hh, 4, 1, H, H, P)
    mask = real[1] & (length[1] > 0)
    dh = from_memory(load(dh_n + first * H + state, mask, H, P), E, P)
    dc = from_memory(load(dc_n + first * H + state, mask, H, P), E, P)
    c0 += first * H
    shared0 = (buffer(E, P), buffer(E, P), buffer(E, P), buffer(E, P))
    shared1 = (buffer(E, P), buffer(E, P), buffer(E, P), buffer(E, P))

    t0 = time(0, steps, BACKWARDS)
    t1 = time(1, steps, BACKWARDS)
    t2 = time(2, steps, BACKWARDS)
    r0 = row(offsets, first, t0, B)
    r1 = row(offsets, first, t1, B)
    r2 = row(offsets, first, t2, B)
    r3 = row(offsets, first, time(3, steps, BACKWARDS), B)
    r4 = row(offsets, first, time(4, steps, BACKWARDS), B)
    c = from_memory(
        load(cells + r0 * H + state, ahead(t0, length[1], BACKWARDS) & real[1], H, P), E, P
    )
    s0 = _load_saved(
        gates, dy, cells, c0, state, gate, r0, r1, t0, t1, real, length, H, P, BACKWARDS
    )
    s1 = _load_saved(
        gates, dy, cells, c0, state, gate, r1, r2, t1, t2, real, length, H, P, BACKWARDS
    )
    for step in range(0, steps - 1, 2):
        t2 = time(step + 2, steps, BACKWARDS)
        t3 = time(step + 3, steps, BACKWARDS)
        t4 = time(step + 4, steps, BACKWARDS)
        k = _factors(s0, c, E, P)
        c = k[7]
        if DEEP:
            s0 = _load_saved(
                gates, dy, cells, c0, state, gate, r2, r3, t2, t3, real, length, H, P, BACKWARDS
            )
        else:
            t1 = time(step + 1, steps, BACKWARDS)
            s1 = _load_saved(
                gates, dy, cells, c0, state, gate, r1, r2, t1, t2, real, length, H, P, BACKWARDS
            )
        t = time(step, steps, BACKWARDS)
        dh, dc = _backward_step(
            k, dh, dc, w, shared0, dgates, gate, r0, t, real, length, lengths, H, P
        )
        k = _factors(s1, c, E, P)
        c = k[7]
        if DEEP:
            s1 = _load_saved(
                gates, dy, cells, c0, state, gate, r3, r4, t3, t4, real, length, H, P, BACKWARDS
            )
        else:
            s0 = _load_saved(
                gates, dy, cells, c0, state, gate, r2, r3, t2, t3, real, length, H, P, BACKWARDS
            )
        t = time(step + 1, steps, BACKWARDS)
        dh, dc = _backward_step(
            k, dh, dc, w, shared1, dgates, gate, r1, t, real, length, lengths, H, P
        )
        r0 = r2
        r1 = r3
        r2 = r4
        r3 = row_after_two(offsets, first, r1, time(step + 5, steps, BACKWARDS), B, BACKWARDS)
        r4 = row_after_two(offsets, first, r2, time(step + 6, steps, BACKWARDS), B, BACKWARDS)
    if steps % 2 == 1:
        k = _factors(s0, c, E, P)
        t = time(steps - 1, steps, BACKWARDS)
        dh, dc = _backward_step(
            k, dh, dc, w, shared0, dgates, gate, r0, t, real, length, lengths, H, P
        )
    store(dh0 + first * H, state, (dh,), mask, H, P)
    store(dc0 + first * H, state, (dc,), mask, H, P)

"""Whole sequences in one launch: a kernel for each direction, for both cells.

`lstm` and `gru` have the cells' arithmetic; LSTM says which one a kernel runs. `plans` describes
how the work is divided. A state is a tuple of [unit, row]s in registers: (h, c) or (h,).

Each loop walks two steps per turn. Each of them has its own shared memory, so that one barrier per
step is enough, and its own registers for what is loaded a step ahead: handing loaded values on to
other registers would wait for them. The loads of a padded batch are prefetched into the L2 cache;
those of a packed batch are not, because its rows are not equally far apart.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: RUF005 (Triton compiles no starred tuples)
from __future__ import annotations

import triton.language as tl

from . import gru, lstm
from .arithmetic import load_weights, partial, share, shared_buffers, total
from .inputs import input_offsets, load_biases, load_columns, load_input, project
from .language import gl, gluon, kernel
from .prefetch import cache_lines, prefetch
from .rows import (
    element_offsets,
    from_memory,
    load,
    load_all,
    load_states,
    prefetch_mask,
    row,
    row_after_two,
    select_running,
    sequences,
    store,
    store_mask,
    store_states,
    time,
    unit_mask,
)
from .sums import add_to_sums, store_sums, zero_sums

# --- forward --------------------------------------------------------------------------------------


@gluon.jit
def _exchange(shared, h, P: tl.constexpr):
    """The state h, a [unit, row], as the product reads it."""
    share(shared, h, P)
    return shared.load(P.operand)


@gluon.jit
def _forward_step(
    a, states, h, w, shared, y, gates, cells, r, t, real, length, lengths,
    H: tl.constexpr, P: tl.constexpr, LSTM: tl.constexpr,
):  # fmt: skip
    """One step at time t, row r; `a` is the input's share of the sums.

    If `P.early`, h is the state as the product reads it, and the step ends with the exchange that
    makes the next h. Otherwise h is (), and the step begins with its exchange. Returns the new
    states and h.
    """
    operand = h if P.early else _exchange(shared, states[0], P)
    if LSTM:
        activated, new = lstm.forward_step(a, states, w, operand, P)
    else:
        activated, new = gru.forward_step(a, states, w, operand, P)
    states = select_running(new, states, t, length, lengths)
    if P.early:
        h = _exchange(shared, states[0], P)
    mask = store_mask(t, length, real, lengths)
    store(y, r * H, (new[0],), mask, H, P)
    if gates is not None:
        if LSTM:
            store(cells, r * H, (new[1],), mask, H, P)
        store(gates, r * (4 * H), activated, mask, H, P)
    return states, h


@kernel
def forward_kernel(
    x,  # [N, I]; wide input (IN = 0): W_ih x [N, G * H], where G is 4 (LSTM) or 3 (GRU)
    w_ih,  # [G * H, I]
    w_hh,  # [G * H, H]
    b_ih,  # [G * H] or None
    b_hh,  # [G * H] or None
    h0,  # [B, H]
    c0,  # [B, H]; GRU: None
    y,  # [N, H]: written
    h_n,  # [B, H]: written
    c_n,  # [B, H]: written; GRU: None
    gates,  # [N, 4H]: written: i f g o, or r z n m; None if no gradients are needed
    cells,  # [N, H]: written: c of each step; GRU, or if gates is None: None
    offsets,  # int64 [T + 10] or None, see fastrnn.kernels.layout.Rows
    lengths,  # int32 [B] or None
    T,
    B,
    skew,  # 0, see inputs.input_offsets
    IN: tl.constexpr,
    H: tl.constexpr,
    P: tl.constexpr,
    LSTM: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """Runs `P.rows` sequences per program from first step to last; if REVERSE, last to first.

    LSTM:
        i, f, o = sigmoid(W_ih x + W_hh h + b),  g = tanh(W_ih x + W_hh h + b)
        c' = f c + i g,  h' = o tanh(c')
    GRU:
        r, z = sigmoid(W_ih x + W_hh h + b),  m = W_hh h + b_hh
        n = tanh(W_ih x + b_ih + r m),  h' = n + z (h - n)
    """
    E: tl.constexpr = y.dtype.element_ty
    GATES: tl.constexpr = 4 if LSTM else 3
    first, length, steps = sequences(lengths, T, B, P)
    real = unit_mask(H, P)
    at = element_offsets(H, P)
    w = load_weights(w_hh, GATES, H, 1, H, P)
    columns = load_columns(w_ih, GATES, IN, H, P)
    biases = load_biases(b_ih, b_hh, GATES, H, P)
    mask = real[1] & (length[1] > 0)
    states = load_states(h0, c0, first * H, at, mask, E, H, P)
    shared0, shared1 = shared_buffers(2, E, P)
    h = _exchange(shared1, states[0], P) if P.early else ()
    PREFETCH: tl.constexpr = IN == 0 and offsets is None and P.math != "portable"
    if PREFETCH:
        lines, distance, limit = cache_lines(x, GATES, (), first, B, steps, REVERSE, H, P)
    x += input_offsets(skew, GATES, IN, H, P)
    y += at
    if gates is not None:
        gates += element_offsets(4 * H, P)
        if LSTM:
            cells += at

    t0 = time(0, steps, REVERSE)
    t1 = time(1, steps, REVERSE)
    r0 = row(offsets, first, t0, B)
    r1 = row(offsets, first, t1, B)
    r2 = row(offsets, first, time(2, steps, REVERSE), B)
    r3 = row(offsets, first, time(3, steps, REVERSE), B)
    x0 = load_input(x, r0, t0, real, length, GATES, IN, H, P, REVERSE)
    x1 = load_input(x, r1, t1, real, length, GATES, IN, H, P, REVERSE)
    # With a 64-bit stride, the tensor form takes fewer instructions, but the vector form would take
    # more registers.
    stride = B if P.split else B.to(gl.int64)
    for step in range(0, steps - 1, 2):
        a = project(x0, columns, biases, E, GATES, IN, P)
        t2 = time(step + 2, steps, REVERSE)
        x0 = load_input(x, r2, t2, real, length, GATES, IN, H, P, REVERSE)
        t = time(step, steps, REVERSE)
        states, h = _forward_step(
            a, states, h, w, shared0, y, gates, cells, r0, t, real, length, lengths, H, P, LSTM
        )
        r0 = r2
        r2 = row_after_two(offsets, first, r2, time(step + 4, steps, REVERSE), stride, REVERSE)
        a = project(x1, columns, biases, E, GATES, IN, P)
        t3 = time(step + 3, steps, REVERSE)
        x1 = load_input(x, r3, t3, real, length, GATES, IN, H, P, REVERSE)
        t = time(step + 1, steps, REVERSE)
        states, h = _forward_step(
            a, states, h, w, shared1, y, gates, cells, r1, t, real, length, lengths, H, P, LSTM
        )
        if PREFETCH:
            prefetch(lines, step < limit)
            lines += distance
        r1 = r3
        r3 = row_after_two(offsets, first, r3, time(step + 5, steps, REVERSE), stride, REVERSE)
    if steps % 2 == 1:
        a = project(x0, columns, biases, E, GATES, IN, P)
        t = time(steps - 1, steps, REVERSE)
        states, h = _forward_step(
            a, states, h, w, shared0, y, gates, cells, r0, t, real, length, lengths, H, P, LSTM
        )
    store_states(h_n, c_n, first * H, at, states, mask, H, P)


# --- backward -------------------------------------------------------------------------------------


@gluon.jit
def _load_saved(
    source, r, r_before, t, t_before, real, length,
    H: tl.constexpr, P: tl.constexpr, LSTM: tl.constexpr, BACKWARDS: tl.constexpr,
):  # fmt: skip
    """What the backward step at time t, row r, reads: gates, dy, c (LSTM) or h before it; x."""
    gates, dy, states, initial, at_gates, at, x = source
    mask = prefetch_mask(t, length[1], BACKWARDS) & real[1]
    inside = prefetch_mask(t_before, length[1], BACKWARDS)
    before = gl.where(inside, states + r_before * H, initial)
    saved = load_all(gates + r * (4 * H) + at_gates, mask, 4, H, P) + (
        load(dy + r * H + at, mask, H, P),
        # An LSTM's c before time t is c' of the next turn, also where a sequence ends before t.
        load(before + at, (real[1] & (length[1] > 0)) if LSTM else mask, H, P),
    )
    if x is not None:
        saved = saved + load_input(x, r, t, real, length, 4, 1, H, P, BACKWARDS)
    return saved


@gluon.jit
def _factors(saved, after, E: tl.constexpr, P: tl.constexpr, LSTM: tl.constexpr):
    """The part of a backward step that does not wait for the step taken before it.

    `after` is (c',) of this step, or () for a GRU. Returns the cell's factors, dy, (x,) or (), and
    `after` of the next step.
    """
    gates = ()
    for k in gl.static_range(4):
        gates = gates + (from_memory(saved[k], E, P),)
    before = from_memory(saved[5], E, P)
    if LSTM:
        factors = lstm.factors(gates, before, after[0], P)
        after = (before,)
    else:
        factors = gru.factors(gates, before)
    x = (saved[6].to(gl.float32),) if len(saved) > 6 else ()
    return (factors, from_memory(saved[4], E, P), x), after


@gluon.jit
def _products(w, shared, operands, P: tl.constexpr):
    """Each gate's share of the product, as far as a thread can sum it: all are under way at once.

    `operands` are the gates' gradients as the product reads them, or (): then they are read here.
    """
    parts = ()
    for g in gl.static_range(len(w)):
        operand = operands[g] if len(operands) > 0 else shared[g].load(P.operand)
        parts = parts + (partial(w[g], operand, P),)
    return parts


@gluon.jit
def _backward_step(
    k, d_states, sums, w, shared, target, r, t, real, length, lengths,
    H: tl.constexpr, P: tl.constexpr, LSTM: tl.constexpr,
):  # fmt: skip
    """One step back from time t, row r, with k from `_factors`.

    Returns the new d_states and sums; `sums` may be ().
    """
    factors, dy, x = k
    dgates, at_gates = target
    if LSTM:
        d, new = lstm.gate_gradients(factors, dy, d_states)
    else:
        d, new = gru.gate_gradients(factors, dy, d_states)
    for g in gl.static_range(len(w)):
        share(shared[g], d[4 - len(w) + g], P)  # of a GRU not dn: n has no share of h
    mask = store_mask(t, length, real, lengths)
    operands = ()
    if P.early and P.free:  # otherwise other programs on the multiprocessor fill the wait
        for g in gl.static_range(len(w)):
            operands = operands + (shared[g].load(P.operand),)
    store(dgates + r * (4 * H), at_gates, d, mask, H, P)
    parts = _products(w, shared, operands, P)
    if len(sums) > 0:
        sums = add_to_sums(sums, d, x, t, length, lengths)
    rest = parts[2] + parts[3] if LSTM else parts[2]
    product = total(parts[0] + parts[1] + rest, P)
    if LSTM:
        new = lstm.state_gradients(factors, new, product)
    else:
        new = gru.state_gradients(factors, new, product)
    return select_running(new, d_states, t, length, lengths), sums


@kernel
def backward_kernel(
    dy,  # [N, H]
    dh_n,  # [B, H]
    dc_n,  # [B, H]; GRU: None
    w_hh,  # [G * H, H], where G is 4 (LSTM) or 3 (GRU)
    initial,  # [B, H]: c0; GRU: h0
    states,  # [N, H]: cells; GRU: y
    gates,  # [N, 4H]: i f g o, or r z n m
    dgates,  # [N, 4H]: written: di df dg do, or dn dr dz dm, with the recurrent three last
    dh0,  # [B, H]: written
    dc0,  # [B, H]: written; GRU: None
    x,  # [N, 1]; None if the gradient of W_ih is not summed here
    totals,  # float32 [programs, 4 or 4 + G, H]: written, see `sums`; None if nothing is summed
    offsets,  # int64 [T + 10] or None, see fastrnn.kernels.layout.Rows
    lengths,  # int32 [B] or None
    T,
    B,
    skew,  # 0, see inputs.input_offsets
    H: tl.constexpr,
    P: tl.constexpr,
    LSTM: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """Walks `P.rows` sequences per program against the forward kernel's direction (REVERSE).

    LSTM:
        dc' += dh' o (1 - tanh²(c'))
        di = dc' g i (1-i),  df = dc' c f (1-f),  dg = dc' i (1-g²),  do = dh' tanh(c') o (1-o)
        dh = W_hh^T [di df dg do],  dc = dc' f
    GRU:
        dn = dh' (1-z) (1-n²),  dr = dn m r (1-r),  dz = dh' (h - n) z (1-z),  dm = dn r
        dh = dh' z + W_hh^T [dr dz dm]

    where dh' has dy of its step in it.
    """
    E: tl.constexpr = dgates.dtype.element_ty
    BACKWARDS: tl.constexpr = not REVERSE
    GATES: tl.constexpr = 4 if LSTM else 3
    # There are registers to load for two steps ahead, except next to the LSTM's weights of 128
    # units, which leave enough for one. Where there are more still, a turn begins with the loads
    # for both its steps. Spread over the turn they would share a scoreboard, and each step would
    # wait for the loads that the other has just issued.
    DEEP: tl.constexpr = not LSTM or P.split > 0 or P.units < 128
    TOGETHER: tl.constexpr = (P.free and P.units == 32) if P.split else P.units < 128
    PREFETCH: tl.constexpr = offsets is None and P.math != "portable"
    first, length, steps = sequences(lengths, T, B, P)
    real = unit_mask(H, P)
    at = element_offsets(H, P)
    at_gates = element_offsets(4 * H, P)
    w = load_weights(w_hh, GATES, 1, H, H, P)
    mask = real[1] & (length[1] > 0)
    d_states = load_states(dh_n, dc_n, first * H, at, mask, E, H, P)
    initial += first * H
    if x is not None:
        x += input_offsets(skew, GATES, 1, H, P)
    sums = ()
    if totals is not None:
        sums = zero_sums(4 if x is None else 4 + GATES, P)
    shared0 = shared_buffers(GATES, E, P)
    shared1 = shared_buffers(GATES, E, P)

    t0 = time(0, steps, BACKWARDS)
    t1 = time(1, steps, BACKWARDS)
    t2 = time(2, steps, BACKWARDS)
    r0 = row(offsets, first, t0, B)
    r1 = row(offsets, first, t1, B)
    r2 = row(offsets, first, t2, B)
    r3 = row(offsets, first, time(3, steps, BACKWARDS), B)
    r4 = row(offsets, first, time(4, steps, BACKWARDS), B)
    target = (dgates, at_gates)
    source = (gates, dy, states, initial, at_gates, at, x)
    after = ()
    if LSTM:
        c = load(states + r0 * H + at, prefetch_mask(t0, length[1], BACKWARDS) & real[1], H, P)
        after = (from_memory(c, E, P),)
    s0 = _load_saved(source, r0, r1, t0, t1, real, length, H, P, LSTM, BACKWARDS)
    s1 = _load_saved(source, r1, r2, t1, t2, real, length, H, P, LSTM, BACKWARDS)
    if PREFETCH:
        lines, distance, limit = cache_lines(
            gates, 4, (dy, states), first, B, steps, BACKWARDS, H, P
        )
    for step in range(0, steps - 1, 2):
        t2 = time(step + 2, steps, BACKWARDS)
        t3 = time(step + 3, steps, BACKWARDS)
        t4 = time(step + 4, steps, BACKWARDS)
        k0, after = _factors(s0, after, E, P, LSTM)
        if TOGETHER:
            k1, after = _factors(s1, after, E, P, LSTM)
        if DEEP:
            s0 = _load_saved(source, r2, r3, t2, t3, real, length, H, P, LSTM, BACKWARDS)
        else:
            t1 = time(step + 1, steps, BACKWARDS)
            s1 = _load_saved(source, r1, r2, t1, t2, real, length, H, P, LSTM, BACKWARDS)
        if TOGETHER:
            s1 = _load_saved(source, r3, r4, t3, t4, real, length, H, P, LSTM, BACKWARDS)
        t = time(step, steps, BACKWARDS)
        d_states, sums = _backward_step(
            k0, d_states, sums, w, shared0, target, r0, t, real, length, lengths, H, P, LSTM
        )
        if not TOGETHER:
            k1, after = _factors(s1, after, E, P, LSTM)
            if DEEP:
                s1 = _load_saved(source, r3, r4, t3, t4, real, length, H, P, LSTM, BACKWARDS)
            else:
                s0 = _load_saved(source, r2, r3, t2, t3, real, length, H, P, LSTM, BACKWARDS)
        t = time(step + 1, steps, BACKWARDS)
        d_states, sums = _backward_step(
            k1, d_states, sums, w, shared1, target, r1, t, real, length, lengths, H, P, LSTM
        )
        if PREFETCH:
            prefetch(lines, step < limit)
            lines += distance
        r0 = r2
        r1 = r3
        r2 = r4
        r3 = row_after_two(offsets, first, r1, time(step + 5, steps, BACKWARDS), B, BACKWARDS)
        r4 = row_after_two(offsets, first, r2, time(step + 6, steps, BACKWARDS), B, BACKWARDS)
    if steps % 2 == 1:
        k, after = _factors(s0, after, E, P, LSTM)
        t = time(steps - 1, steps, BACKWARDS)
        d_states, sums = _backward_step(
            k, d_states, sums, w, shared0, target, r0, t, real, length, lengths, H, P, LSTM
        )
    store_states(dh0, dc0, first * H, at, d_states, mask, H, P)
    if totals is not None:
        store_sums(totals, sums, length, H, P)

"""One time step per launch, or all in one: product, gates and state, for both cells.

These kernels run single steps, and layers that are too large for one multiprocessor. A program
computes some sequences (rows) of some hidden units. It walks the columns of x and h, multiplies
them with the weights of all gates of its units, and computes the new state from the sums, which
never leave it. A step needs all of h of the step before it, so a sequence is walked in one of two
ways:

- one launch per step, which a CUDA graph can capture;
- persistent: one launch of programs that all run at once, which the driver guarantees, and that
  wait for each other after every step.

`lstm` and `gru` have the equations. Both cells have four sums per unit: of i, f, g, o; or of r, z,
n, m, where x has no share of m, and h none of n. `state` is what a unit passes on to its own next
step: c, or h.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: RUF005 (Triton compiles no starred tuples)
from __future__ import annotations

import triton
import triton.language as tl

from .language import INTERPRETED

# The interpreter computes with numpy, which does not multiply bfloat16.
_WIDEN: tl.constexpr = tl.constexpr(INTERPRETED)
_DYNAMIC = ["T", "B", "begin", "end"]  # numbers whose values compile nothing anew


@triton.jit
def _tanh(x):
    """Hyperbolic tangent, see `arithmetic.tanh`."""
    z = x * x
    p = 1.875122e-2 * z - 5.356414e-2
    p = p * z + 1.3331235e-1
    p = p * z - 3.3333299e-1
    return tl.where(tl.abs(x) < 0.4, p * z * x + x, 1.0 - 2.0 / (1.0 + tl.exp(2.0 * x)))


@triton.jit
def _rows(offsets, t, T, B, first):
    """Row of sequence `first` at time t, and how many rows t has from there on.

    There are none (0 or fewer) if t lies before or past the sequence.
    """
    if offsets is None:
        return first + B.to(tl.int64) * t, tl.where((t >= 0) & (t < T), B, 0) - first
    else:
        start = tl.load(offsets + 5 + t)
        return start + first, tl.load(offsets + 6 + t) - start - first


@triton.jit
def _wait_for_all(arrived, times):
    """Waits until all programs have come here so often; what they stored before is then visible."""
    programs = tl.num_programs(0) * tl.num_programs(1)
    tl.debug_barrier()
    tl.atomic_add(arrived, 1, sem="release")
    while tl.atomic_add(arrived, 0, sem="acquire") < times * programs:
        pass
    tl.debug_barrier()


# --- the product ----------------------------------------------------------------------------------


@triton.jit
def _begin(share, P: tl.constexpr):
    """Sums that start from a share [row or 1, unit], for `_multiply` and, at last, `_total`."""
    if P.dot:
        return tl.broadcast_to(share, [P.rows, P.units])
    else:  # a sum for each column; the first one's begins with the share
        share = tl.where(tl.arange(0, P.depth)[None, None, :] == 0, share[:, :, None], 0.0)
        return tl.broadcast_to(share, [P.rows, P.units, P.depth])


@triton.jit
def _multiply(sums, a, w, P: tl.constexpr):
    """Adds the products of a [row, column] and w [unit, column] to the sums."""
    if _WIDEN or not P.dot:
        a = a.to(tl.float32)
        w = w.to(tl.float32)
    if P.dot:
        return tl.dot(a, tl.trans(w), sums, input_precision=P.precision)
    else:
        return sums + a[:, None, :] * w[None, :, :]


@triton.jit
def _total(sums, P: tl.constexpr):
    """The sums [row, unit]."""
    return sums if P.dot else tl.sum(sums, 2)


@triton.jit
def _multiply_gates(
    sums, a, here, some, w, K, H, SKIP: tl.constexpr, NARROW: tl.constexpr, P: tl.constexpr
):
    """Adds the product of each row's a [K] and w [gates, H, K] to the sums of all gates but SKIP.

    `here` is the mask of rows that have a step; `some`, whether any has. If NARROW, K is at most
    32: then 32 columns are one turn, for which a pipeline of loads would take registers in vain.
    """
    ONCE: tl.constexpr = NARROW and P.dot and P.depth >= 32
    DEPTH: tl.constexpr = 32 if ONCE else P.depth
    first = tl.program_id(1) * P.units
    unit = tl.arange(0, P.units)[:, None]
    w += first.to(tl.int64) * K
    size = tl.full((), 1, tl.int64) * H * K  # of a gate's weights
    for k in tl.range(0, tl.where(some, K, 0), DEPTH, num_stages=1 if ONCE else None):
        column = (k + tl.arange(0, DEPTH))[None, :]
        values = tl.load(a[:, None] + column, mask=here[:, None] & (column < K), other=0.0)
        mask = (unit < H - first) & (column < K)
        new = ()
        for s in tl.static_range(4):
            if s == SKIP:
                new = new + (sums[s],)
            else:
                gate = w + (s - (s > SKIP)) * size
                weight = tl.load(gate + (unit * K + column), mask=mask, other=0.0)
                new = new + (_multiply(sums[s], values, weight, P),)
        sums = new
    return sums


@triton.jit
def _load_gates(base, at, mask, H, SKIP: tl.constexpr):
    """Numbers of all gates but SKIP, H elements apart; zeros for SKIP, and if base is None."""
    values = ()
    for s in tl.static_range(4):
        if base is None or s == SKIP:
            values = values + (tl.zeros(mask.shape, tl.float32),)
        else:
            gate = base + (s - (s > SKIP)) * H
            values = values + (tl.load(gate + at, mask=mask, other=0.0).to(tl.float32),)
    return values


@triton.jit
def _store_gates(at, row, unit, mask, H, s0, s1, s2, s3):
    """Stores four gates of each row, [row, 4H]."""
    at += row[:, None] * (4 * H) + unit[None, :]
    tl.store(at, s0.to(at.dtype.element_ty), mask=mask)
    tl.store(at + H, s1.to(at.dtype.element_ty), mask=mask)
    tl.store(at + 2 * H, s2.to(at.dtype.element_ty), mask=mask)
    tl.store(at + 3 * H, s3.to(at.dtype.element_ty), mask=mask)


# --- the kernels ----------------------------------------------------------------------------------


@triton.jit(do_not_specialize=_DYNAMIC)
def forward_kernel(
    x,  # [N, I]; if PROJECTED: W_ih x [N, G * H], where G is 4 (LSTM) or 3 (GRU)
    w_ih,  # [G * H, I]
    w_hh,  # [G * H, H]
    b_ih,  # [G * H] or None
    b_hh,  # [G * H] or None
    h0,  # [B, H]
    old,  # [B, H]: c; GRU: h; float32 or the other tensors' type
    new,  # [B, H]: written: the new state, of the type of `old`; may be `old`
    y,  # [N, H]: written
    h_n,  # [B, H]: written; GRU: None, h is the state
    gates,  # [N, 4H]: written: i f g o, or r z n m; None if no gradients are needed
    cells,  # [N, H]: written: c of each step; GRU, or if gates is None: None
    offsets,  # int64 [T + 10] or None, see fastrnn.kernels.layout.Rows
    arrived,  # int32 [1]: 0; counts programs; None: do not wait for each other
    T,
    B,
    begin,
    end,
    I,  # noqa: E741
    H,
    LSTM: tl.constexpr,
    PROJECTED: tl.constexpr,
    NARROW: tl.constexpr,  # I is at most 32
    REVERSE: tl.constexpr,
    P: tl.constexpr,
):
    """Runs steps `begin` to `end`, from the first time to the last; if REVERSE, last to first.

    The equations are those of `sequence.forward_kernel`.
    """
    E: tl.constexpr = y.dtype.element_ty
    NOT_X: tl.constexpr = 4 if LSTM else 3  # the sum that x has no share of
    NOT_H: tl.constexpr = 4 if LSTM else 2
    first = (tl.program_id(0) * P.rows).to(tl.int64)
    row = tl.arange(0, P.rows)
    unit = tl.program_id(1) * P.units + tl.arange(0, P.units)
    at_state = row[:, None] * H + unit[None, :]
    for step in range(begin, end):
        t = T - 1 - step if REVERSE else step
        r, count = _rows(offsets, t, T, B, first)
        r_before, running = _rows(offsets, t + 1 if REVERSE else t - 1, T, B, first)
        here = row < count
        mask = here[:, None] & (unit < H)[None, :]
        bias_x = _load_gates(b_ih, unit[None, :], (unit < H)[None, :], H, NOT_X)
        bias_h = _load_gates(b_hh, unit[None, :], (unit < H)[None, :], H, NOT_H)
        if PROJECTED:
            at = row[:, None] * (NOT_X * H) + unit[None, :]
            projected = _load_gates(x + r * (NOT_X * H), at, mask, H, NOT_X)
        sums = ()
        for k in tl.static_range(4):
            share = bias_x[k] + bias_h[k]
            sums = sums + (_begin(share + projected[k] if PROJECTED else share, P),)
        if not PROJECTED:
            a = x + r * I + row * I
            sums = _multiply_gates(sums, a, here, count > 0, w_ih, I, H, NOT_X, NARROW, P)
        h = tl.where(row < running, y + r_before * H, h0 + first * H) + row * H
        sums = _multiply_gates(sums, h, here, count > 0, w_hh, H, H, NOT_H, False, P)
        state = tl.load(old + first * H + at_state, mask=mask, other=0.0).to(tl.float32)
        s0 = tl.sigmoid(_total(sums[0], P))
        s1 = tl.sigmoid(_total(sums[1], P))
        s2 = _total(sums[2], P)
        s3 = _total(sums[3], P)
        if LSTM:
            s2 = _tanh(s2)
            s3 = tl.sigmoid(s3)
            state = s1 * state + s0 * s2
            h_new = s3 * _tanh(state)
        else:
            s2 = _tanh(s2 + s0 * s3)
            state = s2 + s1 * (state - s2)
            h_new = state
        tl.store(new + first * H + at_state, state.to(new.dtype.element_ty), mask=mask)
        tl.store(y + r * H + at_state, h_new.to(E), mask=mask)
        if h_n is not None:
            tl.store(h_n + first * H + at_state, h_new.to(E), mask=mask)
        if cells is not None:
            tl.store(cells + r * H + at_state, state.to(E), mask=mask)
        if gates is not None:
            _store_gates(gates + r * (4 * H), row, unit, mask, H, s0, s1, s2, s3)
        if arrived is not None:
            _wait_for_all(arrived, step - begin + 1)


@triton.jit(do_not_specialize=_DYNAMIC)
def backward_kernel(
    dy,  # [N, H]
    dh_n,  # [B, H]; GRU: None, `old` begins with it
    w_hh,  # [G * H, H], where G is 4 (LSTM) or 3 (GRU)
    initial,  # [B, H]: c0; GRU: h0
    states,  # [N, H]: cells; GRU: y
    gates,  # [N, 4H]: i f g o, or r z n m
    old,  # [B, H]: dc'; GRU: dh' less its product with W_hh; float32 or the other tensors' type
    new,  # [B, H]: written: the same of the step before, of the type of `old`; may be `old`
    dgates,  # [N, 4H]: written: di df dg do, or dn dr dz dm, with the recurrent three last
    offsets,  # int64 [T + 10] or None, see fastrnn.kernels.layout.Rows
    arrived,  # int32 [1]: 0; counts programs; None: do not wait for each other
    T,
    B,
    begin,
    end,
    H,
    LSTM: tl.constexpr,
    REVERSE: tl.constexpr,
    P: tl.constexpr,
):
    """Runs steps `begin` to `end`, counted against the forward kernel's direction (REVERSE).

    The equations are those of `sequence.backward_kernel`. A step computes the product with W_hh
    that completes its dh', from dgates of the step taken before it.
    """
    K = 4 * H if LSTM else 3 * H
    first = (tl.program_id(0) * P.rows).to(tl.int64)
    row = tl.arange(0, P.rows)
    unit = tl.program_id(1) * P.units + tl.arange(0, P.units)
    at_state = row[:, None] * H + unit[None, :]
    for step in range(begin, end):
        t = step if REVERSE else T - 1 - step
        r, count = _rows(offsets, t, T, B, first)
        r_before, older = _rows(offsets, t + 1 if REVERSE else t - 1, T, B, first)
        r_after, later = _rows(offsets, t - 1 if REVERSE else t + 1, T, B, first)
        mask = (row < count)[:, None] & (unit < H)[None, :]
        # Rows that also had a step in the launch or turn before: dgates of it contribute to dh.
        continues = row < tl.minimum(count, later)
        da = dgates + r_after * (4 * H) + (0 if LSTM else H)
        dh = tl.load(dy + r * H + at_state, mask=mask, other=0.0).to(tl.float32)
        if LSTM:
            last = mask & (row >= later)[:, None]
            dh += tl.load(dh_n + first * H + at_state, mask=last, other=0.0).to(tl.float32)
        sums = _begin(dh, P)
        w = w_hh + (tl.arange(0, P.depth)[None, :] * H + unit[:, None])
        for k in range(0, tl.where(later > 0, K, 0), P.depth):
            column = k + tl.arange(0, P.depth)
            values = tl.load(
                da + (row[:, None] * (4 * H) + column[None, :]),
                mask=continues[:, None] & (column < K)[None, :],
                other=0.0,
            )
            real = (unit < H)[:, None] & (column < K)[None, :]
            sums = _multiply(sums, values, tl.load(w, mask=real, other=0.0), P)
            w += P.depth * H
        dh = _total(sums, P)
        ds = tl.load(old + first * H + at_state, mask=mask, other=0.0).to(tl.float32)
        state = (
            tl.where((row < older)[:, None], states + r_before * H, initial + first * H) + at_state
        )
        state = tl.load(state, mask=mask, other=0.0).to(tl.float32)
        at = row[:, None] * (4 * H) + unit[None, :]
        g = _load_gates(gates + r * (4 * H), at, mask, H, 4)
        if LSTM:
            tanh_c = _tanh(g[1] * state + g[0] * g[2])
            ds += dh * g[3] * (1.0 - tanh_c * tanh_c)
            d0 = ds * g[2] * g[0] * (1.0 - g[0])
            d1 = ds * state * g[1] * (1.0 - g[1])
            d2 = ds * g[0] * (1.0 - g[2] * g[2])
            d3 = dh * tanh_c * g[3] * (1.0 - g[3])
            ds *= g[1]
        else:
            dh += ds
            d0 = dh * (1.0 - g[1]) * (1.0 - g[2] * g[2])
            d3 = d0 * g[0]
            d1 = d3 * g[3] * (1.0 - g[0])
            d2 = dh * (state - g[2]) * g[1] * (1.0 - g[1])
            ds = dh * g[1]
        tl.debug_barrier()  # `new` may be `old`, and several threads read the same number of it
        tl.store(new + first * H + at_state, ds.to(new.dtype.element_ty), mask=mask)
        _store_gates(dgates + r * (4 * H), row, unit, mask, H, d0, d1, d2, d3)
        if arrived is not None:
            _wait_for_all(arrived, step - begin + 1)

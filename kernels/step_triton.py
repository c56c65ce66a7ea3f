"""One time step in one launch, product, gates and state: cells, and layers past one multiprocessor.

A program computes some sequences (rows) of some hidden units. It walks the columns of x and h,
multiplies them with the weights of all gates of its units, and applies the gates: the sums never
leave it. A step needs all of h before it, so a sequence is walked in one of two ways:

- launches: one for each step; a CUDA graph captures them.
- persistent: one launch of programs that all run at once, which the driver guarantees, and wait
  for each other after every step.

Equations, and what is saved for backward: `lstm_triton` and `gru_triton`. Both cells have four sums
a unit: i, f, g, o; or r, z, n, m, where x has no share of m, nor h of n. Their `state` is what a
unit hands on to itself: c, or h.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: RUF005 (Triton compiles no starred tuples)
from __future__ import annotations

import dataclasses

import triton
import triton.language as tl

from .rnn_triton import INTERPRETED

# The interpreter's numpy multiplies no bfloat16.
_WIDEN: tl.constexpr = tl.constexpr(INTERPRETED)
_DYNAMIC = ["T", "B", "begin", "end"]


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """What a program of a step does; a compile-time constant of both kernels.

    Args:
        rows: sequences a program: a power of two; 16 or more if `dot`.
        units: hidden units a program: a power of two; 16 or more if `dot`.
        depth: columns of x or h that are multiplied at once.
        dot: on tensor cores, or as tiles of FMAs in exact float32; else a thread sums its columns.
        precision: of float32 products: `ieee` or `tf32`.
        warps: warps a program.
        persistent: take all steps in one launch, with a barrier after each.
    """

    rows: int
    units: int
    depth: int
    dot: bool
    precision: str
    warps: int
    persistent: bool


@triton.jit
def _tanh(x):
    """Hyperbolic tangent; near 0, where 1 - 2 / (1 + exp(2x)) cancels, a polynomial (2e-9)."""
    z = x * x
    p = 1.875122e-2 * z - 5.356414e-2
    p = p * z + 1.3331235e-1
    p = p * z - 3.3333299e-1
    return tl.where(tl.abs(x) < 0.4, p * z * x + x, 1.0 - 2.0 / (1.0 + tl.exp(2.0 * x)))


@triton.jit
def _rows(offsets, t, T, B, first):
    """Row of sequence `first` at time t, and how many rows follow: none before or past the end."""
    if offsets is None:
        return first + B.to(tl.int64) * t, tl.where((t >= 0) & (t < T), B, 0) - first
    else:
        start = tl.load(offsets + 5 + t)
        return start + first, tl.load(offsets + 6 + t) - start - first


@triton.jit
def _wait_for_all(arrived, times):
    """Wait until all programs have come here so many times; then what they stored is seen."""
    programs = tl.num_programs(0) * tl.num_programs(1)
    tl.debug_barrier()
    tl.atomic_add(arrived, 1, sem="release")
    while tl.atomic_add(arrived, 0, sem="acquire") < times * programs:
        pass
    tl.debug_barrier()


# --- the product ---------------------------------------------------------------------------------


@triton.jit
def _begin(share, P: tl.constexpr):
    """Sums to which products are added, from shares [row or 1, unit]; `_total` ends them."""
    if P.dot:
        return tl.broadcast_to(share, [P.rows, P.units])
    else:  # of each column; the share is in the first one's
        share = tl.where(tl.arange(0, P.depth)[None, None, :] == 0, share[:, :, None], 0.0)
        return tl.broadcast_to(share, [P.rows, P.units, P.depth])


@triton.jit
def _multiply(sums, a, w, P: tl.constexpr):
    """Add the products of a [row, column] and w [unit, column]."""
    if _WIDEN or not P.dot:
        a = a.to(tl.float32)
        w = w.to(tl.float32)
    if P.dot:
        return tl.dot(a, tl.trans(w), sums, input_precision=P.precision)
    else:
        return sums + a[:, None, :] * w[None, :, :]


@triton.jit
def _total(sums, P: tl.constexpr):
    return sums if P.dot else tl.sum(sums, 2)


@triton.jit
def _multiply_gates(sums, a, here, some, w, K, H, SKIP: tl.constexpr, P: tl.constexpr):
    """Add each row's a [K] times w [gates, H, K] to the sums of all gates but SKIP."""
    first = tl.program_id(1) * P.units
    unit = tl.arange(0, P.units)[:, None]
    w += first.to(tl.int64) * K
    size = tl.full((), 1, tl.int64) * H * K  # of a gate's weights
    for k in range(0, tl.where(some, K, 0), P.depth):
        column = (k + tl.arange(0, P.depth))[None, :]
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
    """Numbers of all gates but SKIP, H elements apart; zeros for SKIP, and for None."""
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
    """Store four gates of each row, [row, 4H]."""
    at += row[:, None] * (4 * H) + unit[None, :]
    tl.store(at, s0.to(at.dtype.element_ty), mask=mask)
    tl.store(at + H, s1.to(at.dtype.element_ty), mask=mask)
    tl.store(at + 2 * H, s2.to(at.dtype.element_ty), mask=mask)
    tl.store(at + 3 * H, s3.to(at.dtype.element_ty), mask=mask)


# --- the kernels ---------------------------------------------------------------------------------


@triton.jit(do_not_specialize=_DYNAMIC)
def forward_kernel(
    x,  # [N, I]; wide, if PROJECTED: W_ih x [N, gates H]
    w_ih,  # [gates H, I]
    w_hh,  # [gates H, H]
    b_ih,  # [gates H] or None
    b_hh,  # [gates H] or None
    h0,  # [B, H]
    old,  # [B, H]: the state; of a type of its own
    new,  # [B, H]: where the state goes; perhaps `old`
    y,  # [N, H]
    h_n,  # [B, H]; None for the GRU, whose state it is
    gates,  # [N, 4H] or None
    cells,  # [N, H] or None
    offsets,  # int64 [T + 10] or None
    arrived,  # int32 [1], 0; None without waiting
    T,
    B,
    begin,
    end,
    I,  # noqa: E741
    H,
    LSTM: tl.constexpr,
    PROJECTED: tl.constexpr,
    REVERSE: tl.constexpr,
    P: tl.constexpr,
):
    """Take the steps from `begin` to `end`, first to last (REVERSE: last to first)."""
    E: tl.constexpr = y.dtype.element_ty
    OF_X: tl.constexpr = 4 if LSTM else 3  # the gate without a share of x
    OF_H: tl.constexpr = 4 if LSTM else 2
    first = (tl.program_id(0) * P.rows).to(tl.int64)
    row = tl.arange(0, P.rows)
    unit = tl.program_id(1) * P.units + tl.arange(0, P.units)
    place = row[:, None] * H + unit[None, :]
    for step in range(begin, end):
        t = T - 1 - step if REVERSE else step
        r, count = _rows(offsets, t, T, B, first)
        r_before, running = _rows(offsets, t + 1 if REVERSE else t - 1, T, B, first)
        here = row < count
        mask = here[:, None] & (unit < H)[None, :]
        bias_x = _load_gates(b_ih, unit[None, :], (unit < H)[None, :], H, OF_X)
        bias_h = _load_gates(b_hh, unit[None, :], (unit < H)[None, :], H, OF_H)
        if PROJECTED:
            at = row[:, None] * (OF_X * H) + unit[None, :]
            projected = _load_gates(x + r * (OF_X * H), at, mask, H, OF_X)
        sums = ()
        for k in tl.static_range(4):
            share = bias_x[k] + bias_h[k]
            sums = sums + (_begin(share + projected[k] if PROJECTED else share, P),)
        if not PROJECTED:
            a = x + r * I + row * I
            sums = _multiply_gates(sums, a, here, count > 0, w_ih, I, H, OF_X, P)
        h = tl.where(row < running, y + r_before * H, h0 + first * H) + row * H
        sums = _multiply_gates(sums, h, here, count > 0, w_hh, H, H, OF_H, P)
        state = tl.load(old + first * H + place, mask=mask, other=0.0).to(tl.float32)
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
        tl.store(new + first * H + place, state.to(new.dtype.element_ty), mask=mask)
        tl.store(y + r * H + place, h_new.to(E), mask=mask)
        if h_n is not None:
            tl.store(h_n + first * H + place, h_new.to(E), mask=mask)
        if cells is not None:
            tl.store(cells + r * H + place, state.to(E), mask=mask)
        if gates is not None:
            _store_gates(gates + r * (4 * H), row, unit, mask, H, s0, s1, s2, s3)
        if arrived is not None:
            _wait_for_all(arrived, step - begin + 1)


@triton.jit(do_not_specialize=_DYNAMIC)
def backward_kernel(
    dy,  # [N, H]
    dh_n,  # [B, H]; None for the GRU, where `old` begins with it
    w_hh,  # [gates H, H]
    s0,  # [B, H]: the first state, c0 or h0
    states,  # [N, H]: cells or y
    gates,  # [N, 4H]
    old,  # [B, H]: the state's gradient, less what comes by the product; of a type of its own
    new,  # [B, H]: where that goes; perhaps `old`
    dgates,  # [N, 4H]: gradients before the activations: i, f, g, o; or n, r, z, m
    offsets,  # int64 [T + 10] or None
    arrived,  # int32 [1], 0; None without waiting
    T,
    B,
    begin,
    end,
    H,
    LSTM: tl.constexpr,
    REVERSE: tl.constexpr,
    P: tl.constexpr,
):
    """Take the steps from `begin` to `end`, against the forward's way."""
    K = 4 * H if LSTM else 3 * H
    first = (tl.program_id(0) * P.rows).to(tl.int64)
    row = tl.arange(0, P.rows)
    unit = tl.program_id(1) * P.units + tl.arange(0, P.units)
    place = row[:, None] * H + unit[None, :]
    for step in range(begin, end):
        t = step if REVERSE else T - 1 - step
        r, count = _rows(offsets, t, T, B, first)
        r_before, older = _rows(offsets, t + 1 if REVERSE else t - 1, T, B, first)
        r_after, later = _rows(offsets, t - 1 if REVERSE else t + 1, T, B, first)
        mask = (row < count)[:, None] & (unit < H)[None, :]
        # What comes from the step taken before, which not every sequence has.
        came = row < tl.minimum(count, later)
        da = dgates + r_after * (4 * H) + (0 if LSTM else H)
        dh = tl.load(dy + r * H + place, mask=mask, other=0.0).to(tl.float32)
        if LSTM:
            last = mask & (row >= later)[:, None]
            dh += tl.load(dh_n + first * H + place, mask=last, other=0.0).to(tl.float32)
        sums = _begin(dh, P)
        w = w_hh + (tl.arange(0, P.depth)[None, :] * H + unit[:, None])
        for k in range(0, tl.where(later > 0, K, 0), P.depth):
            column = k + tl.arange(0, P.depth)
            values = tl.load(
                da + (row[:, None] * (4 * H) + column[None, :]),
                mask=came[:, None] & (column < K)[None, :],
                other=0.0,
            )
            real = (unit < H)[:, None] & (column < K)[None, :]
            sums = _multiply(sums, values, tl.load(w, mask=real, other=0.0), P)
            w += P.depth * H
        dh = _total(sums, P)
        ds = tl.load(old + first * H + place, mask=mask, other=0.0).to(tl.float32)
        state = tl.where((row < older)[:, None], states + r_before * H, s0 + first * H) + place
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
        tl.store(new + first * H + place, ds.to(new.dtype.element_ty), mask=mask)
        _store_gates(dgates + r * (4 * H), row, unit, mask, H, d0, d1, d2, d3)
        if arrived is not None:
            _wait_for_all(arrived, step - begin + 1)

"""What the LSTM and the GRU kernels read and write alike: rows of sequences, by unit.

Arrays have a row for each sequence and time, which `row` finds in padded and in packed layout, and
a column for each unit. A [unit, row] is read and written in layout `Plan.memory`, where a thread
has neighbouring units, and computed with in `Plan.state`; no thread differs between the two.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: RUF005 (Triton compiles no starred tuples)
from __future__ import annotations

import triton.language as tl

from .rnn_triton import gl, gluon, named

# --- which rows -----------------------------------------------------------------------------------


@gluon.jit
def sequences(lengths, T, B, P: tl.constexpr):
    """This program's first sequence (int64), its sequences' lengths, the longest's steps.

    The lengths are [1, row] twice: as `P.state` has them, and as `P.memory` has them. Addresses
    are a scalar, from the first sequence, plus `places` [unit, row] that fit in 32 bits.
    """
    first = gl.program_id(0) * P.rows
    b = first + gl.arange(0, P.rows, gl.SliceLayout(0, P.state))
    if lengths is None:
        length = gl.where(b < B, T, 0)
        steps = T
    else:
        length = gl.load(lengths + b, mask=b < B, other=0)
        steps = gl.load(lengths + first)
    stored = length if P.split else gl.convert_layout(length, gl.SliceLayout(0, P.memory))
    return first.to(gl.int64), (length[None, :], stored[None, :]), steps


@gluon.jit
def unit(P: tl.constexpr):
    """The units as memory has them, [unit, 1]."""
    return gl.arange(0, P.units, gl.SliceLayout(1, P.memory))[:, None]


@gluon.jit
def existing(H: tl.constexpr, P: tl.constexpr):
    """Which units are not there to fill up, [unit, 1]; as `P.state` and as `P.memory` has them."""
    at = named(gl.arange(0, P.units, gl.SliceLayout(1, P.state)), P)
    return (at[:, None] < H, unit(P) < H)


@gluon.jit
def places(ROW: tl.constexpr, P: tl.constexpr):
    """Where [unit, row] lies from the first sequence's row, if rows are ROW elements apart."""
    b = gl.arange(0, P.rows, gl.SliceLayout(0, P.memory))[None, :]
    return b * ROW + unit(P)


@gluon.jit
def time(step, steps, BACKWARDS: tl.constexpr):
    """The time that a step of the walk visits."""
    return steps - 1 - step if BACKWARDS else step


@gluon.jit
def row(offsets, first, t, B):
    """Row of sequence `first` at time t; offsets have five more at either end, for early loads."""
    return first + (B.to(gl.int64) * t if offsets is None else gl.load(offsets + 5 + t))


@gluon.jit
def row_after_two(offsets, first, before, t, B, BACKWARDS: tl.constexpr):
    """Row of sequence `first` at time t, which the walk visits two steps after row `before`."""
    if offsets is None:
        return before - 2 * B if BACKWARDS else before + 2 * B
    else:
        return first + gl.load(offsets + 5 + t)


@gluon.jit
def active(t, length, real, lengths):
    """What of a [unit, row] in memory has a step at time t, a time that the walk visits."""
    return (length[1] > 0 if lengths is None else t < length[1]) & real[1]


@gluon.jit
def going(new, old, t, length, lengths):
    """The new state of the sequences that have a step at time t, the old one of the others."""
    return new if lengths is None else gl.where(t < length[0], new, old)


@gluon.jit
def ahead(t, length, BACKWARDS: tl.constexpr):
    """Which sequences have a step at time t, which may lie where the walk has ended."""
    return (t >= 0) & (t < length) if BACKWARDS else t < length


# --- reading and writing --------------------------------------------------------------------------


@gluon.jit
def _to_memory(v, P: tl.constexpr):
    """A [unit, row] as memory has it; nothing moves between threads."""
    if P.split:
        return v
    else:
        pairs = gl.permute(gl.reshape(v, [P.units // 16, 2, 8, P.rows]), [0, 2, 1, 3])
        return gl.convert_layout(gl.reshape(pairs, [P.units, P.rows]), P.memory)


@gluon.jit
def from_memory(v, E: tl.constexpr, P: tl.constexpr):
    """What `load` has read of an array of E, [unit, row] of `P.state` in float32."""
    if P.split:
        return v.to(gl.float32)
    else:
        if v.dtype == gl.int32:  # a thread's two units, the first one's bits below the second's
            if E.is_bf16():
                low = (v << 16).to(gl.float32, bitcast=True)
                high = (v & -65536).to(gl.float32, bitcast=True)
            else:
                low = v.to(gl.int16).to(E, bitcast=True).to(gl.float32)
                high = (v >> 16).to(gl.int16).to(E, bitcast=True).to(gl.float32)
            pairs = gl.reshape(gl.join(low, high), [P.units // 16, 8, P.rows, 2])
            halves = gl.permute(pairs, [0, 3, 1, 2])
        else:
            pairs = gl.reshape(v.to(gl.float32), [P.units // 16, 8, 2, P.rows])
            halves = gl.permute(pairs, [0, 2, 1, 3])
        return gl.convert_layout(gl.reshape(halves, [P.units, P.rows]), P.state)


@gluon.jit
def _first_of_pairs(v, P: tl.constexpr):
    """Every other unit's [unit, row]; nothing moves between threads."""
    return gl.split(gl.permute(gl.reshape(v, [P.units // 2, 2, P.rows]), [0, 2, 1]))[0]


@gluon.jit
def store(base, offset, values, mask, H: tl.constexpr, P: tl.constexpr):
    """Write [unit, row]s of `P.state`, H apart, to an array with rows of a multiple of H."""
    first = base + offset
    for k in gl.static_range(len(values)):
        at = first + k * H if k else first
        if P.split == 0 and H % 2 == 0:
            at = gl.multiple_of(at, [4, 1])  # a thread's two units are aligned: one instruction
        gl.store(at, _to_memory(values[k], P).to(base.dtype.element_ty), mask=mask)


@gluon.jit
def load(at, mask, H: tl.constexpr, P: tl.constexpr):
    """Read an array with rows of a multiple of H, for `from_memory`.

    Two units are one word until they are needed: taking it apart would wait for it.
    """
    if P.split == 0 and H % 2 == 0:
        at = _first_of_pairs(at, P).to(gl.pointer_type(gl.int32), bitcast=True)
        return gl.load(at, mask=_first_of_pairs(mask, P), other=0)
    else:
        return gl.load(at, mask=mask, other=0.0)


@gluon.jit
def load_all(at, mask, COUNT: tl.constexpr, H: tl.constexpr, P: tl.constexpr):
    """COUNT of them, H apart."""
    values = ()
    for k in gl.static_range(COUNT):
        values = values + (load(at + k * H, mask, H, P),)
    return values


# --- the input ------------------------------------------------------------------------------------


@gluon.jit
def input_places(skew, GATES: tl.constexpr, IN: tl.constexpr, H: tl.constexpr, P: tl.constexpr):
    """Where [unit, row] finds its input: features that all units share, or projected gates.

    `skew` is 0, which the compiler does not know: it would see that a program of one sequence loads
    one number, move it to a uniform register, and wait for it there and then.
    """
    if IN:
        b = gl.arange(0, P.rows, gl.SliceLayout(0, P.state))[None, :]
        # Units that are only there to fill up must not see an infinite input: 0 times it is NaN.
        j = gl.arange(0, P.units, gl.SliceLayout(1, P.state))[:, None]
        return b * IN if P.split == 0 and P.units == H else b * IN + j * skew
    else:
        return places(GATES * H, P)


@gluon.jit
def load_input(
    x, r, t, real, length,
    GATES: tl.constexpr, IN: tl.constexpr, H: tl.constexpr, P: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """The input of time t at row r: IN features, or GATES projected gates as memory has them."""
    values = ()
    if IN:
        mask = ahead(t, length[0], REVERSE)
        mask = mask if x.shape[0] == 1 else mask & real[0]
        for k in gl.static_range(IN):
            values = values + (gl.load(x + r * IN + k, mask=mask, other=0.0),)
    else:
        values = load_all(x + r * (GATES * H), ahead(t, length[1], REVERSE) & real[1], GATES, H, P)
    return values


@gluon.jit
def units(v, STRIDE: tl.constexpr, H: tl.constexpr, P: tl.constexpr):
    """One number for each hidden unit, [unit, 1] in float32; zeros for None."""
    layout: tl.constexpr = gl.SliceLayout(1, P.state)
    if v is None:
        return gl.full([P.units], 0.0, gl.float32, layout)[:, None]
    else:
        j = named(gl.arange(0, P.units, layout), P)
        return gl.load(v + j * STRIDE, mask=j < H, other=0.0).to(gl.float32)[:, None]


@gluon.jit
def input_columns(w_ih, GATES: tl.constexpr, IN: tl.constexpr, H: tl.constexpr, P: tl.constexpr):
    """A narrow input's weights, a column [unit, 1] for each gate and feature, times `slope`.

    Not so gate 2, of the LSTM and of the GRU, whose activation is tanh; nor in what follows.
    """
    columns = ()
    for k in gl.static_range(GATES):
        for d in gl.static_range(IN):
            value = units(w_ih + k * H * IN + d, IN, H, P)
            columns = columns + (value if k == 2 else value * P.slope,)
    return columns


@gluon.jit
def input_bias(
    b_ih, b_hh, GATES: tl.constexpr, BOTH: tl.constexpr, H: tl.constexpr, P: tl.constexpr
):  # fmt: skip
    """The input's share of each gate's bias, times `slope`: b_ih, and for BOTH gates b_hh."""
    bias = ()
    for g in gl.static_range(GATES):
        value = units(None if b_ih is None else b_ih + g * H, 1, H, P)
        if b_hh is not None and g < BOTH:
            value = value + units(b_hh + g * H, 1, H, P)
        bias = bias + (value if g == 2 else value * P.slope,)
    return bias


@gluon.jit
def project(
    xs, columns, bias, E: tl.constexpr, GATES: tl.constexpr, IN: tl.constexpr, P: tl.constexpr
):  # fmt: skip
    """The input's share of each gate, times `slope`: computed if narrow, loaded if wide."""
    values = ()
    for g in gl.static_range(GATES):
        value = bias[g]
        if IN:
            for k in gl.static_range(IN):
                value = value + columns[g * IN + k] * xs[k].to(gl.float32)
        else:
            wide = from_memory(xs[g], E, P)
            value = value + (wide if g == 2 else wide * P.slope)
        values = values + (value,)
    return values

"""The input's share of the gates in the whole-sequence kernels.

A narrow input (IN > 0 features) is projected inside the step. A wide one (IN = 0) comes projected,
as W_ih x [N, GATES * H]. `real` and `length` are those of `rows`.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: RUF005 (Triton compiles no starred tuples)
from __future__ import annotations

import triton.language as tl

from .arithmetic import unit_at
from .language import gl, gluon
from .rows import element_offsets, from_memory, load_all, prefetch_mask


@gluon.jit
def _load_units(v, STRIDE: tl.constexpr, H: tl.constexpr, P: tl.constexpr):
    """One number per hidden unit, float32 [unit, 1]; zeros if v is None."""
    layout: tl.constexpr = gl.SliceLayout(1, P.state)
    if v is None:
        return gl.full([P.units], 0.0, gl.float32, layout)[:, None]
    else:
        j = unit_at(gl.arange(0, P.units, layout), P)
        return gl.load(v + j * STRIDE, mask=j < H, other=0.0).to(gl.float32)[:, None]


@gluon.jit
def load_columns(w_ih, GATES: tl.constexpr, IN: tl.constexpr, H: tl.constexpr, P: tl.constexpr):
    """A narrow input's weights: a column [unit, 1] per gate and feature, times `P.slope`.

    Gate 2, whose activation is tanh in both cells, has no factor; neither here nor below.
    """
    columns = ()
    for g in gl.static_range(GATES):
        for d in gl.static_range(IN):
            value = _load_units(w_ih + g * H * IN + d, IN, H, P)
            columns = columns + (value if g == 2 else value * P.slope,)
    return columns


@gluon.jit
def load_biases(b_ih, b_hh, GATES: tl.constexpr, H: tl.constexpr, P: tl.constexpr):
    """The biases [unit, 1] of a cell's four sums, times `P.slope`; zeros for None.

    LSTM: b_ih + b_hh of each gate. GRU: b_ih + b_hh of r and z, b_in, and b_hn (without factor).
    """
    biases = ()
    for g in gl.static_range(GATES):
        value = _load_units(None if b_ih is None else b_ih + g * H, 1, H, P)
        if b_hh is not None and (GATES == 4 or g < 2):
            value = value + _load_units(b_hh + g * H, 1, H, P)
        biases = biases + (value if g == 2 else value * P.slope,)
    if GATES == 3:
        biases = biases + (_load_units(None if b_hh is None else b_hh + 2 * H, 1, H, P),)
    return biases


@gluon.jit
def input_offsets(skew, GATES: tl.constexpr, IN: tl.constexpr, H: tl.constexpr, P: tl.constexpr):
    """Offsets of a [unit, row]'s input: of features that all units share, or of projected gates.

    `skew` is 0, which the compiler does not know. If it did, it would see that a program of one
    sequence loads a single number, move that to a uniform register, and wait for it right there.
    """
    if IN:
        b = gl.arange(0, P.rows, gl.SliceLayout(0, P.state))[None, :]
        j = gl.arange(0, P.units, gl.SliceLayout(1, P.state))[:, None]
        return b * IN if P.split == 0 and P.units == H else b * IN + j * skew
    else:
        return element_offsets(GATES * H, P)


@gluon.jit
def load_input(
    x, r, t, real, length,
    GATES: tl.constexpr, IN: tl.constexpr, H: tl.constexpr, P: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """The input at time t, row r: IN features, or GATES projected gates as `load` reads them."""
    values = ()
    if IN:
        mask = prefetch_mask(t, length[0], REVERSE)
        # Units that are padding must not see an infinite input: 0 times infinity is NaN.
        mask = mask if x.shape[0] == 1 else mask & real[0]
        for d in gl.static_range(IN):
            values = values + (gl.load(x + r * IN + d, mask=mask, other=0.0),)
    else:
        values = load_all(
            x + r * (GATES * H), prefetch_mask(t, length[1], REVERSE) & real[1], GATES, H, P
        )
    return values


@gluon.jit
def project(
    x, columns, biases, E: tl.constexpr, GATES: tl.constexpr, IN: tl.constexpr, P: tl.constexpr
):  # fmt: skip
    """The input's share of a cell's four sums, with the biases, times `P.slope`.

    `x` is what `load_input` has read, of an array of E.
    """
    values = ()
    for g in gl.static_range(len(biases)):
        value = biases[g]
        if g < GATES:
            if IN:
                for d in gl.static_range(IN):
                    value = value + columns[g * IN + d] * x[d].to(gl.float32)
            else:
                wide = from_memory(x[g], E, P)
                value = value + (wide if g == 2 else wide * P.slope)
        values = values + (value,)
    return values

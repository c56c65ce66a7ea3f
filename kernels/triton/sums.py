"""Sums over all steps that the whole-sequence backward kernel keeps in registers.

They are the gradients of the biases and, if the input x is a single feature, of W_ih. Computing
either after the kernel would read all gates' gradients once more.

A sum is a float32 [unit, row]. The first four are those of d, a step's gradients in the kernel's
order: di df dg do, or dn dr dz dm. With x, those of d x follow, for all gates but m, in which x has
no share.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: RUF005 (Triton compiles no starred tuples)
from __future__ import annotations

import triton.language as tl

from .arithmetic import unit_at
from .language import gl, gluon


@gluon.jit
def zero_sums(COUNT: tl.constexpr, P: tl.constexpr):
    """COUNT sums, all zero."""
    sums = ()
    for _ in gl.static_range(COUNT):
        sums = sums + (gl.full([P.units, P.rows], 0.0, gl.float32, P.state),)
    return sums


@gluon.jit
def add_to_sums(sums, d, x, t, length, lengths):
    """The sums with a step's gradients d at time t; x is (its feature,), a [unit, row], or ()."""
    terms = ()
    for g in gl.static_range(4):
        # Where a sequence has no step, d is 0 times its state's gradient: NaN if that is infinite.
        terms = terms + (d[g] if lengths is None else gl.where(t < length[0], d[g], 0.0),)
    new = ()
    for s in gl.static_range(len(sums)):
        new = new + (sums[s] + (terms[s] if s < 4 else terms[s - 4] * x[0]),)
    return new


@gluon.jit
def store_sums(out, sums, length, H: tl.constexpr, P: tl.constexpr):
    """Writes this program's sums over its rows to out [programs, sums, H]."""
    j = unit_at(gl.arange(0, P.units, gl.SliceLayout(1, P.state)), P)
    out += gl.program_id(0).to(gl.int64) * (len(sums) * H)
    for s in gl.static_range(len(sums)):
        value = gl.sum(gl.where(length[0] > 0, sums[s], 0.0), axis=1)
        gl.store(out + (s * H + j), value, mask=j < H)

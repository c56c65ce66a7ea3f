"""Reading and writing rows of sequences in the whole-sequence kernels.

Arrays have a row for each sequence and time, padded or packed, and a column for each unit. `row`
finds the row. A [unit, row] is read and written in layout `Plan.memory`, where a thread has
neighbouring units, and computed with in `Plan.state`; each thread has the same elements in both.

Names: `first` is a program's first sequence. `real` (`unit_mask`) and `length` (`sequences`) are
pairs of the same numbers, the first of each in layout `Plan.state`, the second in `Plan.memory`.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: RUF005 (Triton compiles no starred tuples)
from __future__ import annotations

import triton.language as tl

from .arithmetic import unit_at
from .language import gl, gluon

# --- which rows -----------------------------------------------------------------------------------


@gluon.jit
def sequences(lengths, T, B, P: tl.constexpr):
    """This program's first sequence (int64), its sequences' lengths, and the longest one's.

    The lengths are [1, row] twice, in `P.state` and in `P.memory`; 0 past the last sequence.
    Addresses are a scalar, that of the first sequence, plus `element_offsets`, which fit in 32
    bits.
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
def units(P: tl.constexpr):
    """The units [unit, 1] in the order of `P.memory`."""
    return gl.arange(0, P.units, gl.SliceLayout(1, P.memory))[:, None]


@gluon.jit
def unit_mask(H: tl.constexpr, P: tl.constexpr):
    """Mask [unit, 1] of real units, those that are not padding, in `P.state` and in `P.memory`."""
    at = unit_at(gl.arange(0, P.units, gl.SliceLayout(1, P.state)), P)
    return (at[:, None] < H, units(P) < H)


@gluon.jit
def element_offsets(WIDTH: tl.constexpr, P: tl.constexpr):
    """Offsets of a [unit, row] from the first sequence's row, in an array with rows of WIDTH."""
    b = gl.arange(0, P.rows, gl.SliceLayout(0, P.memory))[None, :]
    return b * WIDTH + units(P)


@gluon.jit
def time(step, steps, BACKWARDS: tl.constexpr):
    """The time of a step; the walk may go from the last time to the first."""
    return steps - 1 - step if BACKWARDS else step


@gluon.jit
def row(offsets, first, t, B):
    """Row of sequence `first` at time t.

    t may lie up to 5 before or past the sequence: `offsets` have so many more entries.
    """
    return first + (B.to(gl.int64) * t if offsets is None else gl.load(offsets + 5 + t))


@gluon.jit
def row_after_two(offsets, first, before, t, B, BACKWARDS: tl.constexpr):
    """Row of sequence `first` at time t, two steps of the walk after row `before`."""
    if offsets is None:
        return before - 2 * B if BACKWARDS else before + 2 * B
    else:
        return first + gl.load(offsets + 5 + t)


@gluon.jit
def prefetch_mask(t, length, BACKWARDS: tl.constexpr):
    """Mask of the sequences that have a step at time t, which may lie past the end of the walk."""
    return (t >= 0) & (t < length) if BACKWARDS else t < length


@gluon.jit
def store_mask(t, length, real, lengths):
    """Mask [unit, row] of what has a step at time t, which lies in the walk; for memory."""
    return (length[1] > 0 if lengths is None else t < length[1]) & real[1]


@gluon.jit
def select(mask, new, old):
    """The new [unit, row]s where the mask is set, elsewhere the old ones."""
    values = ()
    for k in gl.static_range(len(new)):
        values = values + (gl.where(mask, new[k], old[k]),)
    return values


@gluon.jit
def select_running(new, old, t, length, lengths):
    """The new states of the sequences that have a step at time t, the old ones of the others."""
    return new if lengths is None else select(t < length[0], new, old)


# --- reading and writing --------------------------------------------------------------------------


@gluon.jit
def _to_memory(v, P: tl.constexpr):
    """A [unit, row] in layout `P.memory`; no data moves between threads."""
    if P.split:
        return v
    else:
        pairs = gl.permute(gl.reshape(v, [P.units // 16, 2, 8, P.rows]), [0, 2, 1, 3])
        return gl.convert_layout(gl.reshape(pairs, [P.units, P.rows]), P.memory)


@gluon.jit
def from_memory(v, E: tl.constexpr, P: tl.constexpr):
    """What `load` has read of an array of E, as float32 [unit, row] in layout `P.state`."""
    if P.split:
        return v.to(gl.float32)
    else:
        if v.dtype == gl.int32:  # two units of a thread: the first has the lower half of the word
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
    """Every other unit's [unit, row]; no data moves between threads."""
    return gl.split(gl.permute(gl.reshape(v, [P.units // 2, 2, P.rows]), [0, 2, 1]))[0]


@gluon.jit
def store(base, offset, values, mask, H: tl.constexpr, P: tl.constexpr):
    """Writes [unit, row]s of `P.state`, H apart, to an array whose rows are a multiple of H."""
    first = base + offset
    for k in gl.static_range(len(values)):
        at = first + k * H if k else first
        if P.split == 0 and H % 2 == 0:
            at = gl.multiple_of(at, [4, 1])  # a thread's two units are aligned: one instruction
        gl.store(at, _to_memory(values[k], P).to(base.dtype.element_ty), mask=mask)


@gluon.jit
def load(at, mask, H: tl.constexpr, P: tl.constexpr):
    """Reads from an array whose rows are a multiple of H; `from_memory` makes numbers of it.

    Two 16-bit units stay one word until they are used: taking it apart would wait for it.
    """
    if P.split == 0 and H % 2 == 0:
        at = _first_of_pairs(at, P).to(gl.pointer_type(gl.int32), bitcast=True)
        return gl.load(at, mask=_first_of_pairs(mask, P), other=0)
    else:
        return gl.load(at, mask=mask, other=0.0)


@gluon.jit
def load_all(at, mask, COUNT: tl.constexpr, H: tl.constexpr, P: tl.constexpr):
    """Reads COUNT [unit, row]s, H apart, see `load`."""
    values = ()
    for k in gl.static_range(COUNT):
        values = values + (load(at + k * H, mask, H, P),)
    return values


@gluon.jit
def load_states(h, c, start, at, mask, E: tl.constexpr, H: tl.constexpr, P: tl.constexpr):
    """Reads a state, (h, c) or (h,), from arrays of E [B, H]; c is None for a GRU.

    `start` is the offset of the first sequence's row, `at` those from there.
    """
    states = (from_memory(load(h + start + at, mask, H, P), E, P),)
    if c is not None:
        states = states + (from_memory(load(c + start + at, mask, H, P), E, P),)
    return states


@gluon.jit
def store_states(h, c, start, at, states, mask, H: tl.constexpr, P: tl.constexpr):
    """Writes a state, see `load_states`."""
    store(h + start, at, (states[0],), mask, H, P)
    if c is not None:
        store(c + start, at, (states[1],), mask, H, P)

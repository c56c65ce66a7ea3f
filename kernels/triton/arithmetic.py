"""Activations, and the product with the recurrent weights, of the whole-sequence kernels.

`plans` describes the two forms of the product and the layouts.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: RUF005 (Triton compiles no starred tuples)
from __future__ import annotations

import triton.language as tl

from .language import gl, gluon, mma_v2

# --- activations ----------------------------------------------------------------------------------


@gluon.jit
def _asm(x, CODE: tl.constexpr):
    return gl.inline_asm_elementwise(CODE, "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def _exp2(x, P: tl.constexpr):
    if P.math == "portable":
        return gl.exp2(x)
    else:
        return _asm(x, "ex2.approx.ftz.f32 $0, $1;")


@gluon.jit
def _reciprocal(x, P: tl.constexpr):
    if P.math == "portable":
        return 1.0 / x
    else:
        return _asm(x, "rcp.approx.ftz.f32 $0, $1;")


@gluon.jit
def tanh(x, P: tl.constexpr):
    """Hyperbolic tangent.

    Near 0, where 1 - 2 / (1 + exp(2x)) cancels, a polynomial with a relative error of 2e-9.
    """
    if P.math == "fast":
        return _asm(x, "tanh.approx.f32 $0, $1;")
    else:
        z = x * x
        p = 1.875122e-2 * z - 5.356414e-2
        p = p * z + 1.3331235e-1
        p = p * z - 3.3333299e-1
        far = 1.0 - 2.0 * _reciprocal(1.0 + _exp2(x * 2.8853900817779268, P), P)
        return gl.where(gl.abs(x) < 0.4, p * z * x + x, far)


@gluon.jit
def sigmoid(x, P: tl.constexpr):
    """Logistic function of x / P.slope: 1 / (1 + 2^x); if `fast`, 0.5 tanh(x) + 0.5."""
    if P.math == "fast":
        return 0.5 * tanh(x, P) + 0.5
    else:
        return _reciprocal(1.0 + _exp2(x, P), P)


# --- the product with the recurrent weights -------------------------------------------------------


@gluon.jit
def unit_at(position, P: tl.constexpr):
    """The unit at a position along the first dimension of a [unit, row] in layout `P.state`."""
    if P.split:
        return position
    else:
        return position // 16 * 16 + position % 8 * 2 + position // 8 % 2


@gluon.jit
def load_weights(
    w, GATES: tl.constexpr, UNIT: tl.constexpr, COLUMN: tl.constexpr,
    H: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Weights [unit, column] of each gate, zero past H.

    UNIT and COLUMN are the strides in w, where gates are H * H elements apart.
    """
    j = unit_at(gl.arange(0, P.units, gl.SliceLayout(1, P.weight)), P)[:, None]
    k = unit_at(gl.arange(0, P.units, gl.SliceLayout(0, P.weight)), P)[None, :]
    at = w + j * UNIT + k * COLUMN
    values = ()
    for g in gl.static_range(GATES):
        value = gl.load(at + g * H * H, mask=(j < H) & (k < H), other=0.0)
        values = values + (value.to(gl.float32) if P.split else value,)
    return values


@gluon.jit
def shared_buffers(COUNT: tl.constexpr, E: tl.constexpr, P: tl.constexpr):
    """Shared memory for COUNT [unit, row]s: of float32 (vector form), or E for the tensor cores."""
    dtype: tl.constexpr = gl.float32 if P.split else E
    columns: tl.constexpr = P.rows if P.split else P.columns
    buffers = ()
    for _ in gl.static_range(COUNT):
        buffers = buffers + (gl.allocate_shared_memory(dtype, [P.units, columns], P.shared),)
    return buffers


@gluon.jit
def share(buffer, value, P: tl.constexpr):
    """Stores a [unit, row] where all threads can read it."""
    value = value.to(buffer.dtype)
    if P.split == 0 and P.rows < 8:
        value = gl.reshape(gl.join(value, value), [P.units, P.columns])
        value = gl.convert_layout(value, P.mma)
    buffer.store(value)


@gluon.jit
def _halves(v, N: tl.constexpr):
    """Splits a thread's own N columns of v [unit, column, row] in two; no data moves."""
    U: tl.constexpr = v.shape[0]
    K: tl.constexpr = v.shape[1]
    R: tl.constexpr = v.shape[2]
    if N > 4:
        v = gl.permute(gl.reshape(v, [U, 2, K // 2, R]), [0, 2, 3, 1])
    else:
        v = gl.permute(gl.reshape(v, [U, K // 2, 2, R]), [0, 1, 3, 2])
    return gl.split(v)


@gluon.jit
def _chain(w, h, acc, N: tl.constexpr):
    """Adds the products of a thread's own N columns to acc, one FMA after the other.

    `gl.sum` of the products would be a tree in recent Triton: 1.5 instructions per element.
    """
    if N == 1:
        return w * h if acc is None else acc + w * h
    else:
        w0, w1 = _halves(w, N)
        h0, h1 = _halves(h, N)
        return _chain(w1, h1, _chain(w0, h0, acc, N // 2), N // 2)


@gluon.jit
def partial(w, h, P: tl.constexpr):
    """The product W h as far as one thread can sum it.

    `total` makes a [unit, row] of it, or of a sum of several.
    """
    if P.split:
        w, h = gl.broadcast(gl.expand_dims(w, 2), gl.expand_dims(h, 0))
        return _chain(w, h, None, P.units // P.split)
    else:
        return mma_v2(w, h, gl.full([P.units, P.columns], 0.0, gl.float32, P.mma))


@gluon.jit
def total(parts, P: tl.constexpr):
    """Adds up the parts of the lanes that share a unit; of rows that come twice, takes one."""
    if P.split:
        parts = gl.sum(parts, axis=1)
    elif P.rows < 8:
        parts = gl.split(gl.reshape(parts, [P.units, P.rows, 2]))[0]
    return gl.convert_layout(parts, P.state)

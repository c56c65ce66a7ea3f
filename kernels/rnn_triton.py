"""What the LSTM and the GRU kernels compute alike on a GPU: the plan, activations and the product.

One program runs a few sequences from their first step to their last. Its recurrent weights stay in
registers; only h (forward) or the gates' gradients (backward) pass through shared memory, once a
step. All that a step computes lives in one layout [unit, row], `Plan.state`, in one of two forms:

- vector: `split` lanes share a unit. Each multiplies its own columns of W_hh by h in a chain of
  float32 FMAs; log2(split) shuffles add the parts. Every row costs its own FMAs, so few rows.
- tensor: W_hh is the tensor cores' first operand (16 units × 16 columns), h^T the second (8 rows).
  Putting the weights first needs 8 rows instead of 16, and leaves the sums of a unit's gates in the
  same registers of the same thread, so that nothing is exchanged before the next step. A thread has
  rows k and k + 8 of a tile of 16: these are neighbouring units (`named`), which are one word.

The kernels are written in Gluon because plain Triton chooses the layouts itself, and then pays for
conversions between them and reads its weights from shared memory in each step.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: RUF005 (Triton compiles no starred tuples)
from __future__ import annotations

import dataclasses
from typing import Any

import triton.language as tl
from triton import knobs

INTERPRETED: bool = knobs.runtime.interpret


def _gluon() -> tuple[Any, Any, Any]:
    if INTERPRETED:
        from . import gluon_interpreter

        return gluon_interpreter, gluon_interpreter.Language(), gluon_interpreter.mma_v2
    from triton.experimental import gluon
    from triton.experimental.gluon import language
    from triton.experimental.gluon.language.nvidia import ampere

    return gluon, language, ampere.mma_v2


gluon, gl, mma_v2 = _gluon()

# Arguments that change from call to call: none of their values may compile a kernel anew.
DYNAMIC: dict[str, list[str]] = {
    "do_not_specialize": ["T", "B", "skew"],
    "do_not_specialize_on_alignment": [
        *("x", "w_ih", "w_hh", "b_ih", "b_hh", "h0", "c0", "y", "h_n", "c_n", "gates", "cells"),
        *("dy", "dh_n", "dc_n", "dgates", "dh0", "dc0", "offsets", "lengths"),
        *("v", "w", "head", "b_head", "h", "c", "logit", "pixels", "thresholds", "logits"),
    ],
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a kernel is spread over one program's threads; a compile-time constant of every kernel.

    Args:
        units: hidden size, padded to 16 (tensor) or 32 (vector) times a power of two.
        rows: sequences a program runs: a power of two; 8 or more for the tensor form.
        split: lanes that share a unit's sum (vector form); 0 chooses the tensor form.
        warps: warps a program; vector: units * split // lanes, tensor: units // 16.
        math: `exact` (float32 accuracy), `fast` (one special function for a tanh; 16 bits) or
            `portable` (no PTX: AMD, and the interpreter).
        lanes: threads a warp.
    """

    units: int
    rows: int
    split: int
    warps: int
    math: str
    lanes: int = 32

    @property
    def slope(self) -> float:
        """What `sigmoid` wants its argument multiplied by: one FMA then adds the input's share."""
        return 0.5 if self.math == "fast" else -1.4426950408889634

    @property
    def product(self) -> Any:
        """Layout [unit, column, row] of the vector form: 4 columns make one 16-byte read of h."""
        lanes = [self.lanes // self.split, self.split, 1]
        return gl.BlockedLayout([1, 4, self.rows], lanes, [self.warps, 1, 1], [1, 0, 2])

    @property
    def state(self) -> Any:
        """Layout [unit, row] of everything a step computes."""
        if self.split:
            return gl.SliceLayout(1, self.product)
        return gl.NVMMADistributedLayout([2, 0], [self.warps, 1], [16, 8])

    @property
    def memory(self) -> Any:
        """Layout [unit, row] of what global memory holds; no thread differs from `state`'s."""
        if self.split:
            return self.state
        own = [[1, 0], [0, 1], *([0, 8 << i] for i in range((self.rows // 8).bit_length() - 1))]
        warps = [[16 << i, 0] for i in range(self.warps.bit_length() - 1)]
        lanes = [[0, 2], [0, 4], [2, 0], [4, 0], [8, 0]]
        return gl.DistributedLinearLayout(own, lanes, warps, [], [self.units, self.rows])

    @property
    def weight(self) -> Any:
        """Layout [unit, column] of one gate's weights."""
        if self.split:
            return gl.SliceLayout(2, self.product)
        return gl.DotOperandLayout(0, self.state, 2)

    @property
    def operand(self) -> Any:
        """Layout [column, row] of h as the product reads it."""
        if self.split:
            return gl.SliceLayout(0, self.product)
        return gl.DotOperandLayout(1, self.state, 2)

    @property
    def shared(self) -> Any:
        """Layout of h in shared memory: columns contiguous; swizzled for the tensor cores."""
        vector = self.split > 0
        return gl.SwizzledSharedLayout(1 if vector else 8, 1, 1 if vector else 8, [0, 1])


# --- activations ---------------------------------------------------------------------------------


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
    """Hyperbolic tangent; near 0, where 1 - 2 / (1 + exp(2x)) cancels, a polynomial (2e-9)."""
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
    """Logistic function of x / P.slope: 1 / (1 + 2^x), or by a tanh."""
    if P.math == "fast":
        return 0.5 * tanh(x, P) + 0.5
    else:
        return _reciprocal(1.0 + _exp2(x, P), P)


@gluon.jit
def named(at, P: tl.constexpr):
    """Which unit stands at each place of a [unit, row] in layout `P.state`."""
    return at if P.split else at // 16 * 16 + at % 8 * 2 + at // 8 % 2


# --- the product with the recurrent weights ------------------------------------------------------


@gluon.jit
def weights(
    w, GATES: tl.constexpr, UNIT: tl.constexpr, COLUMN: tl.constexpr,
    H: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Each gate's [unit, column], zero past H; UNIT and COLUMN are their strides in w [_, H]."""
    j = named(gl.arange(0, P.units, gl.SliceLayout(1, P.weight)), P)[:, None]
    k = named(gl.arange(0, P.units, gl.SliceLayout(0, P.weight)), P)[None, :]
    at = w + j * UNIT + k * COLUMN
    values = ()
    for g in gl.static_range(GATES):
        value = gl.load(at + g * H * H, mask=(j < H) & (k < H), other=0.0)
        values = values + (value.to(gl.float32) if P.split else value,)
    return values


@gluon.jit
def buffer(E: tl.constexpr, P: tl.constexpr):
    """Shared memory for one [unit, row]: in float32, or in what the tensor cores take."""
    return gl.allocate_shared_memory(gl.float32 if P.split else E, [P.units, P.rows], P.shared)


@gluon.jit
def put(shared, value, P: tl.constexpr):
    """Store [unit, row] for all threads to read."""
    shared.store(value.to(shared.dtype))


@gluon.jit
def _halves(v, N: tl.constexpr):
    """Split a thread's own N columns of v [unit, column, row] in two; moves nothing."""
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
    """Add the products of a thread's own N columns to acc, one FMA after the other.

    A sum of products by `gl.sum` is a tree in newer Triton, at 1.5 instructions an element.
    """
    if N == 1:
        return w * h if acc is None else acc + w * h
    else:
        w0, w1 = _halves(w, N)
        h0, h1 = _halves(h, N)
        return _chain(w1, h1, _chain(w0, h0, acc, N // 2), N // 2)


@gluon.jit
def partial(w, h, P: tl.constexpr):
    """W h as far as one thread can sum it; `total` of it, or of a sum of such, is [unit, row]."""
    if P.split:
        w, h = gl.broadcast(gl.expand_dims(w, 2), gl.expand_dims(h, 0))
        return _chain(w, h, None, P.units // P.split)
    else:
        return mma_v2(w, h, gl.full([P.units, P.rows], 0.0, gl.float32, P.state))


@gluon.jit
def total(parts, P: tl.constexpr):
    """Add the parts of the lanes that share a unit."""
    return gl.convert_layout(gl.sum(parts, axis=1), P.state) if P.split else parts

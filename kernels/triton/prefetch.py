"""Prefetching what later steps read from memory into the L2 cache.

A kernel loads what a step needs two steps ahead. When all multiprocessors are reading, memory may
take longer than two steps to answer; the L2 cache answers within one.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

import triton.language as tl

from .language import gl, gluon
from .rows import time

AHEAD: tl.constexpr = tl.constexpr(8)  # steps


@gluon.jit
def cache_lines(
    wide, WIDTH: tl.constexpr, others, first, B, steps,
    BACKWARDS: tl.constexpr, H: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """The cache lines of some arrays that a program reads in two steps, one line per thread.

    `wide` is [N, WIDTH * H], the others are [N, H]. At one time, the rows of a program's sequences
    are one block of each array.

    Returns:
        The addresses for the steps AHEAD and AHEAD + 1; the distance in bytes to those for the next
        two steps; and the step from which on a thread has nothing more to prefetch.
    """
    ROW: tl.constexpr = H * wide.dtype.element_ty.primitive_bitwidth // 8
    LINE: tl.constexpr = 128
    LINES: tl.constexpr = (ROW * P.rows + LINE - 1) // LINE  # of an array [N, H], in one step
    TOTAL: tl.constexpr = (WIDTH + len(others)) * LINES
    THREADS: tl.constexpr = P.lanes * P.warps
    tl.static_assert(2 * TOTAL <= THREADS)
    i = gl.arange(0, THREADS, gl.BlockedLayout([1], [P.lanes], [P.warps], [0]))
    step = AHEAD + i // TOTAL
    i = i % TOTAL
    array = wide.to(gl.int64)
    for k in gl.static_range(len(others)):
        array = gl.where(i < (WIDTH + k) * LINES, array, others[k].to(gl.int64))
    width = gl.where(i < WIDTH * LINES, WIDTH * ROW, ROW).to(gl.int64)
    offset = gl.where(i < WIDTH * LINES, i, i % LINES) * LINE
    inside = (step < AHEAD + 2) & (offset < gl.minimum(B - first, P.rows) * width)
    at = (first + time(step, steps, BACKWARDS).to(gl.int64) * B) * width + offset
    return array + at, (-2 if BACKWARDS else 2) * B * width, gl.where(inside, steps - step, 0)


@gluon.jit
def prefetch(lines, mask):
    """Requests the cache lines at these addresses, where the mask is set; waits for nothing."""
    gl.inline_asm_elementwise(
        "{.reg .pred p; setp.ne.b32 p, $2, 0; @p prefetch.global.L2 [$1]; mov.b32 $0, 0;}",
        "=r,l,r", [lines, mask.to(gl.int32)], dtype=gl.int32, is_pure=False, pack=1,
    )  # fmt: skip

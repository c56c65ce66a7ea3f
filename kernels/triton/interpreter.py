"""Gluon's names over Triton's interpreter, so that TRITON_INTERPRET=1 runs the kernels on a CPU.

Triton interprets `triton.language` but not Gluon, which is the same language with its layouts
spelled out. A layout says which thread holds which element, never what the element is, so here
layouts are ignored and shared memory is a variable.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from triton.experimental.gluon import language


class _Shared:
    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        self.value: Any = None

    def store(self, value: Any) -> None:
        self.value = value

    def load(self, layout: Any) -> Any:
        return self.value


class Language:
    """The part of `triton.experimental.gluon.language` that the kernels use."""

    def __getattr__(self, name: str) -> Any:
        return getattr(tl if hasattr(tl, name) else language, name)

    def arange(self, start: int, end: int, layout: Any) -> Any:
        """`gl.arange`; the interpreter replaces `tl.arange` as a kernel starts."""
        return tl.arange(start, end)

    def full(self, shape: list[int], value: float, dtype: Any, layout: Any) -> Any:
        """`gl.full`."""
        return tl.full(shape, value, dtype)

    def convert_layout(self, value: Any, layout: Any) -> Any:
        """Nothing to convert."""
        return value

    def allocate_shared_memory(self, element_ty: Any, shape: list[int], layout: Any) -> _Shared:
        """A variable with `store` and `load`."""
        return _Shared(element_ty)


def jit(*args: Any, **kwargs: Any) -> Any:
    """`gluon.jit`, interpreted."""
    return triton.jit(*args, **kwargs)


def mma_v2(a: Any, b: Any, acc: Any) -> Any:
    """The tensor cores' product: 16-bit operands, float32 sums."""
    return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)

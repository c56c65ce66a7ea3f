"""The language of the kernels: Gluon, or with TRITON_INTERPRET=1 its names over the interpreter.

The whole-sequence kernels are written in Gluon because plain Triton chooses the layouts itself: it
then pays for conversions between them, and reads the weights from shared memory in every step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from triton import knobs

INTERPRETED: bool = knobs.runtime.interpret


def _gluon() -> tuple[Any, Any, Any]:
    if INTERPRETED:
        from . import interpreter

        return interpreter, interpreter.Language(), interpreter.mma_v2
    from triton.experimental import gluon
    from triton.experimental.gluon import language
    from triton.experimental.gluon.language.nvidia import ampere

    return gluon, language, ampere.mma_v2


gluon, gl, mma_v2 = _gluon()


def kernel(function: Callable[..., Any]) -> Any:
    """``gluon.jit`` for a function that is launched, and compiled once for all sizes.

    Triton would compile it again for an integer that is 1 or a multiple of 16, and for a tensor at
    a multiple of 16 bytes. Here only the arguments marked ``tl.constexpr``, which alone have an
    annotation, count, and which tensors are None.
    """
    arguments = [
        a for a in inspect.signature(function).parameters if a not in function.__annotations__
    ]
    return gluon.jit(do_not_specialize=arguments, do_not_specialize_on_alignment=arguments)(
        function
    )

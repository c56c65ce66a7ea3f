"""Training in eager mode, with autograd but without the dispatcher.

torch.library's ops cost some hundred microseconds per training step and layer, most of it for the
dispatcher and for an autograd formula in Python. A call that nothing looks into needs neither: an
autograd.Function with the same formula runs the forward op's kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn import choice, ops
from fastrnn._compat import calls_are_intercepted
from fastrnn.gradients import formula_of, setup_context_of
from fastrnn.kernels.contract import CELLS


def suits(tensors: Sequence[Tensor]) -> bool:
    """Whether nothing but gradients can be asked of a call with these tensors."""
    return not choice.in_graph() and not calls_are_intercepted() and choice.are_plain(tensors)


@functools.cache
def operation(cell: str) -> Callable[..., tuple[Tensor, ...]]:
    """A function with the arguments and results of a cell's op, all of them positional."""
    forward_kernel = ops.FORWARD_KERNELS[cell]
    setup_context = setup_context_of(CELLS[cell])

    class Layer(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
            results = forward_kernel(*args)
            setup_context(ctx, args, results)
            return results

        # The ops: vmap may run a backward pass, and only the dispatcher sees its tensors.
        backward = staticmethod(formula_of(CELLS[cell]))

    return Layer.apply

"""Training in eager mode, with autograd but without the dispatcher.

torch.library's ops cost some hundred microseconds per training step and layer, most of it for the
dispatcher and for an autograd formula in Python. A call that nothing inspects needs neither: an
autograd.Function with the same formula runs the ops' kernels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn import choice, ops
from fastrnn._compat import is_batched_gradient as is_batched
from fastrnn.gradients import Runner, formula_of, setup_context_of
from fastrnn.kernels.contract import CELLS


def runs_kernels(saved: Sequence[Tensor | None], grads: Sequence[Tensor | None]) -> bool:
    """Whether a backward pass can call the kernels directly, without the dispatcher.

    Args:
        saved: the tensors that the forward pass kept.
        grads: the gradients of its results.
    """
    if not choice.are_plain_or_none((*saved, *grads)) or not choice.is_direct():
        return False
    # A vmap may run a backward pass, and only the dispatcher sees its tensors.
    return not any(grad is not None and is_batched(grad) for grad in grads)


@functools.cache
def operation(cell: str) -> Callable[..., tuple[Tensor, ...]]:
    """A function with the arguments and results of a cell's op, all of them positional.

    It is for calls that are direct (:func:`fastrnn.choice.is_direct`), with plain tensors.
    """
    forward_kernel, backward_kernel = ops.FORWARD_KERNELS[cell], ops.BACKWARD_KERNELS[cell]

    def kernels(
        saved: Sequence[Tensor | None], grads: Sequence[Tensor | None]
    ) -> tuple[Runner, Runner] | None:
        return (forward_kernel, backward_kernel) if runs_kernels(saved, grads) else None

    setup_context = setup_context_of(CELLS[cell])

    class Layer(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
            results = forward_kernel(*args)
            setup_context(ctx, args, results)
            return results

        backward = staticmethod(formula_of(CELLS[cell], kernels))

    return Layer.apply

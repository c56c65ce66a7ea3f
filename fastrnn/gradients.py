"""The ops' autograd formulas, and a differentiable forward pass for what those do not cover."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn._compat import InPlaceChanges, not_compiled, versions
from fastrnn.kernels import reference
from fastrnn.kernels.contract import Cell


def setup_context_of(cell: Cell) -> Callable[..., None]:
    """What a cell's op keeps for backward, for torch.library.register_autograd.

    That is the inputs x, states, weights, biases and batch_sizes, then y and the saved tensors.
    ``ctx.set_aside`` has those inputs that backward reads only if it runs the layer again.
    """
    w_ih = 1 + cell.states
    b_ih, b_hh = w_ih + 2, w_ih + 3

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.reverse, ctx.save, ctx.backend, ctx.batch_first = inputs
        y, saved = output[0], output[1 + cell.states :]
        ctx.set_materialize_grads(False)  # gradients of gates and cells would be large zeros
        ctx.mark_non_differentiable(*saved)
        ctx.changes = ctx.set_aside = None
        if ctx.save and type(y) is not Tensor:  # a stand-in while a graph is traced
            y = y.clone()
        elif ctx.save:
            ctx.changes = InPlaceChanges(y)
            y = y.data  # with a version counter of its own
            unread = (b_ih, b_hh) if ctx.needs_input_grad[0] else (w_ih, b_ih, b_hh)
            ctx.set_aside = SetAside(tensors, unread)
        ctx.save_for_backward(*tensors, y, *saved)

    return setup_context


class SetAside:
    """Inputs of an op that its backward pass reads only if it runs the layer again.

    autograd refuses any saved tensor that was changed in place, even if backward does not need its
    values, and torch.nn's layers do not save their biases. These inputs are therefore not saved,
    and :meth:`check` refuses changes where backward does need them.
    """

    def __init__(self, tensors: list[Any], places: tuple[int, ...]) -> None:
        """Takes the tensors at these places out of a list, and leaves None there."""
        self._taken = {i: tensors[i] for i in places if tensors[i] is not None}
        self._versions = versions(self._taken.values())
        for i in self._taken:
            tensors[i] = None

    def put_back(self, tensors: list[Any]) -> None:
        """Puts the tensors back into a list."""
        for i, tensor in self._taken.items():
            tensors[i] = tensor

    def check(self) -> None:
        """Raises RuntimeError, as autograd does, if one of the tensors was changed in place."""
        if versions(self._taken.values()) != self._versions:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an "
                "inplace operation: backward must run an LSTM or GRU layer again, whose weights "
                "or biases were modified after the forward pass"
            )


Runner = Callable[..., tuple[Any, ...]]  # takes the arguments of an op and returns its results
# The gradients of what each op takes last: batch_sizes, reverse, save, backend, batch_first.
NO_GRADIENTS = (None,) * 5


def ops_of(cell: Cell) -> tuple[Runner, Runner]:
    """A cell's op, and the op of its gradients."""
    namespace = torch.ops.fastrnn
    return getattr(namespace, cell.name), getattr(namespace, f"{cell.name}_backward")


def formula_of(
    cell: Cell, kernels: Callable[..., tuple[Runner, Runner] | None] | None = None
) -> Callable[..., tuple[Tensor | None, ...]]:
    """The gradients of a cell's op, for torch.library.register_autograd.

    Args:
        cell: whose op.
        kernels: takes the saved tensors and the gradients, and returns the kernels of the two ops
            if they can be called in place of the ops. Unlike the ops, the kernels accept None for
            gradients that are zeros, and take need_d_states: if it is False, the gradients of the
            states may be None.
    """
    n = 1 + cell.states  # x and the states; after them come w_ih, w_hh, b_ih, b_hh

    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        everything = ctx.saved_tensors  # read once: unpacking them may cost a recomputation
        *tensors, batch_sizes, y = everything[: n + 6]
        saved = everything[n + 6 :]
        if ctx.set_aside:
            ctx.set_aside.put_back(tensors)
        x, *states = tensors[:n]
        dy, *d_final = grads[:n]
        create_graph = torch.is_grad_enabled()  # the gradients must themselves have gradients
        direct = kernels(everything, grads) if kernels and not create_graph else None
        if direct is None:
            d_final = [
                torch.zeros_like(like) if grad is None else grad
                for grad, like in zip(d_final, states, strict=True)
            ]
        runs_again = create_graph or not ctx.save or ctx.changes
        if runs_again and ctx.set_aside:
            ctx.set_aside.check()
        if create_graph:
            results = _differentiable_gradients(ctx, cell, tensors, batch_sizes, [dy, *d_final])
            return (*results, *NO_GRADIENTS)
        run, run_backward = direct or ops_of(cell)
        only = {} if direct is None else {"need_d_states": any(ctx.needs_input_grad[1:n])}
        tail = (batch_sizes, ctx.reverse)
        if runs_again:
            y, *rest = run(*tensors, *tail, True, ctx.backend, ctx.batch_first)
            saved = rest[cell.states :]
        w_ih, w_hh, b_ih, _ = tensors[n:]
        need_dx = ctx.needs_input_grad[0]
        dx, *d_inputs = run_backward(
            dy, *d_final, x, *states, w_ih, w_hh, y, *saved, *tail, need_dx,
            ctx.backend, ctx.batch_first, **only,
        )  # fmt: skip
        d_others, db = d_inputs[: -cell.bias_gradients], d_inputs[-cell.bias_gradients :]
        d_biases = of_biases(db, given=b_ih is not None)
        return (dx if need_dx else None, *d_others, *d_biases, *NO_GRADIENTS)

    return not_compiled(backward)  # even where a call of Tensor.backward() is compiled


def of_biases(db: Sequence[Tensor], *, given: bool) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of b_ih and b_hh.

    Args:
        db: what a kernel returns: one gradient for both biases, or one for each.
        given: whether the layer has biases.
    """
    if not given:
        return None, None
    # If it is the same for both, the second is a copy: users scale gradients in place.
    return db[0], db[1] if len(db) == 2 else db[0].clone()


def _differentiable_gradients(
    ctx: Any,
    cell: Cell,
    tensors: Sequence[Tensor | None],
    batch_sizes: Tensor | None,
    grads: list[Tensor | None],
) -> list[Tensor | None]:
    """Gradients through the reference's arithmetic, which autograd can differentiate again."""
    outputs = differentiable(cell)(*tensors, batch_sizes, ctx.reverse, ctx.batch_first)
    return gradients_by_autograd(ctx, tensors, outputs, grads, create_graph=True)


def gradients_by_autograd(
    ctx: Any,
    tensors: Sequence[Tensor | None],
    outputs: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    create_graph: bool,
) -> list[Tensor | None]:
    """The gradients of an op's tensors, by autograd from outputs that were computed from them.

    Args:
        ctx: the context of the op's backward pass, which says which gradients are wanted.
        tensors: the op's tensor inputs.
        outputs: computed from them.
        grads: gradients of the outputs; None stands for zeros.
        create_graph: whether the gradients must themselves have gradients.
    """
    wanted = {i: t for i, t in enumerate(tensors) if t is not None and ctx.needs_input_grad[i]}
    given = [(y, dy) for y, dy in zip(outputs, grads, strict=True) if dy is not None]
    found = torch.autograd.grad(
        [y for y, _ in given], list(wanted.values()), [dy for _, dy in given],
        create_graph=create_graph, allow_unused=True,
    )  # fmt: skip
    gradients = dict(zip(wanted, found, strict=True))
    return [gradients.get(i) for i in range(len(tensors))]


def differentiable(cell: Cell) -> Callable[..., tuple[Tensor, ...]]:
    """A cell's forward pass in differentiable steps, for transforms that cannot see into an op.

    It takes the op's tensors, batch_sizes, reverse and batch_first, and returns y and the final
    states.
    """
    n = 1 + cell.states

    def forward(x: Tensor, *args: Any) -> tuple[Tensor, ...]:
        *tensors, batch_sizes, reverse, batch_first = args
        states, padded = tensors[: n - 1], x.dim() == 3
        single = states[0].dim() == 3
        if padded:
            x = x.transpose(0, 1) if batch_first else x
            axes, x = x.shape[:2], x.reshape(-1, x.shape[2])
        if single:
            states = [state[0] for state in states]
        y, final, _ = reference.forward(
            cell, x, states, tensors[n - 1 :], batch_sizes, reverse, False
        )
        if padded:
            y = y.reshape(*axes, y.shape[1])
            y = y.transpose(0, 1) if batch_first else y
        return (y, *(state.unsqueeze(0) for state in final)) if single else (y, *final)

    return forward

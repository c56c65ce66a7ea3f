"""A whole stack of layers in one op, for ordinary calls on CPUs that need no gradients.

:func:`run` takes only ordinary calls (:func:`fastrnn.choice.is_ordinary`). It returns None for a
call that the op cannot run; :mod:`fastrnn.functional` then runs it another way.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn import backends, choice, measured
from fastrnn._compat import extension_path
from fastrnn.kernels import stack
from fastrnn.kernels.contract import CELLS, Cell
from fastrnn.kernels.cpu import DTYPES

_library = torch.library.Library("fastrnn", "FRAGMENT")
for _schema in stack.SCHEMAS:
    _library.define(_schema)
    _name = _schema.partition("(")[0]
    # Only calls without gradients get here, and autograd's default kernel would cost a microsecond.
    _library.impl(_name, torch.library.fallthrough_kernel, "Autograd")

_CELLS = {cell.code: cell.name.upper() for cell in CELLS.values()}
_GRU = CELLS["gru"].code
_DTYPES = {code: dtype for dtype, code in DTYPES.items()}
_CPU = torch.device("cpu").type
_lock = threading.Lock()
_ready: bool | None = None  # None until the ops are asked for


def _choose(call: stack.StackCall) -> bool:
    return backends.runs_in_one_op(
        backends.Call(
            cell=_CELLS[call.cell],
            device=_CPU,
            dtype=_DTYPES[call.dtype],
            steps=call.steps,
            batch=call.batch,
            input_size=call.input_size,
            hidden_size=call.hidden_size,
            training=False,
            projected=call.proj_size > 0,
            packed=bool(call.packed),
        )
    )


def load_error() -> str | None:
    """Why stacks cannot run in one op; None if they can."""
    global _ready  # noqa: PLW0603
    with _lock:
        error = _enable()
        _ready = error is None
    return error


@functools.cache
def _enable() -> str | None:
    return stack.enable(extension_path(), _choose)


def run(
    cell: str,
    input: Tensor,
    states: tuple[Tensor, ...],
    weights: Sequence[Tensor],
    bias: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
) -> list[Tensor] | None:
    """The output and the final states; None for a call that the op cannot run.

    Arguments are those of :func:`fastrnn.functional.lstm`; dropout must not be active. With input
    [B, I] and states [B, H] the call is one step of a cell, and the results are its new states.
    """
    if choice.trains(weights):
        return None  # the usual call of a training loop
    steps = 0 if batch_sizes is None else batch_sizes.shape[0]
    sizes = [state.shape for state in states]
    kind = (cell, input.shape, *sizes, steps, batch_first, input.dtype)
    if kind in _declined or not _may_run(input, states, weights):
        return None
    options = stack.options(CELLS[cell].code == _GRU, bias, bidirectional, batch_first, num_layers)
    results: list[Tensor]
    if batch_sizes is None:
        results = torch.ops.fastrnn.stack.default(input, states, weights, options)
    else:
        op = torch.ops.fastrnn.packed_stack.default
        results = op(input, batch_sizes, states, weights, options)
    if results:
        return results
    if len(_declined) >= _MOST_DECLINED:
        _declined.clear()
    _declined.add(kind)
    return None


def step(
    cell: str, input: Tensor, states: tuple[Tensor, ...], weights: Sequence[Tensor | None]
) -> list[Tensor] | None:
    """A cell's new states; None for a call that the op cannot run.

    Arguments are those of :func:`fastrnn.functional.lstm_cell`; ``weights`` are its last four.
    """
    given = [w for w in weights if w is not None]
    return run(cell, input, states, given, weights[2] is not None, 1, False)


def layer(
    cell: Cell, backend: str, x: Tensor, tensors: Sequence[Tensor | None], batch_first: bool
) -> list[Tensor] | None:
    """What a cell's op returns for a padded, forward call that saves nothing.

    Returns None for a call that the op itself must run.

    Args:
        cell: of the layer.
        backend: as the op takes it.
        x: [T, B, I] ([B, T, I] with ``batch_first``), or [B, I] for a single step.
        tensors: states ([1, B, H], or [B, H] for a single step), weights and biases.
        batch_first: see x.

    Returns:
        y and the final states, in the op's shapes.
    """
    bias = tensors[-1] is not None
    given: Any = tensors if bias else tensors[:-2]
    if x is None or any(t is None for t in given) or (not bias and tensors[-2] is not None):
        return None  # the op says what is missing
    dim = x.dim()
    if given[0].dim() != dim or not x.is_cpu or not is_ready():
        return None
    if backend:
        record = backends.BACKENDS.get(backend)
        if record is None or not record.stacks:
            return None
    elif backends.forced_backend() is not None:
        return None
    states, weights = given[: cell.states], given[cell.states :]
    options = stack.options(cell.code == _GRU, bias, False, batch_first, 1)
    results: list[Tensor] = torch.ops.fastrnn.stack.default(x, states, weights, options)
    if not results:
        return None
    return results if dim == 3 else [results[0].clone(), *results]


_declined: set[tuple[Any, ...]] = set()  # calls that the op refuses; trying it takes microseconds
_MOST_DECLINED = 4096


def forget_choices() -> None:
    """Makes later calls choose again; call it after changing what the choice depends on."""
    _declined.clear()
    stack.forget_choices()


measured.listeners.append(forget_choices)


def _may_run(input: Tensor, states: tuple[Tensor, ...], weights: Sequence[Tensor]) -> bool:
    if not input.is_cpu:
        return False
    tensors = (input, *states, *weights)
    if not choice.are_plain(tensors):  # checked first: others may not answer requires_grad
        return False
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return False
    return is_ready()


def is_ready() -> bool:
    """Whether the ops can run."""
    return _ready or (_ready is None and load_error() is None)

"""A whole stack of layers in one op, for calls in eager mode on CPUs that need no gradients.

:func:`run` returns None for every other call; it then goes through :mod:`fastrnn.functional`.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.jit import is_tracing  # type: ignore[attr-defined]

from fastrnn import backends, choice
from fastrnn._compat import calls_are_intercepted, extension_path
from fastrnn.kernels import stack
from fastrnn.kernels.contract import CELLS
from fastrnn.kernels.cpu import DTYPES

_library = torch.library.Library("fastrnn", "FRAGMENT")
for _schema in stack.SCHEMAS:
    _library.define(_schema)
    _name = _schema.partition("(")[0]
    # Only calls without gradients get here, and autograd's own default would cost a microsecond.
    _library.impl(_name, torch.library.fallthrough_kernel, "Autograd")

_CELLS = {cell.code: cell.name.upper() for cell in CELLS.values()}
_GRU = CELLS["gru"].name
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
    """The output and the final states; None for a call that needs more than this.

    Arguments are those of :func:`fastrnn.functional.lstm`; dropout must not be active. With input
    [B, I] and states [B, H] the call is one step of a cell, and the results are its new states.
    """
    if torch.compiler.is_compiling():  # the set of kinds would fix the sizes in the graph
        return None
    steps = 0 if batch_sizes is None else batch_sizes.shape[0]
    kind = (cell, input.shape, states[0].shape, steps, batch_first, input.dtype)
    if kind in _declined or not _may_run(input, states, weights):
        return None
    options = stack.options(cell == _GRU, bias, bidirectional, batch_first, num_layers)
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
    """A cell's new states; None for a call that needs more than this.

    Arguments are those of :func:`fastrnn.functional.lstm_cell`; ``weights`` are its last four.
    """
    given = [w for w in weights if w is not None]
    return run(cell, input, states, given, weights[2] is not None, 1, False)


_declined: set[tuple[Any, ...]] = set()  # kinds of calls that others run; to ask takes microseconds
_MOST_DECLINED = 4096


def forget_choices() -> None:
    """Asks anew what runs in one op; for whoever changes what the choice depends on."""
    _declined.clear()
    stack.forget_choices()


def _may_run(input: Tensor, states: tuple[Tensor, ...], weights: Sequence[Tensor]) -> bool:
    if not input.is_cpu or not _is_plain(input, states, weights):
        return False
    return _ready or (_ready is None and load_error() is None)


def _is_plain(input: Tensor, states: tuple[Tensor, ...], weights: Sequence[Tensor]) -> bool:
    """Whether nothing but the results is asked of a call, and of tensors that are just tensors."""
    tensors: tuple[Any, ...] = (input, *states, *weights)
    return not (
        not choice.are_plain(tensors)  # first: others may not answer what follows
        or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
        or calls_are_intercepted()
        or torch.is_autocast_enabled(_CPU)
        or backends.forced_backend() is not None
        or is_tracing()
    )

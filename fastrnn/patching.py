"""``patch_torch()``: torch.nn's own LSTM and GRU layers on fastrnn's kernels, in place.

torch.nn's layers call the operators aten::lstm and aten::gru, and so do programs that were
scripted, traced or exported from them. While torch is patched, its dispatcher finds kernels of ours
for these operators, on CPUs and GPUs, with and without autograd. A kernel either runs a call as
:mod:`fastrnn.functional` does or hands it to torch's own implementation. It always does the latter
if something inspects the call: tensors of a subclass (including fake tensors), graphs that are
being traced, and modes that watch torch's operators. So for every tool, layers and graphs stay
torch's.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from fastrnn import backends, choice, functional, inference, measured
from fastrnn._compat import (
    composite,
    forget_dispatch,
    functions_are_watched,
    has_dispatch_mode,
    has_kernel,
    layer_function,
    layer_function_is_replaced,
    not_compiled,
    remove_kernels,
    replace_layer_function,
    restore_layer_function,
    traceable,
    transforms_active,
)

CELLS = ("lstm", "gru")
OPERATORS = ("lstm.input", "lstm.data", "gru.input", "gru.data")
# BackendSelect, which precedes the device's key, is for inference mode: a kernel for the device's
# own key would tell torch.export that the operator must not be decomposed.
KEYS = ("AutogradCPU", "AutogradCUDA", "BackendSelect")

_log = logging.getLogger("fastrnn")
_lock = threading.RLock()
_depth = 0  # how many calls of patch_torch() have not been undone
_library: torch.library.Library | None = None  # holds the kernels while they are registered


_PACKED, _LSTM = frozenset(OPERATORS[1::2]), frozenset(OPERATORS[:2])
_OURS, _TORCHS, _UNUSUAL = "ours", "torch's", "unusual"
_MOST_CALLS = 4096
_known: dict[tuple[Any, ...], str] = {}  # who runs a kind of call, see _judged
_entered = itertools.count()
_latest = 0  # of _entered
_running: list[None] = []  # one for each call that a kernel has not finished


# ---- a call of an operator


def _run(
    operator: str, own: Callable[..., Any], unusual: Callable[..., Any], args: tuple[Any, ...]
) -> Any:
    """Runs a call as fastrnn's layers do.

    This is written to add little to calls that torch's implementation runs: for a short call, each
    microsecond is one percent.

    Args:
        operator: one of :data:`OPERATORS`.
        own: torch's implementation of it, for calls that it runs faster.
        unusual: runs the calls that fastrnn's layers could not make.
        args: the operator's arguments.
    """
    packed, lstm = operator in _PACKED, operator in _LSTM
    if packed:
        input, batch_sizes, hx, weights, *options = args
        batch_first = False
    else:
        input, hx, weights, *options, batch_first = args
        batch_sizes = None
    states = hx if lstm else (hx,)
    ordinary = choice.is_ordinary()
    if (
        (not ordinary and (has_dispatch_mode() or choice.in_graph()))
        or not isinstance(states, list | tuple)
        or not isinstance(weights, list)
        or not choice.are_plain((input, *states, *weights))
    ):
        return unusual(*args)
    key = (
        operator,
        input.shape,
        *[state.shape for state in states],
        batch_sizes.shape if packed else batch_first,
        input.dtype,
        input.device,
        torch.is_grad_enabled()
        and (weights[0].requires_grad or choice.needs_gradients((input, *states, *weights))),
    )
    known = _known.get(key)
    if known is None:
        if len(_known) >= _MOST_CALLS:
            _known.clear()
        known = _known[key] = _judged(lstm, input, batch_sizes, states, batch_first, key[-1])
    special = False
    if not ordinary:
        special = transforms_active() or backends.forced_backend() is not None
        if choice.under_autocast(input):
            # torch's GRU computes in two dtypes on CPUs, and its results have the wider one.
            special, known = lstm or not input.is_cpu, _TORCHS
    if known is _TORCHS and not special:
        return own(*args)
    stack = functional.StackOptions(*options)
    if known is _UNUSUAL or not _weights_fit(lstm, input, states, weights, stack):
        return unusual(*args)
    return functional.run_stack(
        "lstm" if lstm else "gru", input, states if lstm else states[0], weights, stack,
        batch_first, batch_sizes, own, _projection(states),
    )  # fmt: skip


def _weights_fit(
    lstm: bool,
    input: Tensor,
    states: Sequence[Tensor],
    weights: list[Tensor],
    stack: functional.StackOptions,
) -> bool:
    """Whether a layer could have these states and weights; if not, torch raises its own error."""
    sets, _, size = states[0].shape
    hidden, directions = states[-1].shape[-1], 2 if stack.bidirectional else 1
    rows = (4 if lstm else 3) * hidden
    others = [(rows, size)] + ([(rows,)] * 2 if stack.bias else [])
    if size != hidden:
        others.append((size, hidden))
    expected = [(rows, input.shape[-1]), *others] * directions
    if stack.num_layers > 1:
        deeper = [(rows, directions * size), *others]
        expected += deeper * (directions * (stack.num_layers - 1))
    return sets == stack.num_layers * directions and [w.shape for w in weights] == expected


def _projection(states: Sequence[Tensor]) -> int:
    """proj_size of the layer that has these states."""
    size = states[0].shape[-1]
    return 0 if size == states[-1].shape[-1] else size


def _judged(
    lstm: bool,
    input: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    batch_first: bool,
    training: bool,
) -> str:
    """Who runs a kind of call: fastrnn's layers, or torch, as the faster or the only choice."""
    fits = (
        len(states) == (2 if lstm else 1)
        and input.dim() == (3 if batch_sizes is None else 2)
        and states[0].dim() == 3
        and states[0].shape[:2] == states[-1].shape[:2]
        and (batch_sizes is not None or input.shape[0 if batch_first else 1] == states[0].shape[1])
    )
    if not fits:
        return _UNUSUAL
    steps = input.shape[1 if batch_first else 0] if batch_sizes is None else len(batch_sizes)
    cell = "lstm" if lstm else "gru"
    call = choice.call_of(
        cell, input, states, steps, states[0].shape[1], training,
        projected=_projection(states) > 0, packed=batch_sizes is not None,
        in_one_op=input.is_cpu and inference.is_ready(),
    )  # fmt: skip
    return _TORCHS if backends.choose(call, True).backend == choice.VENDOR else _OURS


def forget_choices() -> None:
    """Makes later calls choose again; call it after changing what the choice depends on."""
    _known.clear()


measured.listeners.append(forget_choices)


# ---- what torch calls


def _kernel(operator: str) -> Callable[..., Any]:
    """What the dispatcher calls for an operator."""
    own, traced = composite(operator), traceable(operator)

    def kernel(*args: Any) -> Any:
        global _latest  # noqa: PLW0603
        _running.append(None)
        _latest = next(_entered)
        try:
            return _run(operator, own, traced, args) if _depth else traced(*args)
        finally:
            _running.pop()

    return not_compiled(kernel)


@functools.cache  # torch.jit.script recognises the function by its identity
def _function(cell: str) -> Callable[..., Any]:
    """What torch.nn's modules call in eager mode, without the cost of a kernel in Python."""
    original = layer_function(cell)
    kinds = {packed: f"{cell}.{kind}" for packed, kind in ((False, "input"), (True, "data"))}
    own = {operator: composite(operator) for operator in kinds.values()}

    def function(*args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != 9 or torch.compiler.is_compiling() or functions_are_watched():
            return original(*args, **kwargs)  # which calls our kernel by way of the dispatcher
        operator = kinds[isinstance(args[1], Tensor) and not isinstance(args[3], bool)]
        return _run(operator, own[operator], original, args)

    return not_compiled(function)


@functools.cache
def _step_function(cell: str) -> Callable[..., Any]:
    """What torch.nn's cells call in eager mode."""
    original, count = layer_function(f"{cell}_cell"), 2 if cell == "lstm" else 1

    def function(*args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != 6 or not choice.is_ordinary() or functions_are_watched():
            return original(*args, **kwargs)
        input, hx, *weights = args
        states = tuple(hx) if isinstance(hx, list | tuple) else (hx,)
        given = [w for w in weights if w is not None]
        if len(states) != count or not choice.are_plain((input, *states, *given)):
            return original(*args)
        found = inference.step(cell, input, states, weights)
        if found is None:
            return original(*args)
        return tuple(found) if count == 2 else found[0]

    return not_compiled(function)


def _functions() -> dict[str, Callable[..., Any]]:
    """What torch.nn's modules call in eager mode while torch is patched, by torch's names."""
    steps = {f"{cell}_cell": _step_function(cell) for cell in CELLS}
    return {cell: _function(cell) for cell in CELLS} | steps


# ---- patching and unpatching


class Patch(contextlib.AbstractContextManager["Patch"]):
    """What :func:`patch_torch` returns; leaving it as a context undoes one patch."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        unpatch_torch()


def patch_torch() -> Patch:
    """Makes torch.nn's LSTM and GRU layers run on fastrnn's kernels, in the whole process.

    This includes layers that exist already, layers that other packages create, and programs that
    were scripted, traced or exported. Numbers agree within rounding; a call that torch runs
    faster, or that only torch supports, still runs on torch's code. ``with
    fastrnn.patch_torch():`` undoes the patch at the end of the block. Patches nest: torch is back
    to normal once each of them has been undone.

    Raises:
        RuntimeError: something else has replaced torch's operators; nothing is changed.
    """
    global _depth, _library  # noqa: PLW0603
    with _lock:
        if _library is None:
            _library = _register()
        if _depth == 0:
            for name, function in _functions().items():
                replace_layer_function(name, function)
            _log.info(
                "torch is patched: %s on CPUs and GPUs run on fastrnn's kernels",
                ", ".join(f"aten::{operator}" for operator in OPERATORS),
            )
        _depth += 1
    return Patch()


def unpatch_torch() -> None:
    """Undoes one :func:`patch_torch`; without one, does nothing.

    After the last one torch's layers give the same bits as before. While other threads keep calling
    layers, the kernels stay registered and hand every call to torch; otherwise they are removed.
    """
    global _depth  # noqa: PLW0603
    with _lock:
        if _depth == 0:
            return
        _depth -= 1
        if _depth == 0:
            for name in _functions():
                restore_layer_function(name)
            _remove()


def is_patched() -> bool:
    """Whether torch's layers run on fastrnn's kernels."""
    return _depth > 0


def _register() -> torch.library.Library:
    taken = [
        f"aten::{operator} ({key})"
        for operator in OPERATORS
        for key in KEYS
        if has_kernel(operator, key)
    ]
    taken += [f"torch._VF.{cell}" for cell in _functions() if layer_function_is_replaced(cell)]
    if taken:
        raise RuntimeError(
            f"torch cannot be patched: something else in this process has replaced "
            f"{', '.join(taken)}. Undo that first, or use fastrnn.LSTM and GRU, or fastrnn.convert"
        )
    library = torch.library.Library("aten", "IMPL")
    for operator in OPERATORS:
        kernel = _kernel(operator)
        for key in KEYS:
            library.impl(operator, kernel, key)
        forget_dispatch(operator)
    return library


def _remove() -> None:
    """Removes the kernels unless another thread is running one or about to.

    The dispatcher frees a kernel at once, even if a thread is running it.
    """
    global _library  # noqa: PLW0603
    if threading.active_count() > 1:
        before = _latest
        time.sleep(0.02)  # lets threads that wait for the interpreter lock enter their kernel
        if _latest != before or _running:
            return
    assert _library is not None
    remove_kernels(_library)
    for operator in OPERATORS:
        forget_dispatch(operator)
    _library = None

"""Ops for whole stacks of layers, and for layers in training, on CPUs: libfastrnn_torch by ctypes.

The library gets tensors straight from torch's dispatcher and calls the native CPU library, which
saves the cost of Python for every layer and direction. It is built without torch; the C functions
of torch that it needs are part of torch's stable ABI, and their addresses are looked up here.

Without the library, or with FASTRNN_STACK=0 in the environment, layers run one by one.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from fastrnn.kernels import cpu
from fastrnn.kernels.library import library_path, open_library

_LIBRARY = "fastrnn_torch"
_REMEDY = "reinstall fastrnn"
# The ops return an empty list for a call that must go through Python: one that the library does not
# support, whose arguments do not fit together, or for which another backend was chosen.
SCHEMAS = (
    "stack(Tensor input, Tensor[] states, Tensor[] weights, int options) -> Tensor[]",
    "packed_stack(Tensor input, Tensor batch_sizes, Tensor[] states, Tensor[] weights, int options)"
    " -> Tensor[]",
    # For frozen layers. `weights` is what kernels.cpu.prepack returns. If `output` holds a tensor,
    # the output is written to it and not returned.
    "frozen_stack(Tensor input, Tensor[] states, Tensor weights, Tensor(a!)[] output, int options)"
    " -> Tensor[]",
    "frozen_packed_stack(Tensor input, Tensor batch_sizes, Tensor[] states, Tensor weights,"
    " Tensor(a!)[] output, int options) -> Tensor[]",
    # One layer in one direction, in training; csrc/torch/layer.h says which tensors.
    "layer(Tensor[] tensors, int options) -> Tensor[]",
    "layer_backward(Tensor[] tensors, int options) -> Tensor[]",
)


class StackCall(NamedTuple):
    """What decides where a stack runs; dtype and cell as in :mod:`fastrnn.kernels.cpu`."""

    cell: int
    dtype: int
    threads: int
    packed: bool
    steps: int
    batch: int
    input_size: int
    hidden_size: int
    proj_size: int


_CPU_FUNCTIONS = (
    "forward", "backward", "prepacked_bytes", "forward_prepacked", "forward_projected",
    "backward_projected",
)  # fmt: skip


class _CpuFunctions(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in _CPU_FUNCTIONS]


class _StackCall(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int32) for name in StackCall._fields[:4]],
        *[(name, ctypes.c_int64) for name in StackCall._fields[4:]],
    ]


_Choose = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_StackCall))
_library: ctypes.CDLL | None = None
_kept: list[Any] = []  # objects whose addresses the library holds


def options(
    gru: bool, biases: bool, bidirectional: bool, batch_first: bool, num_layers: int
) -> int:
    """How a stack is built, as one number for the ops."""
    return gru | biases << 1 | bidirectional << 2 | batch_first << 3 | num_layers << 4


def layer_options(
    gru: bool,
    biases: bool,
    reverse: bool,
    batch_first: bool,
    packed: bool,
    need_dx: bool = False,
    projected: bool = False,
    given: tuple[bool, ...] = (),
    need_d_states: bool = False,
) -> int:
    """How a layer is called in training, as one number for the ops.

    Args:
        gru, biases, reverse, batch_first, packed: of the layer and its input.
        need_dx: whether backward returns dx.
        projected: whether the layer has w_hr.
        given: whether the gradients of y, h and c are given; the others are zeros.
        need_d_states: whether backward returns the gradients of the initial states.
    """
    number = gru | biases << 1 | reverse << 2 | batch_first << 3 | packed << 4 | need_dx << 5
    number |= projected << 6 | need_d_states << 10
    for place, flag in enumerate(given):
        number |= flag << 7 + place
    return number


def enable(torch_library: str, choose: Callable[[StackCall], bool]) -> str | None:
    """Gives the ops, whose :data:`SCHEMAS` must be defined, their kernels.

    Args:
        torch_library: path of a library that contains, or depends on, libtorch_cpu.
        choose: says whether the native CPU library should run a call; see :func:`forget_choices`.

    Returns:
        Why the ops cannot be used; None if they can.
    """
    global _library  # noqa: PLW0603
    if os.environ.get("FASTRNN_STACK") == "0":
        return "FASTRNN_STACK=0 is set in the environment"
    if (error := cpu.load_error()) is not None:
        return error
    library, error = open_library(_LIBRARY, "the native library of stacks", _REMEDY)
    if library is None:
        return error
    if not hasattr(library, "fastrnn_torch_ops"):
        return f"{library_path(_LIBRARY)} is older than this fastrnn; reinstall fastrnn"
    library.fastrnn_torch_functions.restype = ctypes.c_char_p
    names = library.fastrnn_torch_functions().decode().split()
    torch = ctypes.CDLL(torch_library)
    missing = [name for name in names if not hasattr(torch, name)]
    if missing:
        return f"this torch lacks {', '.join(missing)}"

    @_Choose
    def answer(call: Any) -> int:
        fields = call.contents
        try:
            return choose(StackCall(*(getattr(fields, name) for name in StackCall._fields)))
        except Exception:  # exceptions cannot pass through C; the path through Python raises it
            return 0

    functions = (ctypes.c_void_p * len(names))(*[_address(getattr(torch, name)) for name in names])
    cpu_functions = _CpuFunctions(*[_address(cpu.function(name)) for name in _CPU_FUNCTIONS])
    if (
        library.fastrnn_torch_bind(functions, ctypes.byref(cpu_functions), answer)
        or library.fastrnn_torch_register()
    ):
        return "torch refuses the ops' kernels"
    _kept.extend((torch, answer))
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: library.fastrnn_torch_limit_threads(1))
    _library = library
    return None


def _address(function: Any) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address


def forget_choices() -> None:
    """Makes the ops choose again; call it after changing what the choice depends on."""
    if _library is not None:
        _library.fastrnn_torch_forget()

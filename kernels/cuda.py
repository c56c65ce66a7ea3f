"""The native CUDA library: layers in CUDA C++ on NVIDIA GPUs.

The library (``csrc/cuda/``) runs the time loop. torch projects a wide input and computes the
gradients that are products over all rows. Calls only queue work on the device's current stream,
without waiting for it, so they can be captured in CUDA graphs.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn.kernels.contract import Backward, Cell, Forward
from fastrnn.kernels.layout import Rows
from fastrnn.kernels.library import (
    ForwardArrays,
    address,
    addresses,
    library_path,
    open_library,
    pair,
    structure,
)
from fastrnn.kernels.products import input_and_weight_gradients, product, tf32

DTYPES = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3}
NARROW = 4  # a step projects an input of up to this many features itself
_LIBRARY = "fastrnn_cuda"
_REMEDY = "install CUDA 12.8 or later with nvcc and reinstall fastrnn"


class _Problem(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int32) for name in ("cell", "dtype", "reverse", "tf32")],
        *[(name, ctypes.c_int64) for name in ("steps", "batch", "hidden_size", "input_size")],
        *[(name, ctypes.c_void_p) for name in ("offsets", "lengths")],
    ]


_BackwardArrays = structure(
    "_BackwardArrays", "dy dh_n dc_n w_hh_t h0 y c0 cells gates dgates dh0 dc0"
)


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    library, error = open_library(_LIBRARY, "the native CUDA library", _REMEDY)
    if library is None:
        return None, error
    for name, arrays in (("forward", ForwardArrays), ("backward", _BackwardArrays)):
        function = getattr(library, f"fastrnn_cuda_{name}")
        pointers = [ctypes.POINTER(_Problem), ctypes.POINTER(arrays), ctypes.c_void_p]
        function.argtypes = [*pointers, ctypes.c_int, ctypes.c_void_p]
    size = ctypes.POINTER(ctypes.c_int64)
    library.fastrnn_cuda_scratch.argtypes = [
        *(ctypes.POINTER(_Problem), ctypes.c_int, ctypes.c_int, size)
    ]
    for name in ("architectures", "error_string"):
        getattr(library, f"fastrnn_cuda_{name}").restype = ctypes.c_char_p
    return library, None


def load_error() -> str | None:
    """Why the library cannot be used, with the remedy; None if it can."""
    return _load()[1]


def _library() -> ctypes.CDLL:
    library, error = _load()
    if library is None:
        raise RuntimeError(error)
    return library


def _message(library: ctypes.CDLL, error: int) -> str:
    return library.fastrnn_cuda_error_string(error).decode()


def device_error(device: int = 0) -> str | None:
    """Why the kernels cannot run on a device of this machine; None if they can."""
    library, error = _load()
    if library is None:
        return error
    if torch.version.hip is not None:
        return "the CUDA library is for NVIDIA GPUs; Triton's kernels run on AMD's"
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    if code := library.fastrnn_cuda_check(device):
        return f"the CUDA runtime reports: {_message(library, code)}"
    return None


def info() -> dict[str, Any]:
    """The library's path and what it was compiled for; empty if it is not built."""
    library, _ = _load()
    if library is None:
        return {}
    return {
        "path": os.fspath(library_path(_LIBRARY)),
        "architectures": library.fastrnn_cuda_architectures().decode(),
    }


def _call(
    name: str, cell: Cell, rows: Rows, x: Tensor, h0: Tensor, input_size: int, reverse: bool,
    arrays: ctypes.Structure,
) -> None:  # fmt: skip
    """Queues every step on the current stream of x's device; raises RuntimeError on failure."""
    library = _library()
    hidden_size = h0.shape[1]
    offsets = None if rows.offsets is None else rows.offsets[5:]  # those of steps before the first
    problem = _Problem(
        cell.code, DTYPES[x.dtype], reverse, tf32(), rows.steps, rows.batch, hidden_size,
        input_size, address(offsets), address(rows.lengths),
    )  # fmt: skip
    device, stream = 0, None
    if x.is_cuda:
        device, stream = x.device.index, torch.cuda.current_stream(x.device).cuda_stream
    size = ctypes.c_int64()
    error = library.fastrnn_cuda_scratch(problem, name == "backward", device, size)
    if not error:
        scratch = torch.empty(size.value, dtype=torch.uint8, device=x.device)
        function = getattr(library, f"fastrnn_cuda_{name}")
        error = function(problem, arrays, scratch.data_ptr(), device, stream)
    if error:
        size_of_call = f"T {rows.steps}, B {rows.batch}, H {hidden_size}, {x.dtype}"
        message = f"{_message(library, error)} ({size_of_call})"
        raise RuntimeError(f"fastrnn_cuda_{name} on {x.device}: {message}")


def forward(
    cell: Cell,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    batch_sizes: Tensor | None,
    reverse: bool,
    save: bool,
) -> Forward:
    """Runs a layer; see :class:`~fastrnn.kernels.contract.KernelModule`."""
    w_ih, h0 = weights[0], states[0]
    assert w_ih is not None
    (n, input_size), (batch, hidden_size) = x.shape, h0.shape
    rows = Rows.of(x, batch, batch_sizes)
    if input_size > NARROW:
        x, input_size = product(x, w_ih.t()), 0
    y = x.new_empty(n, hidden_size)
    final = tuple(torch.empty_like(state) for state in states)
    saved = tuple(x.new_empty((n, k * hidden_size) if save else 0) for k in cell.saved_widths)
    arrays = ForwardArrays(*addresses(x, *pair(states), *weights, y, *pair(final), *pair(saved)))
    _call("forward", cell, rows, x, h0, input_size, reverse, arrays)
    return y, final, saved


def backward(
    cell: Cell,
    dy: Tensor | None,
    d_final: Sequence[Tensor],
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    y: Tensor,
    saved: Sequence[Tensor],
    batch_sizes: Tensor | None,
    reverse: bool,
    need_dx: bool,
    need_d_states: bool,
) -> Backward:
    """Computes a layer's gradients; see :class:`~fastrnn.kernels.contract.KernelModule`."""
    (w_ih, w_hh), (h0, c0), (gates, cells) = weights, pair(states), pair(saved)
    rows = Rows.of(x, h0.shape[0], batch_sizes)
    dgates = torch.empty_like(gates)
    d_states = tuple(torch.empty_like(state) for state in states)
    w_hh_t = w_hh.t().contiguous()
    # An LSTM's step reads the cell state before it, a GRU's the h before it.
    before = (None, None, c0, cells) if cell.states == 2 else (h0, y, None, None)
    arrays = _BackwardArrays(
        *addresses(dy, *pair(d_final), w_hh_t, *before, gates, dgates, *pair(d_states))
    )
    _call("backward", cell, rows, x, h0, 0, reverse, arrays)
    dx, d_weights = input_and_weight_gradients(cell, rows, dgates, x, h0, y, w_ih, reverse, need_dx)
    return dx, d_states if need_d_states else (), d_weights

"""The native CUDA library: one layer in one direction on an NVIDIA GPU, called through ctypes.

The library (``csrc/cuda/``) holds the time loop; a wide input's projection and the gradients that
are products over all rows are torch's. Work is queued on the device's current stream and nothing
waits for it, so calls can be captured in CUDA graphs. Arguments and results of the four functions
are those of :mod:`fastrnn.kernels.reference`.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any

import torch
from torch import Tensor

from fastrnn.kernels import native
from fastrnn.kernels.rows import Rows, product, tf32

DTYPES = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3}
NARROW = 4  # features that a step projects itself
_LSTM, _GRU = 0, 1
_REMEDY = "install CUDA 12.8 or later with nvcc and reinstall fastrnn"


class _Problem(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int32) for name in ("cell", "dtype", "reverse", "tf32")],
        *[(name, ctypes.c_int64) for name in ("steps", "batch", "hidden_size", "input_size")],
        *[(name, ctypes.c_void_p) for name in ("offsets", "lengths")],
    ]


_Backward = native.structure("_Backward", "dy dh_n dc_n w_hh_t h0 y c0 cells gates dgates dh0 dc0")


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    path = native.library_path("fastrnn_cuda")
    library, error = native.open_library(path, "the native CUDA library", _REMEDY)
    if library is None:
        return None, error
    for name, arrays in (("forward", native.Forward), ("backward", _Backward)):
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
    if code := library.fastrnn_cuda_check(device):
        return f"the CUDA runtime says: {_message(library, code)}"
    return None


def info() -> dict[str, Any]:
    """The library's path and what it was compiled for; empty if it is not built."""
    library, _ = _load()
    if library is None:
        return {}
    return {
        "path": os.fspath(native.library_path("fastrnn_cuda")),
        "architectures": library.fastrnn_cuda_architectures().decode(),
    }


def _call(
    name: str, cell: int, rows: Rows, x: Tensor, h0: Tensor, input_size: int, reverse: bool,
    arrays: ctypes.Structure,
) -> None:  # fmt: skip
    """Queue every step on the current stream of x's device; RuntimeError if that fails."""
    library = _library()
    hidden_size = h0.shape[1]
    offsets = None if rows.offsets is None else rows.offsets[5:]  # those of steps before the first
    problem = _Problem(
        cell, DTYPES[x.dtype], reverse, tf32(), rows.steps, rows.batch, hidden_size, input_size,
        **native.addresses(offsets=offsets, lengths=rows.lengths),
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


def _forward(
    cell: int, x: Tensor, h0: Tensor, c0: Tensor | None, w_ih: Tensor, w_hh: Tensor,
    b_ih: Tensor | None, b_hh: Tensor | None, batch_sizes: Tensor | None, reverse: bool, save: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:  # fmt: skip
    """y, h_n, c_n, gates and cells; c_n is None and cells empty without c0."""
    (n, input_size), (batch, hidden_size) = x.shape, h0.shape
    rows = Rows.of(x, batch, batch_sizes)
    if input_size > NARROW:
        x, input_size = product(x, w_ih.t()), 0
    y = x.new_empty(n, hidden_size)
    h_n = torch.empty_like(h0)
    c_n = None if c0 is None else torch.empty_like(c0)
    gates = x.new_empty((n, 4 * hidden_size) if save else 0)
    cells = x.new_empty((n, hidden_size) if save and c0 is not None else 0)
    addresses = native.addresses(
        x=x, h0=h0, c0=c0, w_ih=w_ih, w_hh=w_hh, b_ih=b_ih, b_hh=b_hh, y=y, h_n=h_n, c_n=c_n,
        gates=gates, cells=cells,
    )  # fmt: skip
    _call("forward", cell, rows, x, h0, input_size, reverse, native.Forward(**addresses))
    return y, h_n, c_n, gates, cells


def lstm_forward(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    batch_sizes: Tensor | None,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One LSTM layer in one direction; returns y, h_n, c_n, gates, cells."""
    y, h_n, c_n, gates, cells = _forward(
        _LSTM, x, h0, c0, w_ih, w_hh, b_ih, b_hh, batch_sizes, reverse, save
    )
    assert c_n is not None
    return y, h_n, c_n, gates, cells


def lstm_backward(
    dy: Tensor | None,
    dh_n: Tensor,
    dc_n: Tensor,
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    y: Tensor,
    gates: Tensor,
    cells: Tensor,
    batch_sizes: Tensor | None,
    reverse: bool,
    need_dx: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of :func:`lstm_forward`: dx, dh0, dc0, dw_ih, dw_hh, db."""
    rows = Rows.of(x, h0.shape[0], batch_sizes)
    dgates, dh0, dc0 = torch.empty_like(gates), torch.empty_like(h0), torch.empty_like(c0)
    w_hh_t = w_hh.t().contiguous()
    addresses = native.addresses(
        dy=dy, dh_n=dh_n, dc_n=dc_n, w_hh_t=w_hh_t, c0=c0, cells=cells, gates=gates,
        dgates=dgates, dh0=dh0, dc0=dc0,
    )  # fmt: skip
    _call("backward", _LSTM, rows, x, h0, 0, reverse, _Backward(**addresses))
    dx, dw_ih, dw_hh, db = rows.lstm_gradients(dgates, x, h0, y, w_ih, reverse, need_dx)
    return dx, dh0, dc0, dw_ih, dw_hh, db


def gru_forward(
    x: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    batch_sizes: Tensor | None,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """One GRU layer in one direction; returns y, h_n, gates."""
    y, h_n, _, gates, _ = _forward(
        _GRU, x, h0, None, w_ih, w_hh, b_ih, b_hh, batch_sizes, reverse, save
    )
    return y, h_n, gates


def gru_backward(
    dy: Tensor | None,
    dh_n: Tensor,
    x: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    y: Tensor,
    gates: Tensor,
    batch_sizes: Tensor | None,
    reverse: bool,
    need_dx: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of :func:`gru_forward`: dx, dh0, dw_ih, dw_hh, db_ih, db_hh."""
    rows = Rows.of(x, h0.shape[0], batch_sizes)
    dgates, dh0 = torch.empty_like(gates), torch.empty_like(h0)
    w_hh_t = w_hh.t().contiguous()
    addresses = native.addresses(
        dy=dy, dh_n=dh_n, w_hh_t=w_hh_t, h0=h0, y=y, gates=gates, dgates=dgates, dh0=dh0
    )
    _call("backward", _GRU, rows, x, h0, 0, reverse, _Backward(**addresses))
    dx, dw_ih, dw_hh, db_ih, db_hh = rows.gru_gradients(dgates, x, h0, y, w_ih, reverse, need_dx)
    return dx, dh0, dw_ih, dw_hh, db_ih, db_hh

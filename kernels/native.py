"""The native CPU library: found, loaded and called through ctypes on torch tensors.

The library (``csrc/``) knows neither Python nor torch; this module owns the translation. Its four
functions follow the contract that all backends share (shapes in :mod:`fastrnn.kernels.reference`).
ctypes releases the interpreter lock while a kernel runs.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastrnn.kernels import memory

ABI_VERSION = 2
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
_LSTM, _GRU = 0, 1
_REMEDY = (
    "install a C++17 compiler and reinstall fastrnn "
    "(FASTRNN_REQUIRE_NATIVE=1 makes the install fail with the compiler's message)"
)


class _Problem(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int32) for name in ("cell", "dtype", "reverse", "threads")],
        *[(name, ctypes.c_int64) for name in ("steps", "batch", "input_size", "hidden_size")],
        ("batch_sizes", ctypes.c_void_p),
    ]


def structure(name: str, fields: str) -> type[ctypes.Structure]:
    """A structure of pointers, from their names."""
    pointers = [(field, ctypes.c_void_p) for field in fields.split()]
    return type(name, (ctypes.Structure,), {"_fields_": pointers})


Forward = structure("Forward", "x h0 c0 w_ih w_hh b_ih b_hh y h_n c_n gates cells")
_Backward = structure(
    "_Backward",
    "dy dh_n dc_n x h0 c0 w_ih w_hh y gates cells dx dh0 dc0 dw_ih dw_hh db_ih db_hh",
)


def library_path(library: str = "fastrnn_cpu") -> Path:
    """Where the build puts a library."""
    suffix = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")
    # Resolved from the package, not from this file: `kernels/` is mapped into it from elsewhere.
    import fastrnn

    return Path(fastrnn.__file__).parent / "_native" / f"lib{library}.{suffix}"


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    library, error = open_library(library_path(), "the native CPU library", _REMEDY)
    if library is None:
        return None, error
    for name, arrays in (("forward", Forward), ("backward", _Backward)):
        function = getattr(library, f"fastrnn_cpu_{name}")
        function.argtypes = [ctypes.POINTER(_Problem), ctypes.POINTER(arrays)]
        function.restype = ctypes.c_int
    for name in ("cpu_level", "cpu_levels", "error_string"):
        getattr(library, f"fastrnn_{name}").restype = ctypes.c_char_p
    library.fastrnn_cpu_select_level.argtypes = [ctypes.c_char_p]
    return library, None


def open_library(path: Path, name: str, remedy: str) -> tuple[ctypes.CDLL | None, str | None]:
    """A library that its build may have left out; or why it cannot be used, and the remedy."""
    if not path.exists():
        return None, f"{name} is not built: {remedy}{_why_not_built(path)}"
    try:
        library = ctypes.CDLL(os.fspath(path))
    except OSError as error:
        return None, f"{path} does not load: {error}; reinstall fastrnn"
    found = library.fastrnn_abi_version()
    if found != ABI_VERSION:
        return None, f"{path} has ABI {found}, this fastrnn needs {ABI_VERSION}; reinstall fastrnn"
    return library, None


def _why_not_built(path: Path) -> str:
    """What the build recorded, if it did."""
    facts, library = path.with_name("build.json"), path.stem.removeprefix("lib")
    try:
        reason = json.loads(facts.read_text())[library].get("reason")
    except (OSError, ValueError, KeyError):
        return ""
    return f"; the build said: {reason}" if reason else ""


def load_error() -> str | None:
    """Why the library cannot be used, with the remedy; None if it can."""
    return _load()[1]


def _library() -> ctypes.CDLL:
    library, error = _load()
    if library is None:
        raise RuntimeError(error)
    return library


def info() -> dict[str, Any]:
    """The library's path, the instruction set in use and those that this processor could use."""
    library, error = _load()
    if library is None:
        return {"error": error}
    return {
        "path": os.fspath(library_path()),
        "level": library.fastrnn_cpu_level().decode(),
        "levels": library.fastrnn_cpu_levels().decode().split(),
    }


def select_level(level: str) -> None:
    """Makes the whole process use one of ``info()["levels"]``; for tests and comparisons."""
    library = _library()
    if library.fastrnn_cpu_select_level(level.encode()):
        levels = ", ".join(info()["levels"])
        raise ValueError(f"instruction set {level!r} is not available here; there are: {levels}")


def _call(
    name: str,
    cell: int,
    reverse: bool,
    x: Tensor,
    h0: Tensor,
    batch_sizes: Tensor | None,
    arrays: ctypes.Structure,
) -> None:
    batch, hidden_size = h0.shape
    rows, input_size = x.shape
    if batch_sizes is None:
        steps = rows // batch if batch else 0
    else:
        steps = batch_sizes.shape[0]
    problem = _Problem(
        cell,
        DTYPES[x.dtype],
        reverse,
        torch.get_num_threads(),
        steps,
        batch,
        input_size,
        hidden_size,
        None if batch_sizes is None else batch_sizes.data_ptr(),
    )
    call(name, problem, arrays, steps, batch, input_size, hidden_size, x.dtype)


def call(name: str, problem: ctypes.Structure, arrays: ctypes.Structure, *size: object) -> None:
    """Calls ``fastrnn_cpu_<name>``; RuntimeError with ``size`` if it fails or there is none."""
    library = _library()
    function = getattr(library, f"fastrnn_cpu_{name}")
    if error := function(ctypes.byref(problem), ctypes.byref(arrays)):
        message = library.fastrnn_error_string(error).decode()
        raise RuntimeError(f"fastrnn_cpu_{name}: {message} (T, B, I, H, dtype: {size})")


def addresses(**tensors: Tensor | None) -> dict[str, int | None]:
    """Addresses by field; the tensors must outlive the call. An empty tensor counts as none."""
    return {
        name: None if tensor is None or tensor.numel() == 0 else tensor.data_ptr()
        for name, tensor in tensors.items()
    }


def _rows(x: Tensor, width: int) -> Tensor:
    """Room for `width` values for each row of x."""
    return memory.empty((x.shape[0], width), x)


def _saved(x: Tensor, save: bool, width: int) -> Tensor:
    return _rows(x, width) if save else x.new_empty(0)


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
    hidden_size = h0.shape[1]
    y = _rows(x, hidden_size)
    h_n, c_n = torch.empty_like(h0), torch.empty_like(c0)
    gates, cells = _saved(x, save, 4 * hidden_size), _saved(x, save, hidden_size)
    pointers = addresses(
        x=x, h0=h0, c0=c0, w_ih=w_ih, w_hh=w_hh, b_ih=b_ih, b_hh=b_hh,
        y=y, h_n=h_n, c_n=c_n, gates=gates, cells=cells,
    )  # fmt: skip
    _call("forward", _LSTM, reverse, x, h0, batch_sizes, Forward(**pointers))
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
    dx = _saved(x, need_dx, x.shape[1])
    dh0, dc0 = torch.empty_like(h0), torch.empty_like(c0)
    weights = _weight_gradients(h0, w_ih, w_hh, 1)
    dw_ih, dw_hh, db = weights
    pointers = addresses(
        dy=dy, dh_n=dh_n, dc_n=dc_n, x=x, h0=h0, c0=c0, w_ih=w_ih, w_hh=w_hh, y=y, gates=gates,
        cells=cells, dx=dx, dh0=dh0, dc0=dc0, dw_ih=dw_ih, dw_hh=dw_hh, db_ih=db,
    )  # fmt: skip
    _call("backward", _LSTM, reverse, x, h0, batch_sizes, _Backward(**pointers))
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
    hidden_size = h0.shape[1]
    y = _rows(x, hidden_size)
    h_n = torch.empty_like(h0)
    gates = _saved(x, save, 4 * hidden_size)
    pointers = addresses(
        x=x, h0=h0, w_ih=w_ih, w_hh=w_hh, b_ih=b_ih, b_hh=b_hh, y=y, h_n=h_n, gates=gates
    )
    _call("forward", _GRU, reverse, x, h0, batch_sizes, Forward(**pointers))
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
    dx = _saved(x, need_dx, x.shape[1])
    dh0 = torch.empty_like(h0)
    dw_ih, dw_hh, db_ih, db_hh = _weight_gradients(h0, w_ih, w_hh, 2)
    pointers = addresses(
        dy=dy, dh_n=dh_n, x=x, h0=h0, w_ih=w_ih, w_hh=w_hh, y=y, gates=gates,
        dx=dx, dh0=dh0, dw_ih=dw_ih, dw_hh=dw_hh, db_ih=db_ih, db_hh=db_hh,
    )  # fmt: skip
    _call("backward", _GRU, reverse, x, h0, batch_sizes, _Backward(**pointers))
    return dx, dh0, dw_ih, dw_hh, db_ih, db_hh


def _weight_gradients(h0: Tensor, w_ih: Tensor, w_hh: Tensor, biases: int) -> tuple[Tensor, ...]:
    """Room for the gradients of both weights and of the biases; zeros where no row adds to them."""
    new = torch.empty_like if h0.shape[0] else torch.zeros_like
    return (new(w_ih), new(w_hh), *(new(w_ih[:, 0]) for _ in range(biases)))

"""The native CPU library: layers in C++, vectorised for three instruction sets."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn.kernels import cpu_pool
from fastrnn.kernels.contract import Backward, Cell, Forward
from fastrnn.kernels.library import (
    ForwardArrays,
    addresses,
    library_path,
    open_library,
    pair,
    structure,
)

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
_LIBRARY = "fastrnn_cpu"
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


_BackwardArrays = structure(
    "_BackwardArrays",
    "dy dh_n dc_n x h0 c0 w_ih w_hh y gates cells dx dh0 dc0 dw_ih dw_hh db_ih db_hh",
)


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    library, error = open_library(_LIBRARY, "the native CPU library", _REMEDY)
    if library is None:
        return None, error
    for name, arrays in (("forward", ForwardArrays), ("backward", _BackwardArrays)):
        function = getattr(library, f"fastrnn_cpu_{name}")
        function.argtypes = [ctypes.POINTER(_Problem), ctypes.POINTER(arrays)]
        function.restype = ctypes.c_int
    if not hasattr(library, "fastrnn_cpu_backward_projected"):
        return None, f"{library_path(_LIBRARY)} is older than this fastrnn; reinstall fastrnn"
    pointers = [ctypes.POINTER(_Problem), ctypes.POINTER(ForwardArrays), ctypes.c_void_p]
    library.fastrnn_cpu_prepack.argtypes = pointers
    library.fastrnn_cpu_prepacked_bytes.argtypes = [ctypes.POINTER(_Problem)]
    library.fastrnn_cpu_prepacked_bytes.restype = ctypes.c_int64
    for name in ("cpu_level", "cpu_levels", "error_string"):
        getattr(library, f"fastrnn_{name}").restype = ctypes.c_char_p
    library.fastrnn_cpu_select_level.argtypes = [ctypes.c_char_p]
    return library, None


def load_error() -> str | None:
    """Why the library cannot be used, with the remedy; None if it can."""
    return _load()[1]


def _library() -> ctypes.CDLL:
    library, error = _load()
    if library is None:
        raise RuntimeError(error)
    return library


def function(name: str) -> Any:
    """``fastrnn_cpu_<name>``, for other native code to call.

    Raises:
        RuntimeError: there is no library.
    """
    return getattr(_library(), f"fastrnn_cpu_{name}")


def info() -> dict[str, Any]:
    """The library's path, the instruction set in use, and those that this processor could use.

    Empty if the library cannot be used.
    """
    library, _ = _load()
    if library is None:
        return {}
    return {
        "path": os.fspath(library_path(_LIBRARY)),
        "level": library.fastrnn_cpu_level().decode(),
        "levels": library.fastrnn_cpu_levels().decode().split(),
    }


def multiplies_pairs() -> bool:
    """Whether the kernels multiply bfloat16 numbers in pairs; False if there is no library."""
    library, _ = _load()
    return library is not None and library.fastrnn_cpu_level() == b"avx512_bf16"


def select_level(level: str) -> None:
    """Makes the whole process use one of ``info()["levels"]``; for tests and comparisons.

    Raises:
        ValueError: the processor or the build lacks this instruction set.
    """
    library = _library()
    if library.fastrnn_cpu_select_level(level.encode()):
        levels = ", ".join(info()["levels"])
        raise ValueError(f"instruction set {level!r} is not available here; there are: {levels}")


def call(name: str, problem: ctypes.Structure, arrays: ctypes.Structure, *size: object) -> None:
    """Calls ``fastrnn_cpu_<name>``.

    Raises:
        RuntimeError: the call fails, or there is no library; the message contains ``size``.
    """
    library = _library()
    function = getattr(library, f"fastrnn_cpu_{name}")
    if error := function(ctypes.byref(problem), ctypes.byref(arrays)):
        message = library.fastrnn_error_string(error).decode()
        raise RuntimeError(f"fastrnn_cpu_{name}: {message} (T, B, I, H, dtype: {size})")


def _call_layer(
    name: str,
    cell: Cell,
    x: Tensor,
    h0: Tensor,
    batch_sizes: Tensor | None,
    reverse: bool,
    arrays: ctypes.Structure,
) -> None:
    (rows, input_size), (batch, hidden_size) = x.shape, h0.shape
    if batch_sizes is None:
        steps = rows // batch if batch else 0
    else:
        steps = batch_sizes.shape[0]
    problem = _Problem(
        cell.code, DTYPES[x.dtype], reverse, threads(), steps, batch, input_size,
        hidden_size, None if batch_sizes is None else batch_sizes.data_ptr(),
    )  # fmt: skip
    call(name, problem, arrays, steps, batch, input_size, hidden_size, x.dtype)


def prepack(cell: Cell, sets: Sequence[Sequence[Tensor | None]]) -> Tensor:
    """Weights as the kernels of the instruction set in use read them, for the ops of frozen layers.

    Args:
        cell: of the layers.
        sets: w_ih [G*H, I], w_hh [G*H, H], b_ih and b_hh [G*H] of each layer and direction, all
            contiguous and of one of :data:`DTYPES`; both biases may be None.

    Returns:
        uint8 [bytes], which only this process can use.

    Raises:
        RuntimeError: there is no library.
    """
    library = _library()
    problems, arrays = [], []
    for w_ih, w_hh, b_ih, b_hh in sets:
        assert w_ih is not None
        assert w_hh is not None
        problem = _Problem(cell.code, DTYPES[w_ih.dtype], threads=1)
        problem.input_size, problem.hidden_size = w_ih.shape[1], w_hh.shape[1]
        problems.append(problem)
        arrays.append(ForwardArrays(None, None, None, *addresses(w_ih, w_hh, b_ih, b_hh)))
    sizes = [library.fastrnn_cpu_prepacked_bytes(ctypes.byref(problem)) for problem in problems]
    packed = torch.empty(sum(sizes), dtype=torch.uint8, device="cpu")
    at = packed.data_ptr()
    for problem, weights, size in zip(problems, arrays, sizes, strict=True):
        if error := library.fastrnn_cpu_prepack(ctypes.byref(problem), ctypes.byref(weights), at):
            raise RuntimeError(f"prepack: {library.fastrnn_error_string(error).decode()}")
        at += size
    return packed


_forked = False  # whether this process is a copy of one that may have used threads


def _mark_forked() -> None:
    global _forked  # noqa: PLW0603
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_forked)


def threads() -> int:
    """How many threads a call may use; one in a forked process, where GCC's OpenMP would hang."""
    return 1 if _forked else torch.get_num_threads()


def _rows(x: Tensor, width: int) -> Tensor:
    """An uninitialised tensor with `width` values for each row of x."""
    return cpu_pool.empty((x.shape[0], width), x)


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
    hidden_size = states[0].shape[1]
    y = _rows(x, hidden_size)
    final = tuple([torch.empty_like(state) for state in states])
    saved = tuple(
        [_rows(x, k * hidden_size) if save else x.new_empty(0) for k in cell.saved_widths]
    )
    arrays = ForwardArrays(*addresses(x, *pair(states), *weights, y, *pair(final), *pair(saved)))
    _call_layer("forward", cell, x, states[0], batch_sizes, reverse, arrays)
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
    w_ih, w_hh = weights
    dx = _rows(x, x.shape[1]) if need_dx else x.new_empty(0)
    d_states = tuple([torch.empty_like(state) for state in states if need_d_states])
    new = torch.empty_like if states[0].shape[0] else torch.zeros_like  # zeros for an empty batch
    d_bias = [new(w_ih[:, 0]) for _ in range(cell.bias_gradients)]
    d_weights = (new(w_ih), new(w_hh), *d_bias)
    arrays = _BackwardArrays(
        *addresses(
            dy, *pair(d_final), x, *pair(states), w_ih, w_hh, y, *pair(saved),
            dx, *(pair(d_states) if need_d_states else (None, None)), *d_weights,
        )
    )  # fmt: skip
    _call_layer("backward", cell, x, states[0], batch_sizes, reverse, arrays)
    return dx, d_states, d_weights

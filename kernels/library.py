"""Finding and loading the native libraries, and handing them tensors, through ctypes.

The libraries (``csrc/``) know neither Python nor torch. ctypes releases the interpreter lock while
a kernel runs.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

ABI_VERSION = 2
FOLDER = Path(__file__).parent / "_native"  # where the build puts the libraries


def library_path(library: str) -> Path:
    """The file of a library, ``fastrnn_cpu`` or ``fastrnn_cuda``; it need not exist."""
    suffix = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")
    return FOLDER / f"lib{library}.{suffix}"


def open_library(library: str, name: str, remedy: str) -> tuple[ctypes.CDLL | None, str | None]:
    """Opens a library that may not have been built.

    Args:
        library: see :func:`library_path`.
        name: the library's name in messages.
        remedy: what to do if it is not built; part of the message.

    Returns:
        The library and None, or None and why it cannot be used.
    """
    path = library_path(library)
    if not path.exists():
        return None, f"{name} is not built: {remedy}{_why_not_built(path)}"
    try:
        opened = ctypes.CDLL(os.fspath(path))
    except OSError as error:
        return None, f"{path} does not load: {error}; reinstall fastrnn"
    found = opened.fastrnn_abi_version()
    if found != ABI_VERSION:
        return None, f"{path} has ABI {found}, this fastrnn needs {ABI_VERSION}; reinstall fastrnn"
    return opened, None


def _why_not_built(path: Path) -> str:
    """The reason that the build recorded, if any."""
    facts, library = path.with_name("build.json"), path.stem.removeprefix("lib")
    try:
        reason = json.loads(facts.read_text())[library].get("reason")
    except (OSError, ValueError, KeyError):
        return ""
    return f"; the build said: {reason}" if reason else ""


def structure(name: str, fields: str) -> type[ctypes.Structure]:
    """A structure of pointers with these names, separated by spaces."""
    pointers = [(field, ctypes.c_void_p) for field in fields.split()]
    return type(name, (ctypes.Structure,), {"_fields_": pointers})


# fastrnn_forward_arrays, which both libraries take
ForwardArrays = structure("ForwardArrays", "x h0 c0 w_ih w_hh b_ih b_hh y h_n c_n gates cells")


def address(tensor: Tensor | None) -> int | None:
    """A tensor's address; None for no tensor and for an empty one.

    The tensor must outlive the call that gets the address.
    """
    return None if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


def addresses(*tensors: Tensor | None) -> list[int | None]:
    """The address of each tensor, see :func:`address`."""
    return [address(tensor) for tensor in tensors]


def pair(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """One or two tensors as a pair, whose second entry is None if there is only one.

    The native interface has a pointer for an LSTM's cell states, which is null for a GRU.
    """
    return (tensors[0], tensors[1]) if len(tensors) == 2 else (tensors[0], None)

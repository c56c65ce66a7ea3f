"""Layers on GPUs in Triton.

`layer` offers what :class:`fastrnn.kernels.contract.KernelModule` asks for, and `pixels` what
:class:`fastrnn.kernels.contract.PixelLoop` does. This module does not import Triton, so that
`load_error` works where it is not installed.
"""

from __future__ import annotations

import importlib.util

import torch


def load_error() -> str | None:
    """Why the Triton kernels cannot be used on this machine's GPUs; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    if torch.version.hip is not None:
        return None
    if (found := torch.cuda.get_device_capability()) < (8, 0):
        return f"compute capability 8.0 or newer is needed, not {found[0]}.{found[1]}"
    return None

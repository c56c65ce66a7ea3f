"""The native CPU library's loop over binary pixels."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from fastrnn.kernels import cpu
from fastrnn.kernels.contract import Cell
from fastrnn.kernels.library import address, structure

DTYPES = (torch.float32,)


class _Problem(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int32) for name in ("cell", "layers", "threads")],
        *[(name, ctypes.c_int64) for name in ("steps", "batch", "hidden_size")],
        ("lengths", ctypes.c_void_p),
    ]


_Arrays = structure("_Arrays", "weights head_weight head_bias h c logit thresholds pixels logits")


def fits(hidden_size: int, layers: int) -> bool:
    """Whether the loop can run a model of this size: always."""
    return True


def run(
    cell: Cell,
    weights: Sequence[Tensor],
    head_weight: Tensor,
    head_bias: Tensor,
    h: Tensor,
    c: Tensor | None,
    logit: Tensor,
    pixels: Tensor,
    lengths: Tensor | None,
    thresholds: Tensor | None,
) -> Tensor:
    """Reads or draws pixels; see :class:`~fastrnn.kernels.contract.PixelLoop`."""
    batch, steps = pixels.shape
    layers, _, hidden_size = h.shape
    logits = h.new_zeros(batch, steps)
    weights = [w.contiguous() for w in weights]
    pointers = (ctypes.c_void_p * len(weights))(*(w.data_ptr() for w in weights))
    head_weight = head_weight.contiguous()
    arrays = _Arrays(
        ctypes.cast(pointers, ctypes.c_void_p), head_weight.data_ptr(), head_bias.data_ptr(),
        h.data_ptr(), address(c), logit.data_ptr(), address(thresholds), pixels.data_ptr(),
        logits.data_ptr(),
    )  # fmt: skip
    problem = _Problem(
        cell.code, layers, torch.get_num_threads(), steps, batch, hidden_size, address(lengths)
    )
    cpu.call("pixels", problem, arrays, steps, batch, 1, hidden_size, h.dtype)
    return logits

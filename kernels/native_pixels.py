"""The native CPU library's loop over binary pixels, called through ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from fastrnn.kernels import native

CELLS = {"LSTM": 0, "GRU": 1}


class _Problem(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int32) for name in ("cell", "layers", "threads")],
        *[(name, ctypes.c_int64) for name in ("steps", "batch", "hidden_size")],
        ("lengths", ctypes.c_void_p),
    ]


_Arrays = native.structure(
    "_Arrays", "weights head_weight head_bias h c logit thresholds pixels logits"
)


def run(
    cell: str,
    weights: Sequence[Tensor],  # of each layer w_ih, w_hh, b_ih, b_hh
    head_weight: Tensor,  # [1, H]
    head_bias: Tensor,  # [1]
    h: Tensor,  # [L, B, H]: in, the states before; out, those after
    c: Tensor | None,  # [L, B, H], for LSTM
    logit: Tensor,  # [B]: in, of the first pixel; out, of the one after the last
    pixels: Tensor,  # [B, T] uint8, 0 or 1
    lengths: Tensor | None,  # [B] int64, non-increasing, 0 to T; None: all T
    thresholds: Tensor | None,  # [B, T]: pixels become 1 where their logit is above it
) -> Tensor:
    """Reads or draws pixels; returns the logits [B, T] of the pixel after each, 0 beyond lengths.

    float32, contiguous, on CPU. h, c, logit and, with thresholds, pixels are written in place.
    """
    batch, steps = pixels.shape
    layers, _, hidden_size = h.shape
    logits = h.new_zeros(batch, steps)
    weights = [w.contiguous() for w in weights]
    pointers = (ctypes.c_void_p * len(weights))(*(w.data_ptr() for w in weights))
    head_weight = head_weight.contiguous()
    arrays = _Arrays(
        ctypes.cast(pointers, ctypes.c_void_p),
        head_weight.data_ptr(),
        head_bias.data_ptr(),
        h.data_ptr(),
        None if c is None else c.data_ptr(),
        logit.data_ptr(),
        None if thresholds is None else thresholds.data_ptr(),
        pixels.data_ptr(),
        logits.data_ptr(),
    )
    problem = _Problem(
        CELLS[cell],
        layers,
        torch.get_num_threads(),
        steps,
        batch,
        hidden_size,
        None if lengths is None else lengths.data_ptr(),
    )
    native.call("pixels", problem, arrays, steps, batch, 1, hidden_size, h.dtype)
    return logits

"""The native CPU library's loop over binary pixels."""

from __future__ import annotations

import ctypes
import functools
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


def check(
    cell: Cell, weights: Sequence[Tensor], h: Tensor, pixels: Tensor, **others: Tensor | None
) -> None:
    """Raises RuntimeError unless all tensors are what :func:`run` hands to C++."""
    if h.dim() != 3 or pixels.dim() != 2:
        raise RuntimeError(
            f"h and pixels: {tuple(h.shape)} and {tuple(pixels.shape)} given, [L, B, H] and [B, T] "
            "expected"
        )
    (layers, batch, hidden_size), steps = h.shape, pixels.shape[1]
    if len(weights) != 4 * layers:
        raise RuntimeError(
            f"weights: {len(weights)} given, four for each of {layers} layers expected"
        )
    if (others["c"] is not None) != (cell.states == 2):
        given, wanted = ("none", "one") if others["c"] is None else ("one", "none")
        raise RuntimeError(f"c: {given} given, {wanted} expected for {cell.name}")
    shapes = _weight_shapes(cell, layers, hidden_size)
    for index, (weight, shape) in enumerate(zip(weights, shapes, strict=True)):
        if weight.shape != shape or weight.dtype is not torch.float32 or not weight.is_cpu:
            raise _mismatch(f"weights[{index}]", weight, shape, torch.float32)
    for name, shape, dtype in (
        ("h", h.shape, torch.float32),
        ("c", h.shape, torch.float32),
        ("pixels", (batch, steps), torch.uint8),
        ("head_weight", (1, hidden_size), torch.float32),
        ("head_bias", (1,), torch.float32),
        ("logit", (batch,), torch.float32),
        ("lengths", (batch,), torch.int64),
        ("thresholds", (batch, steps), torch.float32),
    ):
        tensor = h if name == "h" else pixels if name == "pixels" else others[name]
        if tensor is not None and not (
            tensor.shape == shape
            and tensor.dtype is dtype
            and tensor.is_cpu
            and tensor.is_contiguous()
        ):
            raise _mismatch(name, tensor, shape, dtype)


@functools.cache
def _weight_shapes(cell: Cell, layers: int, hidden_size: int) -> list[tuple[int, ...]]:
    rows = cell.gates * hidden_size
    return [
        shape
        for layer in range(layers)
        for shape in ((rows, hidden_size if layer else 1), (rows, hidden_size), (rows,), (rows,))
    ]


def _mismatch(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> RuntimeError:
    return RuntimeError(
        f"{name}: {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}, strides "
        f"{tensor.stride()}, given; {dtype} {tuple(shape)} on cpu, contiguous, expected"
    )


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
    """Reads or draws pixels; see :class:`~fastrnn.kernels.contract.PixelLoop`.

    Raises:
        RuntimeError: a tensor is not what the contract says; C++ would read beyond it.
    """
    weights = [w.contiguous() for w in weights]
    check(
        cell, weights, h, pixels, c=c, head_weight=head_weight, head_bias=head_bias, logit=logit,
        lengths=lengths, thresholds=thresholds,
    )  # fmt: skip
    batch, steps = pixels.shape
    layers, _, hidden_size = h.shape
    logits = h.new_zeros(batch, steps)
    pointers = (ctypes.c_void_p * len(weights))(*(w.data_ptr() for w in weights))
    if not all(pointers):
        raise RuntimeError("weights: one without memory given, values expected: load them first")
    arrays = _Arrays(
        ctypes.cast(pointers, ctypes.c_void_p), head_weight.data_ptr(), head_bias.data_ptr(),
        h.data_ptr(), address(c), logit.data_ptr(), address(thresholds), pixels.data_ptr(),
        logits.data_ptr(),
    )  # fmt: skip
    problem = _Problem(
        cell.code, layers, cpu.threads(), steps, batch, hidden_size, address(lengths)
    )
    cpu.call("pixels", problem, arrays, steps, batch, 1, hidden_size, h.dtype)
    return logits

"""Checks of the ops' arguments, so that native code never gets the address of an unfit tensor.

Whatever a traced or exported graph is fed, the worst outcome is an exception.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_OPTIONAL = ("dy", "b_ih", "b_hh")


def check_rows(
    op: str, x: Tensor | None, h0: Tensor | None, batch_sizes: Tensor | None, batch_first: bool
) -> tuple[int, int]:
    """N and B of a call.

    Raises:
        RuntimeError: x, h0 or batch_sizes have the wrong form, or do not fit together.
    """
    if x is None or h0 is None:  # torch accepts None where the schema says Tensor
        raise RuntimeError(f"fastrnn::{op}: x or h0 is missing")
    dims = x.dim()
    if h0.dim() not in (2, 3) or (h0.dim() == 3 and h0.shape[0] != 1):
        raise RuntimeError(f"fastrnn::{op}: h0 is {tuple(h0.shape)}; expected [B, H] or [1, B, H]")
    batch = h0.shape[-2]
    if batch_sizes is not None:
        if dims != 2:
            raise RuntimeError(f"fastrnn::{op}: packed x is {tuple(x.shape)}; expected [N, I]")
        rows = x.shape[0]
        _check_batch_sizes(op, batch_sizes, rows, batch)
        return rows, batch
    if dims == 3:
        if x.shape[0 if batch_first else 1] != batch:
            form = "[B, T, I]" if batch_first else "[T, B, I]"
            raise RuntimeError(
                f"fastrnn::{op}: x is {tuple(x.shape)}; expected {form} with B {batch}, as in h0"
            )
        return x.shape[0] * x.shape[1], batch
    rows = x.shape[0] if dims == 2 else -1
    if dims != 2 or (rows % batch if batch else rows):
        raise RuntimeError(
            f"fastrnn::{op}: x is {tuple(x.shape)}, whose rows do not fit a batch of {batch}"
        )
    return rows, batch


def _check_batch_sizes(op: str, sizes: Tensor, rows: int, batch: int) -> None:
    if sizes.dtype != torch.int64 or not sizes.is_cpu or sizes.dim() != 1 or not len(sizes):
        raise RuntimeError(
            f"fastrnn::{op}: batch_sizes is {_described(sizes)}; expected int64 [T] on the CPU"
        )
    falls = bool((sizes[1:] <= sizes[:-1]).all()) and int(sizes[-1]) > 0
    if not falls or int(sizes[0]) != batch or int(sizes.sum()) != rows:
        raise RuntimeError(
            f"fastrnn::{op}: batch_sizes do not fit {rows} rows of {batch} sequences; expected "
            f"positive, non-increasing numbers that begin with {batch} and add up to {rows}"
        )


def check(
    op: str, x: Tensor, names: Sequence[str], tensors: Sequence[Tensor | None], *shapes: Any
) -> None:
    """Checks that the tensors have these shapes, and the dtype and device of x.

    Raises:
        RuntimeError: a tensor does not fit.
    """
    dtype, device, on_cpu = x.dtype, x.device, x.is_cpu
    for name, tensor, shape in zip(names, tensors, shapes, strict=True):
        if tensor is None:
            if name in _OPTIONAL:
                continue
            raise RuntimeError(f"fastrnn::{op}: {name} is missing")
        elsewhere = not tensor.is_cpu if on_cpu else tensor.device != device
        if tensor.shape != shape or tensor.dtype != dtype or elsewhere:
            wanted = f"{dtype} {tuple(shape)} on {device}".removeprefix("torch.")
            raise RuntimeError(f"fastrnn::{op}: {name} is {_described(tensor)}; expected {wanted}")
        if not tensor.data_ptr() and tensor.numel():
            raise RuntimeError(f"fastrnn::{op}: {name} has no memory; it has been freed")


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}".removeprefix("torch.")


def check_alike(op: str, tensors: Sequence[Tensor | None], batch_sizes: Tensor | None) -> None:
    """Refuses tensors of several dtypes or devices: one on the meta device calls the fake kernel.

    Raises:
        RuntimeError: they differ.
    """
    kinds = {(t.dtype, t.device) for t in tensors if t is not None}
    if len(kinds) > 1:
        found = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        raise RuntimeError(f"fastrnn::{op}: tensors are {found}; expected one dtype and device")
    if batch_sizes is not None and not batch_sizes.is_cpu:
        raise RuntimeError(
            f"fastrnn::{op}: batch_sizes is {_described(batch_sizes)}; expected int64 on the CPU"
        )

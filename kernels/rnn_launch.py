"""Around the Triton kernels: a call's plan and its launch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .rnn_triton import INTERPRETED, Plan

_HALF = (torch.float16, torch.bfloat16)


def narrow(features: int, hidden_size: int) -> bool:
    """Whether the input is projected inside the step: its weights take registers, too."""
    return features <= (4 if hidden_size <= 64 else 2)


def supports(dtype: torch.dtype) -> str | None:
    """Why the Triton kernels cannot run a layer, or None if they can."""
    if dtype in (*_HALF, torch.float32):
        return None
    return f"the Triton kernels compute in float32, bfloat16 and float16, not {dtype}"


def fits(hidden_size: int, dtype: torch.dtype, lanes: int = 32) -> bool:
    """Whether a multiprocessor's registers, 64 Ki words, hold the recurrent weights."""
    return hidden_size <= (128 if dtype in _HALF and lanes == 32 else 64)


def choose(hidden_size: int, batch: int, dtype: torch.dtype, sms: int, lanes: int = 32) -> Plan:
    """The plan of a call: a table, so that nothing is timed at a first call.

    | hidden | dtype | batch | form | rows | lanes a unit | warps |
    |---|---|---|---|---|---|---|
    | ≤ 32 | float32; 16 bits: ≤ 4 × SMs | ≤ 2 × SMs | vector | 1 | 4 | 4 |
    | | | more | vector | 1 | 2 | 2 |
    | ≤ 64 | float32; 16 bits: ≤ SMs | ≤ 2 × SMs | vector | 1 | 2 | 4 |
    | | | more | vector | 2 | 2 | 4 |
    | ≤ 128 | 16 bits | any other | tensor | 8 | – | hidden / 16 |

    A vector program costs each of its rows' FMAs, a tensor program the same for 1 to 8 rows: so few
    rows take the first form. Fewer lanes a unit are fewer instructions in all, more are a shorter
    chain. Two rows a program keep them all on the chip at once where only two programs fit on an
    SM. AMD (64 lanes) has the vector form only.
    """
    units = next(u for u in (32, 64, 128) if hidden_size <= u)
    half = dtype in _HALF
    portable = INTERPRETED or lanes != 32
    crowded = batch > (4 if units == 32 else 1) * sms
    if half and lanes == 32 and (units == 128 or crowded):
        return Plan(units, 8, 0, units // 16, "portable" if portable else "fast")
    few = batch <= 2 * sms
    rows = 1 if units == 32 or few else 2
    split = (4 if units == 32 and few else 2) * lanes // 32
    math = "portable" if portable else "fast" if half else "exact"
    return Plan(units, rows, split, units * split // lanes, math, lanes)


def processor(like: Tensor) -> tuple[int, int]:
    """Multiprocessors of a tensor's device, and threads a warp."""
    if INTERPRETED:
        return 132, 32
    properties = torch.cuda.get_device_properties(like.device)
    return properties.multi_processor_count, properties.warp_size


def plan(hidden_size: int, batch: int, like: Tensor) -> Plan:
    """The plan on the device and in the dtype of `like`."""
    return choose(hidden_size, batch, like.dtype, *processor(like))


def resident(steps: int, hidden_size: int, like: Tensor) -> bool:
    """Whether a layer keeps its weights on chip: more than one step, and they fit."""
    return steps > 1 and fits(hidden_size, like.dtype, processor(like)[1])


def words(*tensors: Tensor) -> Iterator[Tensor]:
    """Tensors whose 16-bit elements pair up to words: copies of those that start between words."""
    return (t if t.data_ptr() % 4 == 0 else t.clone() for t in tensors)


def on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Make a GPU current: Triton launches there."""
    return contextlib.nullcontext() if device.type == "cpu" else torch.cuda.device(device)


def launch(kernel: Any, spread: Plan, batch: int, device: torch.device, *arguments: Any) -> None:
    """Run a kernel for every sequence, on the device's current stream."""
    with on_device(device):
        kernel[(-(-batch // spread.rows),)](*arguments, num_warps=spread.warps)

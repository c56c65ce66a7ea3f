"""Around the Triton kernels: a call's plan, its rows, and the products outside the time loop."""

from __future__ import annotations

import contextlib
import dataclasses
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


def on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Make a GPU current: Triton launches there."""
    return contextlib.nullcontext() if device.type == "cpu" else torch.cuda.device(device)


def launch(kernel: Any, spread: Plan, batch: int, device: torch.device, *arguments: Any) -> None:
    """Run a kernel for every sequence, on the device's current stream."""
    with on_device(device):
        kernel[(-(-batch // spread.rows),)](*arguments, num_warps=spread.warps)


def tf32() -> bool:
    """Whether torch's switch for recurrent layers allows TF32 in float32 products."""
    rnn: Any = torch.backends.cudnn.rnn
    return rnn.fp32_precision == "tf32"


def product(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product. In float32 TF32 needs both of torch's switches.

    They are the one of products and the one of recurrent layers. Both hold for the whole process,
    so neither is changed here; float64 is exact whatever they say.
    """
    matmul: Any = torch.backends.cuda.matmul
    if a.dtype == torch.float32 and matmul.fp32_precision == "tf32" and not tf32():
        return (a.double() @ b.double()).float()
    return a @ b


@dataclasses.dataclass(frozen=True)
class Rows:
    """Where the rows of a sequence's steps lie.

    Args:
        steps: T.
        batch: B.
        offsets: packed: each time's first row, int64 [T + 10], five more at either end; or None.
        lengths: packed: each sequence's steps, int32 [B]; or None.
    """

    steps: int
    batch: int
    offsets: Tensor | None = None
    lengths: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor, batch: int, batch_sizes: Tensor | None) -> Rows:
        """Rows of x [N, ...]; copies a packed layout to its device without waiting for it."""
        if batch_sizes is None:
            return cls(x.shape[0] // max(batch, 1), batch)
        steps = batch_sizes.shape[0]
        offsets = torch.nn.functional.pad(batch_sizes.cumsum(0), (6, 4))
        offsets[-4:] = x.shape[0]
        below = torch.searchsorted(batch_sizes.flip(0), torch.arange(batch), right=True)
        lengths = (steps - below).to(torch.int32)
        offsets = offsets.to(x.device, non_blocking=True)
        return cls(steps, batch, offsets, lengths.to(x.device, non_blocking=True))

    def first(self, rows: Tensor, reverse: bool) -> Tensor:
        """The row of each sequence's first step on its way, [B, ...]."""
        b = self.batch
        if not reverse:
            return rows[:b]
        if self.offsets is None:
            return rows[-b:]
        assert self.lengths is not None
        last = self.offsets[5:][self.lengths.long() - 1]
        return rows[last + torch.arange(b, device=rows.device)]

    def recurrent_gradient(self, dgates: Tensor, h0: Tensor, y: Tensor, reverse: bool) -> Tensor:
        """dgates^T h', with h' [N, H] the state before each row: h0, or a row of y."""
        if self.offsets is None:
            b = self.batch
            if reverse:
                first, rest, before = dgates[-b:], dgates[:-b], y[b:]
            else:
                first, rest, before = dgates[:b], dgates[b:], y[:-b]
            return product(first.t(), h0) + product(rest.t(), before)
        n = y.shape[0]
        starts = self.offsets[5:-4]  # [T + 1]
        time = torch.repeat_interleave(starts.diff(), output_size=n)
        b_of_row = torch.arange(n, device=y.device) - starts[time]
        assert self.lengths is not None
        if reverse:
            inside = time + 1 < self.lengths[b_of_row]
            index = starts[time + 1] + b_of_row
        else:
            inside = time > 0
            index = self.offsets[4:][time] + b_of_row
        index = torch.where(inside, index, n + b_of_row)
        return product(dgates.t(), torch.cat((y, h0))[index])

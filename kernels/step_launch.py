"""Around the step kernels: how a step is spread over programs, and the walk over the steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import rnn_launch
from .rnn_launch import on_device
from .rnn_triton import INTERPRETED
from .rows import Rows, product, tf32
from .step_triton import StepPlan, backward_kernel, forward_kernel

# A wider input is projected for all steps at once: inside a step, its columns are on the chain.
NARROW = 32

# Rows, units, depth and warps of a program that fit in its registers; AMD's is the first.
_SIZES = {
    "half": [(16, 16, 128, 4), (16, 32, 64, 4), (32, 64, 64, 8)],
    "tf32": [(16, 16, 32, 4), (16, 32, 32, 4), (32, 64, 32, 8)],
    "ieee": [(16, 32, 16, 8), (32, 32, 16, 8)],
}


def choose_step(
    hidden_size: int, batch: int, dtype: torch.dtype, sms: int, lanes: int = 32, tf32: bool = False
) -> StepPlan:
    """How a step is spread: the least work for a program with which all programs run at once.

    Up to 4 rows take the vector form, each program all of them. More take one of `_SIZES`. A grid
    of more programs than multiprocessors takes the largest size, and a launch for each step.
    """
    precision = "tf32" if tf32 and dtype == torch.float32 else "ieee"
    if batch <= 4:
        rows = 1 << (batch - 1).bit_length()
        sizes = [(rows, units, min(256, 1024 // (rows * units)), 4) for units in (4, 8, 16)]
    else:
        sizes = _SIZES[precision if dtype == torch.float32 else "half"]
        sizes = sizes if lanes == 32 else sizes[:1]

    def programs(rows: int, units: int) -> int:
        return -(-batch // rows) * -(-hidden_size // units)

    rows, units, depth, warps = next((s for s in sizes if programs(*s[:2]) <= sms), sizes[-1])
    persistent = programs(rows, units) <= (1 if INTERPRETED else sms)
    return StepPlan(rows, units, depth, batch > 4, precision, warps, persistent)


def step_plan(hidden_size: int, batch: int, like: Tensor) -> StepPlan:
    """The plan on the device and in the dtype of `like`; TF32 as torch's recurrent layers."""
    sms, lanes = rnn_launch.processor(like)
    return choose_step(hidden_size, batch, like.dtype, sms, lanes, tf32())


def launch_steps(
    kernel: Any, spread: StepPlan, rows: Rows, hidden: int, like: Tensor,
    head: tuple[Any, ...], tail: tuple[Any, ...],
) -> None:  # fmt: skip
    """Run every step, on the device's current stream: in one launch, or each in its own."""
    grid = (-(-rows.batch // spread.rows), -(-hidden // spread.units))
    persistent = spread.persistent and rows.steps > 1
    arrived = like.new_zeros(1, dtype=torch.int32) if persistent else None
    length = rows.steps if persistent else 1
    with on_device(like.device):
        for begin in range(0, rows.steps, length):
            kernel[grid](
                *head, rows.offsets, arrived, rows.steps, rows.batch, begin, begin + length, *tail,
                num_warps=spread.warps, launch_cooperative_grid=persistent,
            )  # fmt: skip


def steps_forward(
    rows: Rows,
    x: Tensor,
    weights: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    h0: Tensor,
    state0: Tensor,
    y: Tensor,
    h_n: Tensor | None,
    state_n: Tensor,
    gates: Tensor | None,
    cells: Tensor | None,
    reverse: bool,
) -> None:
    """Fill y, h_n, gates and cells where given, and state_n: the LSTM's cells, the GRU's h."""
    (batch, hidden), inputs = h0.shape, x.shape[1]
    projected = rows.steps > 1 and inputs > NARROW
    if projected:
        x = product(x, weights[0].t())
    # Between steps the state is float32 and stays in its place.
    old = new = state0.to(torch.float32, copy=True)
    if rows.steps == 1:
        old, new = state0, state_n
    spread = step_plan(hidden, batch, x)
    launch_steps(
        forward_kernel, spread, rows, hidden, x,
        (x, *weights, h0, old, new, y, h_n, gates, cells),
        (inputs, hidden, h_n is not None, projected, reverse, spread),
    )  # fmt: skip
    if new is not state_n:
        state_n.copy_(new)


def steps_backward(
    rows: Rows,
    dy: Tensor,
    dh_n: Tensor | None,
    w_hh: Tensor,
    state0: Tensor,
    states: Tensor,
    gates: Tensor,
    dstate_n: Tensor,
    dgates: Tensor,
    reverse: bool,
) -> Tensor:
    """Fill dgates; return the first state's gradient, perhaps in float32.

    To the GRU's belongs the product of the first step's dgates, besides.
    """
    batch, hidden = state0.shape
    old = new = dstate_n.to(torch.float32, copy=True)
    if rows.steps == 1:
        old, new = dstate_n, torch.empty_like(dstate_n)
    spread = step_plan(hidden, batch, dy)
    launch_steps(
        backward_kernel, spread, rows, hidden, dy,
        (dy, dh_n, w_hh, state0, states, gates, old, new, dgates),
        (hidden, dh_n is not None, reverse, spread),
    )  # fmt: skip
    return new

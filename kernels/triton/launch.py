"""Launching the kernels of a layer: which ones, by which plan, and with which arguments.

A layer of several steps whose recurrent weights fit on a multiprocessor takes the whole-sequence
kernels, any other the step kernels. Work is queued on the device's current stream.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn.kernels.contract import LSTM, Cell
from fastrnn.kernels.layout import Rows
from fastrnn.kernels.products import Sums, product, tf32

from . import sequence, steps
from .language import INTERPRETED
from .plans import Plan, Processor, StepPlan, choose_plan, choose_step_plan, fits_on_chip


def processor(device: torch.device) -> Processor:
    """The properties of a device that plans depend on; those of an H100 when interpreted."""
    if INTERPRETED:
        return Processor(132)
    properties = torch.cuda.get_device_properties(device)
    sms, lanes = properties.multi_processor_count, properties.warp_size
    return Processor(sms, lanes, torch.version.hip is None)


def on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes a GPU the current one, on which Triton launches."""
    return contextlib.nullcontext() if device.type == "cpu" else torch.cuda.device(device)


def word_aligned(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors, with copies in place of those that do not start at a multiple of 4 bytes.

    The kernels read 16-bit numbers in pairs.
    """
    return [t.clone() if t is not None and t.data_ptr() % 4 else t for t in tensors]


def _pair(tensors: Sequence[Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """Up to two tensors as two; absent ones are None."""
    first, second = (*tensors, None, None)[:2]
    return first, second


def forward(
    cell: Cell,
    rows: Rows,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    y: Tensor,
    final: Sequence[Tensor],
    saved: Sequence[Tensor],
    reverse: bool,
) -> None:
    """Fills y, the final states and, unless ``saved`` is (), the saved tensors.

    The arguments are those of :class:`~fastrnn.kernels.contract.KernelModule`; B is positive.
    """
    run = _sequence_forward if _on_chip(rows, states[0]) else _steps_forward
    run(cell, rows, x, states, weights, y, final, saved, reverse)


def backward(
    cell: Cell,
    rows: Rows,
    x: Tensor,
    dy: Tensor,
    d_final: Sequence[Tensor],
    states: Sequence[Tensor],
    w_hh: Tensor,
    y: Tensor,
    saved: Sequence[Tensor],
    dgates: Tensor,
    reverse: bool,
) -> tuple[tuple[Tensor, ...], Sums | None]:
    """Fills dgates [N, 4H], before the activations: i f g o of an LSTM; n r z m of a GRU.

    The other arguments are those of :class:`~fastrnn.kernels.contract.KernelModule`; B is positive.

    Returns:
        The gradients of the initial states, and the sums of
        :func:`~fastrnn.kernels.products.input_and_weight_gradients` if the kernel made them.
    """
    run = _sequence_backward if _on_chip(rows, states[0]) else _steps_backward
    # What a step needs of the step before it: an LSTM its cell state, a GRU its h.
    initial, before = (states[1], saved[1]) if cell is LSTM else (states[0], y)
    return run(cell, rows, x, dy, d_final, w_hh, initial, before, saved[0], dgates, reverse)


def _on_chip(rows: Rows, h: Tensor) -> bool:
    """Whether the weights stay on chip: there are several steps, and the weights fit."""
    return rows.steps > 1 and fits_on_chip(h.shape[1], h.dtype, processor(h.device))


# --- whole sequences ------------------------------------------------------------------------------


def launch(kernel: Any, plan: Plan, batch: int, device: torch.device, *arguments: Any) -> None:
    """Runs a whole-sequence kernel for all sequences of a batch."""
    with on_device(device):
        kernel[(-(-batch // plan.rows),)](*arguments, **plan.options)


def _plan(rows: Rows, h: Tensor, way: str) -> Plan:
    return choose_plan(h.shape[1], rows.batch, h.dtype, processor(h.device), way)


def _sequence_forward(
    cell: Cell, rows: Rows, x: Tensor, states: Sequence[Tensor],
    weights: Sequence[Tensor | None], y: Tensor, final: Sequence[Tensor],
    saved: Sequence[Tensor], reverse: bool,
) -> None:  # fmt: skip
    w_ih, input_size, hidden_size = weights[0], x.shape[1], y.shape[1]
    assert w_ih is not None
    plan = _plan(rows, states[0], "forward")
    if not plan.narrow(input_size):
        x, input_size = product(x, w_ih.t()), 0
    launch(
        sequence.forward_kernel, plan, rows.batch, x.device,
        x, *weights, *word_aligned(*_pair(states)), y, *_pair(final), *_pair(saved),
        rows.offsets, rows.lengths, rows.steps, rows.batch, 0,
        input_size, hidden_size, plan, cell is LSTM, reverse,
    )  # fmt: skip


def _sequence_backward(
    cell: Cell, rows: Rows, x: Tensor, dy: Tensor, d_final: Sequence[Tensor], w_hh: Tensor,
    initial: Tensor, before: Tensor, gates: Tensor, dgates: Tensor, reverse: bool,
) -> tuple[tuple[Tensor, ...], Sums | None]:  # fmt: skip
    d_states = tuple(torch.empty_like(d) for d in d_final)
    plan, hidden_size = _plan(rows, initial, "backward"), initial.shape[1]
    biases, weights = plan.sums(cell, x.shape[1])
    count = 4 + (cell.gates if weights else 0)
    size = (-(-rows.batch // plan.rows), count, hidden_size)
    totals = dy.new_empty(size, dtype=torch.float32) if biases else None
    launch(
        sequence.backward_kernel, plan, rows.batch, dy.device,
        *word_aligned(dy, *_pair(d_final)), w_hh, *word_aligned(initial, before, gates),
        dgates, *_pair(d_states), x if weights else None, totals,
        rows.offsets, rows.lengths, rows.steps, rows.batch, 0,
        hidden_size, plan, cell is LSTM, reverse,
    )  # fmt: skip
    if totals is None:
        return d_states, None
    db, dw_ih = totals.sum(0).flatten().split([4 * hidden_size, (count - 4) * hidden_size])
    db = db.to(dy.dtype, copy=weights)  # results are tensors of their own
    return d_states, (db, dw_ih.to(dy.dtype, copy=True).view(-1, 1) if weights else None)


# --- steps ----------------------------------------------------------------------------------------


def _launch_steps(
    kernel: Any, plan: StepPlan, rows: Rows, like: Tensor, head: tuple[Any, ...],
    tail: tuple[Any, ...],
) -> None:  # fmt: skip
    """Runs a step kernel for all steps: in one launch, or in one launch per step.

    `head` and `tail` are the arguments before and after those of the walk; `like` is [B, H].
    """
    grid = (-(-rows.batch // plan.rows), -(-like.shape[1] // plan.units))
    persistent = plan.persistent and rows.steps > 1
    arrived = like.new_zeros(1, dtype=torch.int32) if persistent else None
    length = rows.steps if persistent else 1
    with on_device(like.device):
        for begin in range(0, rows.steps, length):
            kernel[grid](
                *head, rows.offsets, arrived, rows.steps, rows.batch, begin, begin + length, *tail,
                **plan.options, launch_cooperative_grid=persistent,
            )  # fmt: skip


def _step_plan(rows: Rows, h: Tensor) -> StepPlan:
    return choose_step_plan(h.shape[1], rows.batch, h.dtype, processor(h.device), tf32())


def _buffers(rows: Rows, given: Tensor, result: Tensor) -> tuple[Tensor, Tensor]:
    """Where the steps read a state or its gradient, and where they write it.

    One step reads what is given and writes the result. Several work on one float32 copy.
    """
    if rows.steps == 1:
        return given, result
    copy = given.to(torch.float32, copy=True)
    return copy, copy


def _steps_forward(
    cell: Cell, rows: Rows, x: Tensor, states: Sequence[Tensor],
    weights: Sequence[Tensor | None], y: Tensor, final: Sequence[Tensor],
    saved: Sequence[Tensor], reverse: bool,
) -> None:  # fmt: skip
    w_ih, h0, input_size = weights[0], states[0], x.shape[1]
    assert w_ih is not None
    plan = _step_plan(rows, h0)
    projected = rows.steps > 1 and not plan.narrow(input_size)
    if projected:
        x = product(x, w_ih.t())
    old, new = _buffers(rows, states[-1], final[-1])
    h_n = final[0] if cell is LSTM else None
    _launch_steps(
        steps.forward_kernel, plan, rows, h0,
        (x, *weights, h0, old, new, y, h_n, *_pair(saved)),
        (input_size, h0.shape[1], cell is LSTM, projected, plan.narrow(input_size), reverse, plan),
    )  # fmt: skip
    if new is not final[-1]:
        final[-1].copy_(new)


def _steps_backward(
    cell: Cell, rows: Rows, x: Tensor, dy: Tensor, d_final: Sequence[Tensor], w_hh: Tensor,
    initial: Tensor, before: Tensor, gates: Tensor, dgates: Tensor, reverse: bool,
) -> tuple[tuple[Tensor, ...], None]:  # fmt: skip
    hidden_size = initial.shape[1]
    old, new = _buffers(rows, d_final[-1], torch.empty_like(d_final[-1]))
    dh_n = d_final[0] if cell is LSTM else None
    plan = _step_plan(rows, initial)
    _launch_steps(
        steps.backward_kernel, plan, rows, initial,
        (dy, dh_n, w_hh, initial, before, gates, old, new, dgates),
        (hidden_size, cell is LSTM, reverse, plan),
    )  # fmt: skip
    # The product that the kernel would compute in a step before the first.
    recurrent = dgates[:, (4 - cell.gates) * hidden_size :]
    by_product = product(rows.first(recurrent, reverse), w_hh)
    if cell is LSTM:
        return (by_product, new.to(d_final[1].dtype)), None
    return ((new + by_product).to(d_final[0].dtype),), None

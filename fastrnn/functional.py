"""``lstm()`` and ``gru()``: a stack of layers over a batch of sequences, on plain tensors.

They take what torch.lstm and torch.gru take, choose a backend, and walk layers and directions.
Padded input is time-major [T, B, I] or, with batch_first, [B, T, I]; packed input is
PackedSequence.data [N, I] with its batch_sizes. The weights are in torch.nn's flat order: for each
layer and direction w_ih, w_hh and, with biases, b_ih, b_hh.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop

from fastrnn import backends, ops  # noqa: F401  (ops registers torch.ops.fastrnn)
from fastrnn._compat import is_transformed
from fastrnn.kernels.contract import CELLS

_VENDOR = backends.TORCH.name


class StackOptions(NamedTuple):
    """How a stack is built, in the order in which torch.lstm and torch.gru take it."""

    bias: bool = True
    num_layers: int = 1
    dropout: float = 0.0
    training: bool = False
    bidirectional: bool = False


def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    weights: Sequence[Tensor],
    *,
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    proj_size: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs a stack of LSTM layers in D directions; the equations are torch.nn.LSTM's.

    Args:
        input: [T, B, I], [B, T, I] with ``batch_first``, or [N, I] with ``batch_sizes``.
        hx: h_0 [layers * D, B, H], or [layers * D, B, proj_size] if projected, and c_0
            [layers * D, B, H].
        weights: in torch.nn's flat order; each set ends with weight_hr if projected.
        bias: whether each set has b_ih and b_hh.
        num_layers: layers.
        dropout: probability of zeroing an output between layers, in training.
        training: whether dropout is applied.
        bidirectional: whether D is 2.
        batch_first: see input.
        batch_sizes: of a PackedSequence, int64 [T] on the CPU; None for padded input.
        proj_size: size of the projected h; 0 for none.

    Returns:
        output [T, B, D * H] ([B, T, D * H], [N, D * H]), and h_n and c_n of hx's shapes.

    Raises:
        RuntimeError: a forced backend does not support the call, or torch.lstm raises it.
    """
    options = StackOptions(bias, num_layers, dropout, training, bidirectional)
    return _run("lstm", input, hx, weights, options, batch_first, batch_sizes, proj_size)


def gru(
    input: Tensor,
    hx: Tensor,
    weights: Sequence[Tensor],
    *,
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Runs a stack of GRU layers; the equations are torch.nn.GRU's.

    Arguments and errors are those of :func:`lstm`, except that ``hx`` is h_0 [layers * D, B, H]
    alone and that there are no projections.

    Returns:
        output [T, B, D * H] ([B, T, D * H], [N, D * H]) and h_n of hx's shape.
    """
    options = StackOptions(bias, num_layers, dropout, training, bidirectional)
    return _run("gru", input, (hx,), weights, options, batch_first, batch_sizes, 0)


def _run(
    cell: str,
    input: Tensor,
    states: tuple[Tensor, ...],
    weights: Sequence[Tensor],
    options: StackOptions,
    batch_first: bool,
    batch_sizes: Tensor | None,
    proj_size: int,
) -> Any:
    steps, batch = _steps_and_batch(input, states, batch_first, batch_sizes)
    backend = _VENDOR
    if not _single_cpu_step(steps, input):
        if _autocast(input):
            dtype = torch.get_autocast_dtype(input.device.type)
            input, *rest = (_cast(t, dtype) for t in (input, *states, *weights))
            states, weights = tuple(rest[: len(states)]), rest[len(states) :]
        backend = _choose(cell, input, states, weights, steps, batch, proj_size > 0)
    if backend == _VENDOR:
        if cell == "lstm":
            return _vendor(torch.lstm, input, states, weights, options, batch_first, batch_sizes)
        return _vendor(torch.gru, input, states[0], weights, options, batch_first, batch_sizes)
    if batch_sizes is not None:
        return _layers(cell, backend, input, states, weights, options, batch_sizes)
    if batch_first:
        input = input.transpose(0, 1)
    rows = input.reshape(steps * batch, input.shape[2])
    output, *final = _layers(cell, backend, rows, states, weights, options, None)
    output = output.view(steps, batch, output.shape[1])
    return (output.transpose(0, 1) if batch_first else output, *final)


def _autocast(input: Tensor) -> bool:
    # The meta device has no autocast, and torch raises an error when asked about it.
    return not input.is_meta and torch.is_autocast_enabled(input.device.type)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    # Like torch.autocast, which leaves float64 alone.
    wanted = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.to(dtype) if wanted else tensor


def _vendor(
    function: Any,
    input: Tensor,
    hx: Any,
    weights: Sequence[Tensor],
    options: StackOptions,
    batch_first: bool,
    batch_sizes: Tensor | None,
) -> Any:
    if batch_sizes is None:
        return function(input, hx, weights, *options, batch_first)
    return function(input, batch_sizes, hx, weights, *options)


def _steps_and_batch(
    input: Tensor, states: tuple[Tensor, ...], batch_first: bool, batch_sizes: Tensor | None
) -> tuple[int, int]:
    """T and B."""
    if batch_sizes is not None:
        return batch_sizes.shape[0], states[0].shape[1]
    size = input.shape
    return (size[1], size[0]) if batch_first else (size[0], size[1])


def _single_cpu_step(steps: int, input: Tensor) -> bool:
    """Whether this is one step on a CPU, for which torch's path is taken without further checks.

    There are no weights to keep on chip, and a choice would cost more than it could save.
    """
    return steps == 1 and input.is_cpu and backends.forced_backend() is None


def _choose(
    cell: str,
    input: Tensor,
    states: tuple[Tensor, ...],
    weights: Sequence[Tensor],
    steps: int,
    batch: int,
    projected: bool,
) -> str:
    tensors = (input, *states, *weights)
    # Let torch raise its own error, or return its own empty result.
    if input.numel() == 0 or any(_differs(t, input) for t in tensors):
        return _VENDOR
    call = backends.Call(
        cell=cell.upper(),
        device=input.device.type,
        dtype=input.dtype,
        steps=steps,
        batch=batch,
        input_size=input.shape[-1],
        hidden_size=states[-1].shape[-1],
        training=_needs_gradients(tensors),
        projected=projected,
        transformed=_transformed(tensors),
    )
    return backends.choose(call).backend


def _differs(tensor: Tensor, input: Tensor) -> bool:
    return tensor.dtype != input.dtype or tensor.device != input.device


def _needs_gradients(tensors: Sequence[Tensor]) -> bool:
    # torch.jit.trace traces a second time, without gradients, and expects the same graph.
    wanted = torch.is_grad_enabled() or torch.jit.is_tracing()
    return wanted and any(t.requires_grad for t in tensors)


def _transformed(tensors: Sequence[Tensor]) -> bool:
    return not torch.compiler.is_compiling() and is_transformed(tensors)


def _operation(cell: str, backend: str, tensors: Sequence[Tensor]) -> Callable[..., Any]:
    """The op of a cell; under a transform, which cannot see into it, the reference's arithmetic."""
    if backend == backends.REFERENCE.name and _transformed(tensors):
        return _differentiable(cell)
    packet = torch.ops.fastrnn.lstm if cell == "lstm" else torch.ops.fastrnn.gru
    return packet.default


def _differentiable(cell: str) -> Callable[..., tuple[Tensor, ...]]:
    """The reference's forward pass with the op's arguments and results."""
    kernels, record = backends.REFERENCE.kernels(), CELLS[cell]
    n = 1 + record.states

    def forward(*args: Any) -> tuple[Tensor, ...]:
        y, final, saved = kernels.forward(
            record, args[0], args[1:n], args[n : n + 4], *args[n + 4 : -1]
        )
        return (y, *final, *saved)

    return forward


def _layers(
    cell: str,
    backend: str,
    rows: Tensor,
    states: tuple[Tensor, ...],
    weights: Sequence[Tensor],
    options: StackOptions,
    batch_sizes: Tensor | None,
) -> tuple[Tensor, ...]:
    """All layers and directions over rows [N, I]; returns [N, D * H] and the final states."""
    bias, num_layers, dropout, training, bidirectional = options
    directions = 2 if bidirectional else 1
    per_direction = 4 if bias else 2
    save = _needs_gradients((rows, *states, *weights))
    op = _operation(cell, backend, (rows, *states, *weights))
    finals: list[tuple[Tensor, ...]] = []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            k = layer * directions + direction
            w = weights[k * per_direction : (k + 1) * per_direction]
            w_ih, w_hh, b_ih, b_hh = w if bias else (*w, None, None)
            initial = [state[k] for state in states]
            y, *rest = op(
                rows, *initial, w_ih, w_hh, b_ih, b_hh, batch_sizes, direction == 1, save, backend
            )
            outputs.append(y)
            finals.append(tuple(rest[: len(states)]))
        rows = outputs[0] if directions == 1 else torch.cat(outputs, 1)
        if dropout and training and layer < num_layers - 1:
            rows = drop(rows, dropout, training=True)
    if len(finals) == 1:
        return (rows, *(final.unsqueeze(0) for final in finals[0]))
    return (rows, *(torch.stack(final) for final in zip(*finals, strict=True)))


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One LSTM step; the equations are torch.nn.LSTMCell's.

    Args:
        input: [B, I].
        hx: h and c, [B, H] each.
        w_ih, w_hh: [4H, I] and [4H, H].
        b_ih, b_hh: [4H] each, or None.

    Returns:
        The new h and c, [B, H] each.

    Raises:
        RuntimeError: a forced backend does not support the call, or torch.lstm_cell raises it.
    """
    if not _single_cpu_step(1, input):
        weights = (w_ih, w_hh, b_ih, b_hh)
        if (found := _step("lstm", input, hx, weights)) is not None:
            return found[0], found[1]
    return torch.lstm_cell(input, hx, w_ih, w_hh, b_ih, b_hh)


def gru_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> Tensor:
    """One GRU step; the equations are torch.nn.GRUCell's.

    Arguments and errors are those of :func:`lstm_cell`, except that ``hx`` is h [B, H] alone and
    that weights have 3H rows. Returns the new h [B, H].
    """
    if not _single_cpu_step(1, input):
        weights = (w_ih, w_hh, b_ih, b_hh)
        if (found := _step("gru", input, (hx,), weights)) is not None:
            return found[0]
    return torch.gru_cell(input, hx, w_ih, w_hh, b_ih, b_hh)


def _step(
    cell: str, input: Tensor, states: tuple[Tensor, ...], weights: tuple[Tensor | None, ...]
) -> tuple[Tensor, ...] | None:
    """The states after one step by the chosen backend's op; None if that is torch's cell."""
    if _autocast(input):
        return None
    given = [w for w in weights if w is not None]
    if _sizes_disagree(input, states, given):
        return None  # torch raises its own error
    batch = input.shape[0]
    if (backend := _choose(cell, input, states, given, 1, batch, False)) == _VENDOR:
        return None
    op = _operation(cell, backend, (input, *states, *given))
    save = _needs_gradients((input, *states, *given))
    return op(input, *states, *weights, None, False, save, backend)[1 : 1 + len(states)]


def _sizes_disagree(input: Tensor, states: tuple[Tensor, ...], weights: Sequence[Tensor]) -> bool:
    """Whether a cell's sizes disagree."""
    batch, hidden = input.shape[0], weights[1].shape[1]
    wrong = any(state.shape != (batch, hidden) for state in states)
    return wrong or weights[0].shape[1] != input.shape[1]

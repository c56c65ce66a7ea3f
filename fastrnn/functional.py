"""``lstm()`` and ``gru()``: a stack of layers over a batch of sequences, on plain tensors.

They take what torch._VF.lstm and torch._VF.gru take, choose a backend, and walk layers and
directions. Padded input is time-major [T, B, I] or, with batch_first, [B, T, I]; packed input is
PackedSequence.data [N, I] with its batch_sizes. The weights are in torch.nn's flat order: for each
layer and direction w_ih, w_hh and, with biases, b_ih, b_hh.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import _VF, Tensor
from torch.autograd import forward_ad
from torch.nn.functional import dropout as drop

from fastrnn import backends, ops  # noqa: F401  (ops registers torch.ops.fastrnn)


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
    """A stack of LSTM layers; D directions.

    Args:
        input: [T, B, I], [B, T, I] with ``batch_first``, or [N, I] with ``batch_sizes``.
        hx: h_0 [layers * D, B, H] (P = proj_size instead of H if projected) and c_0
            [layers * D, B, H].
        weights: in torch.nn's flat order, with weight_hr behind each set if projected.

    Returns:
        output [T, B, D * H] ([B, T, D * H], [N, D * H]), h_n and c_n like hx.

    Raises:
        RuntimeError: a forced backend does not support the call, or what torch._VF.lstm raises.
    """
    layers = (bias, num_layers, dropout, training, bidirectional)
    return _run("lstm", input, hx, weights, layers, batch_first, batch_sizes, proj_size)


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
    """A stack of GRU layers; as :func:`lstm`, with h_0 [layers * D, B, H] alone for ``hx``.

    Returns:
        output [T, B, D * H] ([B, T, D * H], [N, D * H]) and h_n like hx.
    """
    layers = (bias, num_layers, dropout, training, bidirectional)
    return _run("gru", input, (hx,), weights, layers, batch_first, batch_sizes, 0)


def _run(
    cell: str,
    input: Tensor,
    states: tuple[Tensor, ...],
    weights: Sequence[Tensor],
    layers: tuple[bool, int, float, bool, bool],
    batch_first: bool,
    batch_sizes: Tensor | None,
    proj_size: int,
) -> Any:
    steps, batch = _extent(input, states, batch_first, batch_sizes)
    backend = "torch"
    if not _at_once(steps, input):
        if _autocast(input):
            dtype = torch.get_autocast_dtype(input.device.type)
            input, *rest = (_cast(t, dtype) for t in (input, *states, *weights))
            states, weights = tuple(rest[: len(states)]), rest[len(states) :]
        backend = _choose(cell, input, states, weights, steps, batch, proj_size > 0)
    if backend == "torch":
        if cell == "lstm":
            return _vendor(_VF.lstm, input, states, weights, layers, batch_first, batch_sizes)
        return _vendor(_VF.gru, input, states[0], weights, layers, batch_first, batch_sizes)
    if batch_sizes is not None:
        return _layers(cell, backend, input, states, weights, layers, batch_sizes)
    if batch_first:
        input = input.transpose(0, 1)
    rows = input.reshape(steps * batch, input.shape[2])
    output, *finals = _layers(cell, backend, rows, states, weights, layers, None)
    output = output.view(steps, batch, output.shape[1])
    return (output.transpose(0, 1) if batch_first else output, *finals)


def _autocast(input: Tensor) -> bool:
    # The meta device has no autocast, and torch raises where it is asked.
    return not input.is_meta and torch.is_autocast_enabled(input.device.type)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    # As torch.autocast has it, which leaves float64 alone.
    wanted = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.to(dtype) if wanted else tensor


def _vendor(
    function: Any,
    input: Tensor,
    hx: Any,
    weights: Sequence[Tensor],
    layers: tuple[bool, int, float, bool, bool],
    batch_first: bool,
    batch_sizes: Tensor | None,
) -> Any:
    if batch_sizes is None:
        return function(input, hx, weights, *layers, batch_first)
    return function(input, batch_sizes, hx, weights, *layers)


def _extent(
    input: Tensor, states: tuple[Tensor, ...], batch_first: bool, batch_sizes: Tensor | None
) -> tuple[int, int]:
    """T and B."""
    if batch_sizes is not None:
        return batch_sizes.shape[0], states[0].shape[1]
    size = input.shape
    return (size[1], size[0]) if batch_first else (size[0], size[1])


def _at_once(steps: int, input: Tensor) -> bool:
    """One step on a CPU keeps nothing on chip: torch's path, and no more Python spent on it."""
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
    # torch's own error, or its result for no rows at all: whatever it says of such a call, we say.
    if input.numel() == 0 or any(_differs(t, input) for t in tensors):
        return "torch"
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
    # torch.jit.trace traces once more, without gradients, and wants the same graph.
    wanted = torch.is_grad_enabled() or torch._C._get_tracing_state() is not None
    return wanted and any(t.requires_grad for t in tensors)


def _transformed(tensors: Sequence[Tensor]) -> bool:
    """Whether a functorch transform or forward-mode differentiation follows one of the tensors."""
    if torch.compiler.is_compiling():
        return False
    if any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors):
        return True
    # Private, but the public unpack_dual costs microseconds for each tensor.
    level = forward_ad._current_level
    return level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def _operation(cell: str, backend: str, tensors: Sequence[Tensor]) -> Callable[..., Any]:
    """The op of a cell; under a transform, which cannot see into it, the reference's arithmetic."""
    if backend == "reference" and _transformed(tensors):
        from fastrnn.kernels import reference

        forward = reference.lstm_forward if cell == "lstm" else reference.gru_forward
        return lambda *args: forward(*args[:-1])
    packet = torch.ops.fastrnn.lstm if cell == "lstm" else torch.ops.fastrnn.gru
    return packet.default


def _layers(
    cell: str,
    backend: str,
    rows: Tensor,
    states: tuple[Tensor, ...],
    weights: Sequence[Tensor],
    layers: tuple[bool, int, float, bool, bool],
    batch_sizes: Tensor | None,
) -> tuple[Tensor, ...]:
    """All layers and directions over rows [N, I]; returns [N, D * H] and the final states."""
    bias, num_layers, dropout, training, bidirectional = layers
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
            first = [state[k] for state in states]
            y, *rest = op(
                rows, *first, w_ih, w_hh, b_ih, b_hh, batch_sizes, direction == 1, save, backend
            )
            outputs.append(y)
            finals.append(tuple(rest[: len(states)]))
        rows = outputs[0] if directions == 1 else torch.cat(outputs, 1)
        if dropout and training and layer < num_layers - 1:
            rows = drop(rows, dropout, training=True)
    if len(finals) == 1:
        return (rows, *(final.unsqueeze(0) for final in finals[0]))
    return (rows, *(torch.stack(final) for final in zip(*finals, strict=True)))


def _misfit(input: Tensor, states: tuple[Tensor, ...], weights: Sequence[Tensor]) -> bool:
    """Whether a cell's sizes disagree."""
    batch, hidden = input.shape[0], weights[1].shape[1]
    wrong = any(state.shape != (batch, hidden) for state in states)
    return wrong or weights[0].shape[1] != input.shape[1]


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One LSTM step: input [B, I], hx two of [B, H]; returns h' and c' [B, H]."""
    if _at_once(1, input):
        return _VF.lstm_cell(input, hx, w_ih, w_hh, b_ih, b_hh)
    found = _step("lstm", input, hx, (w_ih, w_hh, b_ih, b_hh))
    return (found[0], found[1]) if found else _VF.lstm_cell(input, hx, w_ih, w_hh, b_ih, b_hh)


def gru_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> Tensor:
    """One GRU step: input [B, I], hx [B, H]; returns h' [B, H]."""
    if _at_once(1, input):
        return _VF.gru_cell(input, hx, w_ih, w_hh, b_ih, b_hh)
    found = _step("gru", input, (hx,), (w_ih, w_hh, b_ih, b_hh))
    return found[0] if found else _VF.gru_cell(input, hx, w_ih, w_hh, b_ih, b_hh)


def _step(
    cell: str, input: Tensor, states: tuple[Tensor, ...], weights: tuple[Tensor | None, ...]
) -> tuple[Tensor, ...] | None:
    """The states after one step by the chosen backend's op; None if that is torch's cell."""
    if _autocast(input):
        return None
    given = [w for w in weights if w is not None]
    batch = input.shape[0]
    if _misfit(input, states, given):
        return None  # torch's own error
    if (backend := _choose(cell, input, states, given, 1, batch, False)) == "torch":
        return None
    op = _operation(cell, backend, (input, *states, *given))
    save = _needs_gradients((input, *states, *given))
    return op(input, *states, *weights, None, False, save, backend)[1 : 1 + len(states)]

"""``lstm()`` and ``gru()``: a stack of layers over a batch of sequences, on plain tensors.

They take what torch._VF.lstm and torch._VF.gru take, choose a backend, and walk layers and
directions. Padded input is time-major [T, B, I] or, with batch_first, [B, T, I]; packed input is
PackedSequence.data [N, I] with its batch_sizes. The weights are in torch.nn's flat order: for each
layer and direction w_ih, w_hh and, with biases, b_ih, b_hh.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, _VF
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
    if _autocast(input):
        dtype = torch.get_autocast_dtype(input.device.type)
        input, *rest = (_cast(t, dtype) for t in (input, *states, *weights))
        states, weights = tuple(rest[: len(states)]), rest[len(states) :]
    backend = _backend(cell, input, states, weights, batch_first, batch_sizes, proj_size)
    if backend == "torch":
        vendor = _VF.lstm if cell == "lstm" else _VF.gru
        hx = states if cell == "lstm" else states[0]
        if batch_sizes is None:
            return vendor(input, hx, weights, *layers, batch_first)
        return vendor(input, batch_sizes, hx, weights, *layers)
    if batch_sizes is not None:
        return _layers(cell, backend, input, states, weights, layers, batch_sizes)
    if batch_first:
        input = input.transpose(0, 1)
    steps, batch = input.shape[:2]
    rows = input.reshape(steps * batch, input.shape[2])
    output, *finals = _layers(cell, backend, rows, states, weights, layers, None)
    output = output.view(steps, batch, output.shape[1])
    return (output.transpose(0, 1) if batch_first else output, *finals)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _backend(
    cell: str,
    input: Tensor,
    states: tuple[Tensor, ...],
    weights: Sequence[Tensor],
    batch_first: bool,
    batch_sizes: Tensor | None,
    proj_size: int,
) -> str:
    if batch_sizes is not None:
        steps, batch = batch_sizes.shape[0], states[0].shape[1]
    elif batch_first:
        batch, steps = input.shape[:2]
    else:
        steps, batch = input.shape[:2]
    tensors = (input, *states, *weights)
    # torch's own error, or its result for no rows at all: whatever it says of such a call, we say.
    if steps == 0 or batch == 0 or any(_differs(t, input) for t in tensors):
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
        projected=proj_size > 0,
        transformed=_transformed(tensors),
    )
    return backends.choose(call).backend


def _differs(tensor: Tensor, input: Tensor) -> bool:
    return tensor.dtype != input.dtype or tensor.device != input.device


def _needs_gradients(tensors: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _transformed(tensors: Sequence[Tensor]) -> bool:
    """Whether a functorch transform or forward-mode differentiation follows one of the tensors."""
    if torch.compiler.is_compiling():
        return False
    if any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors):
        return True
    # Private, but the public unpack_dual costs microseconds for each tensor.
    level = forward_ad._current_level
    return level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)


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
    op = torch.ops.fastrnn.lstm if cell == "lstm" else torch.ops.fastrnn.gru
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
    return (rows, *(torch.stack(final) for final in zip(*finals, strict=True)))


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One LSTM step: input [B, I], hx two of [B, H]; returns h' and c' [B, H]."""
    if (backend := _cell_backend("LSTM", input, hx, (w_ih, w_hh, b_ih, b_hh))) == "torch":
        return _VF.lstm_cell(input, hx, w_ih, w_hh, b_ih, b_hh)
    save = _needs_gradients([t for t in (input, *hx, w_ih, w_hh, b_ih, b_hh) if t is not None])
    _, h, c, _, _ = torch.ops.fastrnn.lstm(
        input, *hx, w_ih, w_hh, b_ih, b_hh, None, False, save, backend
    )
    return h, c


def gru_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> Tensor:
    """One GRU step: input [B, I], hx [B, H]; returns h' [B, H]."""
    if (backend := _cell_backend("GRU", input, (hx,), (w_ih, w_hh, b_ih, b_hh))) == "torch":
        return _VF.gru_cell(input, hx, w_ih, w_hh, b_ih, b_hh)
    save = _needs_gradients([t for t in (input, hx, w_ih, w_hh, b_ih, b_hh) if t is not None])
    return torch.ops.fastrnn.gru(
        input, hx, w_ih, w_hh, b_ih, b_hh, None, False, save, backend
    )[1]


def _cell_backend(
    cell: str,
    input: Tensor,
    states: tuple[Tensor, ...],
    weights: tuple[Tensor | None, ...],
) -> str:
    """Torch's cell unless another backend is forced: a single step has nothing to keep on chip."""
    if backends.forced_backend() is None:
        return "torch"
    given = [t for t in (*states, *weights) if t is not None]
    if len(input) == 0 or any(_differs(t, input) for t in given) or _autocast(input):
        return "torch"
    call = backends.Call(
        cell=cell,
        device=input.device.type,
        dtype=input.dtype,
        steps=1,
        batch=len(input),
        input_size=input.shape[1],
        hidden_size=states[0].shape[1],
        training=_needs_gradients([input, *given]),
        transformed=_transformed([input, *given]),
    )
    return backends.choose(call).backend


def _autocast(input: Tensor) -> bool:
    return torch.is_autocast_enabled(input.device.type)

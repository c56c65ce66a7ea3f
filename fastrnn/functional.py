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

from fastrnn import choice, eager, inference, layer_ops, projections
from fastrnn._compat import transforms_active
from fastrnn.choice import VENDOR
from fastrnn.gradients import differentiable
from fastrnn.kernels.contract import CELLS


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
        batch_sizes: those of a PackedSequence, int64 [T] on the CPU; None for padded input.
        proj_size: size of the projected h; 0 for none.

    Returns:
        output [T, B, D * H] ([B, T, D * H] with ``batch_first``, [N, D * H] if packed), and h_n and
        c_n with the shapes of hx. A projected output has proj_size in place of H.

    Raises:
        RuntimeError: a forced backend does not support the call, or torch.lstm raises it.
    """
    options = StackOptions(bias, num_layers, dropout, training, bidirectional)
    return run_stack(
        "lstm", input, hx, weights, options, batch_first, batch_sizes, torch.lstm, proj_size
    )


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
        output, as from :func:`lstm`, and h_n with the shape of hx.
    """
    options = StackOptions(bias, num_layers, dropout, training, bidirectional)
    return run_stack("gru", input, hx, weights, options, batch_first, batch_sizes, torch.gru)


def run_stack(
    cell: str,
    input: Tensor,
    hx: Any,
    weights: Sequence[Tensor],
    options: tuple[bool, int, float, bool, bool],
    batch_first: bool,
    batch_sizes: Tensor | None,
    vendor: Callable[..., Any],
    proj_size: int = 0,
) -> Any:
    """Runs :func:`lstm` or :func:`gru`.

    Args:
        options: a :class:`StackOptions`, or a plain tuple of its fields.
        vendor: the function of torch that runs the same call: torch.lstm or torch.gru.

    The other arguments are those of :func:`lstm` and :func:`gru`.
    """
    if cell == "gru":
        states: tuple[Tensor, ...] = (hx,)
    elif _is_pair(hx):
        states = tuple(hx)
    else:  # torch raises its own error
        return _vendor(vendor, input, hx, weights, options, batch_first, batch_sizes)
    bias, num_layers, dropout, training, bidirectional = options
    ordinary = choice.is_ordinary()
    if proj_size and not ordinary and choice.leaves_projections_to_torch(input):
        return _vendor(vendor, input, states, weights, options, batch_first, batch_sizes)
    if ordinary and not (dropout and training and num_layers > 1):
        results = inference.run(
            cell, input, states, weights, bias, num_layers, bidirectional, batch_first, batch_sizes
        )
        if results is not None:
            return tuple(results)
    sets = num_layers * (2 if bidirectional else 1)
    if len(weights) != sets * (2 + 2 * bias + (proj_size > 0)):  # torch raises its own error
        return _vendor(vendor, input, hx, weights, options, batch_first, batch_sizes)
    if batch_sizes is not None:
        steps, batch, batch_first = batch_sizes.shape[0], states[0].shape[1], False
    else:
        size = input.shape
        steps, batch = (size[1], size[0]) if batch_first else (size[0], size[1])
    backend, transformed, save, tensors = VENDOR, False, False, (input, *states, *weights)
    in_one_op = ordinary and input.is_cpu and inference.is_ready()
    if steps != 1 or in_one_op or choice.single_step_needs_choice(input, ordinary):
        if not ordinary and choice.under_autocast(input):
            dtype = torch.get_autocast_dtype(input.device.type)
            input, *rest = (_cast(t, dtype) for t in (input, *states, *weights))
            states, weights = tuple(rest[: len(states)]), rest[len(states) :]
        tensors = (input, *states, *weights)
        transformed = not ordinary and choice.is_transformed(tensors)
        needed = choice.needs_gradients(tensors)
        save = needed if ordinary else choice.saves(training, tensors)
        call = choice.call_of(
            cell, input, states, steps, batch, needed, transformed, proj_size > 0,
            batch_sizes is not None, in_one_op,
        )  # fmt: skip
        backend = choice.backend_of(call, tensors, leave_open=not save)
    if backend == VENDOR:
        hx = states if cell == "lstm" else states[0]
        return _vendor(vendor, input, hx, weights, options, batch_first, batch_sizes)
    direct = save and (ordinary or choice.is_direct()) and choice.are_plain(tensors)
    if direct and proj_size and layer_ops.runs(backend, input):
        op = projections.trained
    else:
        op = eager.operation(cell) if direct else _operation(cell, transformed)
        if proj_size:
            op = projections.projected(op)
    tail = (save, backend, batch_first)
    return _layers(op, input, states, weights, options, batch_sizes, tail)


def _is_pair(hx: Any) -> bool:
    """Whether hx is a tuple or list of two, as an LSTM needs."""
    return isinstance(hx, tuple | list) and len(hx) == 2


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    # Like torch.autocast, which leaves float64 alone.
    wanted = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.to(dtype) if wanted else tensor


def _vendor(
    function: Any,
    input: Tensor,
    hx: Any,
    weights: Sequence[Tensor],
    options: tuple[bool, int, float, bool, bool],
    batch_first: bool,
    batch_sizes: Tensor | None,
) -> Any:
    if batch_sizes is None:
        return function(input, hx, weights, *options, batch_first)
    return function(input, batch_sizes, hx, weights, *options)


def _operation(cell: str, transformed: bool) -> Callable[..., tuple[Tensor, ...]]:
    """The op of a cell, or differentiable steps for transforms, which cannot see into an op."""
    if not transformed:
        return (torch.ops.fastrnn.lstm if cell == "lstm" else torch.ops.fastrnn.gru).default
    forward = differentiable(CELLS[cell])

    def steps(*args: Any) -> tuple[Tensor, ...]:
        *tensors, reverse, _save, _backend, batch_first = args
        return forward(*tensors, reverse, batch_first)

    return steps


def _layers(
    op: Callable[..., tuple[Tensor, ...]],
    x: Tensor,
    states: tuple[Tensor, ...],
    weights: Sequence[Tensor],
    options: tuple[bool, int, float, bool, bool],
    batch_sizes: Tensor | None,
    tail: tuple[bool, str, bool],
) -> tuple[Tensor, ...]:
    """All layers and directions; returns the output and the final states."""
    bias, num_layers, dropout, training, bidirectional = options
    directions = 2 if bidirectional else 1
    per_direction = len(weights) // (num_layers * directions)
    if num_layers == directions == 1:  # no state has to be split or joined
        w = weights if bias else _without_biases(weights)
        return op(x, *states, *w, batch_sizes, False, *tail)[: 1 + len(states)]
    save, backend, batch_first = tail
    swapped = batch_first and bidirectional  # two directions are concatenated time-major
    if swapped:
        x, tail = x.transpose(0, 1), (save, backend, False)
    initial = list(zip(*(state.unbind(0) for state in states), strict=True))
    finals: list[tuple[Tensor, ...]] = []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            k = layer * directions + direction
            w = weights[k * per_direction : (k + 1) * per_direction]
            w = w if bias else _without_biases(w)
            y, *rest = op(x, *initial[k], *w, batch_sizes, direction == 1, *tail)
            outputs.append(y)
            finals.append(tuple(rest[: len(states)]))
        x = outputs[0] if directions == 1 else torch.cat(outputs, -1)
        if dropout and training and layer < num_layers - 1:
            x = drop(x, dropout, training=True)
    if swapped and (choice.in_graph() or transforms_active()):
        # Graphs turn transpose_ into a view, and under vmap it loses a tangent's axes.
        x = x.transpose(0, 1).contiguous()
    elif swapped:
        x.transpose_(0, 1)  # in place, because a view cannot be detached in place
    return (x, *(torch.stack(final) for final in zip(*finals, strict=True)))


def _without_biases(weights: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """The weights of a layer that has no biases, in the order in which the ops take them."""
    w_ih, w_hh, *w_hr = weights
    return (w_ih, w_hh, None, None, *w_hr)


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
    if _is_pair(hx):
        weights, ordinary = (w_ih, w_hh, b_ih, b_hh), choice.is_ordinary()
        if ordinary:
            states = inference.step("lstm", input, tuple(hx), weights)
            if states is not None:
                return states[0], states[1]
        if choice.single_step_needs_choice(input, ordinary):
            return _step("lstm", input, hx, weights)
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
    weights, ordinary = (w_ih, w_hh, b_ih, b_hh), choice.is_ordinary()
    if ordinary:
        states = inference.step("gru", input, (hx,), weights)
        if states is not None:
            return states[0]
    if choice.single_step_needs_choice(input, ordinary):
        return _step("gru", input, (hx,), weights)[0]
    return torch.gru_cell(input, hx, w_ih, w_hh, b_ih, b_hh)


def _step(cell: str, input: Tensor, states: tuple[Tensor, ...], weights: tuple[Any, ...]) -> Any:
    """The states after one step, by the chosen backend."""
    if choice.under_autocast(input):
        dtype = torch.get_autocast_dtype(input.device.type)
        input, states = _cast(input, dtype), tuple([_cast(state, dtype) for state in states])
        weights = tuple([w if w is None else _cast(w, dtype) for w in weights])
    tensors = (input, *states, *(w for w in weights if w is not None))
    transformed = choice.is_transformed(tensors)
    needed = choice.needs_gradients(tensors)
    if _sizes_disagree(input, states, weights):
        backend = VENDOR  # torch raises its own error
    else:
        call = choice.call_of(cell, input, states, 1, input.shape[0], needed, transformed)
        # Not left open: compilers fuse torch's single steps.
        backend = choice.backend_of(call, tensors, leave_open=False)
    if backend == VENDOR:
        if cell == "lstm":
            return torch.lstm_cell(input, states, *weights)
        return (torch.gru_cell(input, states[0], *weights),)
    op = _operation(cell, transformed)
    return op(input, *states, *weights, None, False, needed, backend, False)[1 : 1 + len(states)]


def _sizes_disagree(input: Tensor, states: tuple[Tensor, ...], weights: tuple[Any, ...]) -> bool:
    """Whether a cell's input, states and weights do not fit together."""
    batch, hidden = input.shape[0], weights[1].shape[1]
    wrong = any(state.shape != (batch, hidden) for state in states)
    return wrong or weights[0].shape[1] != input.shape[1]

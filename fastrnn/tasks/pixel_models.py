"""Which pixel models a native loop can run, and which ones can continue from a state."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from fastrnn._compat import has_forward_hooks, own_parameters
from fastrnn.nn import GRU, LSTM
from fastrnn.tasks.models import PixelModel

_GATES: dict[Any, int] = {LSTM: 4, nn.LSTM: 4, GRU: 3, nn.GRU: 3}
_FORWARDS: dict[Any, Any] = {kind: kind.forward for kind in (PixelModel, nn.Linear, *_GATES)}
_REMEDY = "use model(x) on whole images"


def native_weights(model: PixelModel) -> list[Tensor] | None:
    """The weights that a native loop takes, if it computes exactly what a call of the model does.

    That is a PixelModel of unidirectional LSTM or GRU layers with biases and an nn.Linear(H, 1)
    with bias, whose parameters are what they were built as, and nothing that changes a forward:
    hooks, parametrizations, pruning, a method of one's own, autocast or dropout.

    Returns:
        w_ih, w_hh, b_ih and b_hh of each layer, then the head's weight and bias, all of one dtype
        on one device; None if the model's own modules have to be called.
    """
    recurrent, head = model.recurrent, model.head
    gates = _GATES.get(type(recurrent))
    if (
        gates is None
        or type(model) is not PixelModel
        or type(head) is not nn.Linear
        or any(map(_is_changed, (model, recurrent, head)))
        or not recurrent.bias
        or recurrent.bidirectional
        or recurrent.batch_first
        or recurrent.proj_size
        or (recurrent.dropout and recurrent.training and recurrent.num_layers > 1)
    ):
        return None
    own = {**own_parameters(recurrent), **own_parameters(head)}
    shapes = _shapes(gates, recurrent.hidden_size, recurrent.num_layers)
    if len(own) != len(shapes):
        return None
    weights: list[Tensor] = []
    dtype, device = None, None
    for name, shape in shapes:
        weight = own.get(name)
        if type(weight) is not nn.Parameter:  # another class of tensors may compute its values
            return None
        if dtype is None:
            dtype, device = weight.dtype, weight.device
        if weight.shape != shape or weight.dtype != dtype or weight.device != device:
            return None
        if weight.is_neg():  # its memory holds -weight
            return None
        weights.append(weight)
    if device is None or device.type == "meta" or torch.is_autocast_enabled(device.type):
        return None
    return weights


def _is_changed(module: nn.Module) -> bool:
    """Whether a call of a module may compute anything but the forward of its class as imported."""
    kind = type(module)
    return (
        kind.forward is not _FORWARDS[kind]
        or "forward" in vars(module)
        or has_forward_hooks(module)
    )


@functools.cache
def _shapes(gates: int, hidden_size: int, layers: int) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the parameters of layers that read one feature, and of a head."""
    rows, shapes = gates * hidden_size, []
    for layer in range(layers):
        shapes += [
            (f"weight_ih_l{layer}", (rows, hidden_size if layer else 1)),
            (f"weight_hh_l{layer}", (rows, hidden_size)),
            (f"bias_ih_l{layer}", (rows,)),
            (f"bias_hh_l{layer}", (rows,)),
        ]
    return [*shapes, ("weight", (1, hidden_size)), ("bias", (1,))]


def has_own_forward(model: nn.Module) -> bool:
    """Whether a call of a model is anything but its layers, then its head."""
    return "forward" in vars(model) or type(model).forward is not _FORWARDS[PixelModel]


def check_steps(model: PixelModel) -> None:
    """Raises ValueError unless a model can be continued from a state.

    Hooks and a layer's or head's own forward are no obstacle: a call for some of an image's steps
    runs them for those steps.
    """
    if has_own_forward(model):
        raise ValueError(
            f"model: {type(model).__qualname__} with a forward of its own given, PixelModel's "
            f"forward expected, which can continue from a state: {_REMEDY}, or move the change to "
            "a hook or to the class of model.recurrent or model.head"
        )
    recurrent = model.recurrent
    kind = type(recurrent).__qualname__
    for name in ("num_layers", "hidden_size", "mode"):
        if not hasattr(recurrent, name):
            raise ValueError(
                f"model.recurrent: {kind} without {name} given, layers with the attributes of "
                f"torch.nn.LSTM or GRU expected: {_REMEDY}"
            )
    if getattr(recurrent, "bidirectional", False):
        raise ValueError(
            f"model.recurrent: bidirectional {kind} given, one direction expected, for the other "
            "one has read the pixels that are to be predicted: build it with bidirectional=False"
        )
    if getattr(recurrent, "batch_first", False):
        raise ValueError(
            f"model.recurrent: {kind} with batch_first=True given, batch_first=False expected, for "
            "the model's input is [T, B, 1]: build it with batch_first=False"
        )


def like(module: nn.Module) -> Tensor:
    """A tensor of a module's dtype and device: its first parameter, if it has any."""
    own = next(iter(own_parameters(module).values()), None)
    first = own if own is not None else next(module.parameters(), None)
    return torch.empty(0) if first is None else first

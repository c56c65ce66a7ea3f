"""``freeze()``: LSTM and GRU layers for deployment on CPUs, whose weights are packed once.

A call of an ordinary layer packs its weights, because they may have changed since the last call. A
frozen layer keeps them packed, and packs them again when it sees that they have changed:

- Each call compares the layer's parameters with those that were packed, by identity and by torch's
  count of changes in place.
- Writes to ``parameter.data`` are not counted by torch. The parameters of a frozen layer are
  therefore of a class whose ``data`` is counted.
"""

from __future__ import annotations

import logging
import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn import _compat, choice, functional, inference, tuning
from fastrnn._compat import own_parameters
from fastrnn.kernels import cpu, cpu_pool, stack
from fastrnn.kernels.contract import CELLS
from fastrnn.nn import GRU, LSTM, _Recurrent

_Module = TypeVar("_Module", bound=nn.Module)
_log = logging.getLogger("fastrnn")

_GET_DATA, _SET_DATA = Tensor.data.__get__, Tensor.data.__set__  # type: ignore[attr-defined]
_LARGE = 1 << 20  # bytes: an output of this size or more gets its memory from the pool
_stack = torch.ops.fastrnn.frozen_stack.default
_packed_stack = torch.ops.fastrnn.frozen_packed_stack.default
_OPTIONS = frozenset(nn.RNNBase.__constants__)  # how a layer is built
_THAW = "fastrnn.thaw(model) makes it an ordinary layer again"


class WatchedParameter(nn.Parameter):
    """A parameter of a frozen layer, which also counts changes made through its ``data``."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Treats all functions as an ordinary parameter does, except reading and writing data."""
        if func == _GET_DATA:
            func = Tensor.detach  # the same memory and, unlike data, the same counter
        result = super().__torch_function__(func, types, args, kwargs or {})
        if func == _SET_DATA:
            torch.autograd.graph.increment_version(args[0])
        return result


class _Packed:
    """Packed weights, and what it takes to tell whether the parameters have changed since.

    Attributes:
        parameters: in the order of the layer's dict of parameters.
        aliases: plain tensors that share the parameters' memory, in torch.nn's flat order.
        weights: what the ops take; None if calls must go through fastrnn.functional.
        options: how the stack is built, as the number that the ops take.
        level: the instruction set that the weights are packed for.
        zeros: the last batch size, and initial states for it.
    """

    def __init__(self, layer: _Recurrent) -> None:
        self.aliases = [_watched(layer, name).detach() for name in layer._flat_weights_names]
        self.parameters = tuple(own_parameters(layer).values())
        # Read before packing, so that a change during packing is noticed.
        self.versions = _compat.versions(self.aliases)
        cell = CELLS[layer.mode.lower()]
        count = 4 if layer.bias else 2
        total = layer.num_layers * (2 if layer.bidirectional else 1) * count
        shape = (cell.gates * layer.hidden_size, layer.input_size)
        fits = len(self.aliases) == total and self.aliases[0].shape == shape
        fits = fits and not layer.proj_size and Tensor not in map(type, self.parameters)
        none = [None] * (4 - count)
        contiguous = [alias.contiguous() for alias in self.aliases]
        sets = [[*contiguous[i : i + count], *none] for i in range(0, len(contiguous), count)]
        self.weights: Tensor | None = None
        self.level = ""
        theirs = tuning.beats_packed_weights(self.aliases[0].dtype, layer.hidden_size)
        if fits and not theirs and inference.load_error() is None:
            self.level = cpu.info()["level"]
            self.weights = cpu.prepack(cell, sets)
        self.options = stack.options(
            layer.mode == "GRU", layer.bias, layer.bidirectional, layer.batch_first,
            layer.num_layers,
        )  # fmt: skip
        self.sets = len(sets)
        self.batch_axis = 0 if layer.batch_first else 1
        self.hidden_size = layer.hidden_size
        self.zeros: tuple[int, Tensor | None] = (-1, None)

    def is_current(self, own: dict[str, nn.Parameter | None]) -> bool:
        """Whether the parameters are the same objects and have not changed."""
        return (
            len(own) == len(self.parameters)
            and all(map(operator.is_, own.values(), self.parameters))
            and _compat.versions(self.aliases) == self.versions
        )

    def zero_states(self, input: Any) -> Tensor:
        """Initial states for a padded batch; they must not be changed or handed to the caller."""
        batch = input.shape[self.batch_axis]
        known, zeros = self.zeros
        if zeros is None or known != batch:
            shape = (self.sets, batch, self.hidden_size)
            zeros = torch.zeros(shape, dtype=self.aliases[0].dtype, device=self.aliases[0].device)
            self.zeros = (batch, zeros)
        return zeros

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copied layer packs its own parameters."""

    def __reduce__(self) -> tuple[Any, ...]:
        """A loaded layer packs its weights for the machine that it is on."""
        return (type(None), ())


def _watched(layer: nn.Module, name: str) -> nn.Parameter:
    """A layer's parameter, after making it a :class:`WatchedParameter` in place.

    Raises:
        RuntimeError: a frozen layer cannot have such a parameter.
    """
    own = own_parameters(layer)
    parameter = own.get(name)
    if (problem := _problem(name, parameter)) is not None:
        raise RuntimeError(f"a frozen layer cannot run: {problem}; {_THAW}")
    assert parameter is not None
    if type(parameter) is Tensor:  # torch.func.functional_call's, for one call
        return parameter
    if parameter.is_inference():  # torch does not count changes to such tensors
        with torch.inference_mode(False):
            parameter = WatchedParameter(parameter.detach().clone(), parameter.requires_grad)
        setattr(layer, name, parameter)
    parameter.__class__ = WatchedParameter
    return parameter


def _problem(name: str, parameter: nn.Parameter | None) -> str | None:
    """Why a parameter cannot be packed; None if it can."""
    if parameter is None:
        return f"{name} is parametrised or pruned; make it a parameter first"
    kind = type(parameter)
    if kind not in (nn.Parameter, WatchedParameter, Tensor):
        return f"{name} is a {kind.__qualname__}; expected torch.nn.Parameter"
    if not parameter.is_cpu:
        return f"{name} is on {parameter.device}; frozen layers run on CPUs"
    if parameter.dtype not in cpu.DTYPES:
        known = ", ".join(str(dtype) for dtype in cpu.DTYPES)
        return f"{name} is of {parameter.dtype}; frozen layers take {known}"
    return None


class _Frozen(_Recurrent):
    """What FrozenLSTM and FrozenGRU share."""

    _packed: _Packed | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """As in any module; after another option is set, the next call packs anew."""
        super().__setattr__(name, value)
        if name in _OPTIONS:
            self._packed = None

    def _current(self) -> _Packed:
        """The packed weights, packed again if a parameter has changed."""
        packed = self._packed
        if packed is None or not packed.is_current(own_parameters(self)):
            packed = self._packed = _Packed(self)
        return packed

    def _layer_weights(self) -> list[Tensor]:
        return self._current().aliases

    def _fast(self, packed: _Packed, input: Any) -> bool:
        """Whether this is the usual call: a padded batch, without gradients, in eval mode."""
        return (
            type(input) is Tensor
            and input.dim() == 3
            and not self.training
            and packed.weights is not None
            and not torch.is_grad_enabled()
            and choice.is_ordinary()
        )

    def _any(
        self, vendor: Callable[..., Any], input: Tensor | PackedSequence, hx: Any
    ) -> tuple[Any, Any]:
        """Runs any call, with all checks; raises what torch.nn raises."""
        if self.training:
            raise RuntimeError(
                f"this {type(self).__name__} is in training mode, but frozen layers are for "
                f"inference: call model.eval(), or {_THAW}"
            )
        return self._run(vendor, input, hx)

    def _run_stack(
        self,
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
        """As functional.run_stack, but with the packed weights where they can be used."""
        tensors = hx if isinstance(hx, tuple) else (hx,)
        followed = (input, *tensors, *own_parameters(self).values())
        if torch.is_grad_enabled() and any(t.requires_grad for t in followed if t is not None):
            raise RuntimeError(
                f"this call of a {type(self).__name__} needs gradients, but frozen layers have "
                f"none: call it under torch.inference_mode() or torch.no_grad(), or {_THAW}"
            )
        if choice.is_ordinary() and choice.are_plain((input, *tensors)):
            results = self._run_native(input, tensors, batch_sizes)
            if results:
                return tuple(results)
        return functional.run_stack(
            cell, input, hx, weights, options, batch_first, batch_sizes, vendor, proj_size
        )

    def _run_native(
        self, rows: Tensor, states: tuple[Tensor, ...], batch_sizes: Tensor | None
    ) -> list[Tensor]:
        """Output and final states; empty if the library cannot run the call."""
        packed = self._current()
        if packed.weights is None:
            return []
        if packed.level != cpu.info()["level"]:
            packed = self._packed = _Packed(self)
        assert packed.weights is not None
        output: list[Tensor] = []
        width = self.hidden_size * (2 if self.bidirectional else 1)
        if rows.numel() // rows.shape[-1] * width * rows.element_size() >= _LARGE:
            if self.batch_first and batch_sizes is None:  # memory is time-major
                batch, steps = rows.shape[:2]
                output = [cpu_pool.empty((steps, batch, width), rows).transpose(0, 1)]
            else:
                output = [cpu_pool.empty((*rows.shape[:-1], width), rows)]
        results: list[Tensor]
        if batch_sizes is None:
            results = _stack(rows, states, packed.weights, output, packed.options)
        else:
            results = _packed_stack(
                rows, batch_sizes, states, packed.weights, output, packed.options
            )
        return output + results if results else []


class FrozenLSTM(_Frozen, LSTM):
    """An LSTM for inference on CPUs, with packed weights: see :func:`freeze`."""

    @_compat.not_compiled
    def forward(
        self, input: Tensor | PackedSequence, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
        """Returns ``output, (h_n, c_n)``; see :class:`fastrnn.LSTM`."""
        packed = self._current()
        if self._fast(packed, input):
            if hx is None:
                zeros = packed.zero_states(input)
                hx = (zeros, zeros)
            if type(hx) is tuple and len(hx) == 2 and type(hx[0]) is type(hx[1]) is Tensor:
                results = _stack(input, hx, packed.weights, (), packed.options)
                if results:
                    output, h_n, c_n = results
                    return output, (h_n, c_n)
        return self._any(torch.lstm, input, hx)


class FrozenGRU(_Frozen, GRU):
    """A GRU for inference on CPUs, with packed weights: see :func:`freeze`."""

    @_compat.not_compiled
    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Returns ``output, h_n``; see :class:`fastrnn.GRU`."""
        packed = self._current()
        if self._fast(packed, input):
            if hx is None:
                hx = packed.zero_states(input)
            if type(hx) is Tensor:
                results = _stack(input, (hx,), packed.weights, (), packed.options)
                if results:
                    output, h_n = results
                    return output, h_n
        return self._any(torch.gru, input, hx)


_FROZEN: dict[type[nn.Module], type[_Frozen]] = {
    nn.LSTM: FrozenLSTM,
    LSTM: FrozenLSTM,
    FrozenLSTM: FrozenLSTM,
    nn.GRU: FrozenGRU,
    GRU: FrozenGRU,
    FrozenGRU: FrozenGRU,
}
_THAWED: dict[type[nn.Module], type[nn.Module]] = {FrozenLSTM: LSTM, FrozenGRU: GRU}


def freeze(model: _Module) -> _Module:
    """Makes every LSTM and GRU in a model, torch.nn's or fastrnn's, a frozen layer, in place.

    A frozen layer is for inference on CPUs in float32, float64 or bfloat16. Its weights are packed
    once for the processor's kernels, and a call runs all layers and directions at once. Arguments,
    results, errors, state_dict, copies and pickles stay those of the original layer. Its numbers
    are those of fastrnn's layer. :func:`thaw` undoes it.

    If weights change later, the next call packs them again, however they changed: in place, by
    ``load_state_dict``, ``.to()``, an optimiser, a new parameter, or a write to
    ``parameter.data``. To notice the last of these, the parameters become
    :class:`WatchedParameter`. Writes to their memory by other means are not noticed: through NumPy
    arrays, through tensors that were taken from ``parameter.data`` before it was frozen, by other
    processes, and through ``.data`` of a view or of ``parameter.detach()``.

    A call raises RuntimeError in training mode, or if it needs gradients. Calls that are traced,
    exported, transformed, under autocast, or made with another backend forced give the right
    numbers, but use no packed weights. Under torch.compile, the layer runs outside of the graph.

    Cells, torch.nn.RNN and subclasses are left alone, the latter two with a warning. The logger
    ``fastrnn`` reports at level INFO what was changed.

    Args:
        model: any module in eval mode; it may itself be a layer.

    Returns:
        The same model.

    Raises:
        ValueError: a layer is in training mode, has a projection, is not on the CPU, or has
            another dtype. In that case nothing has been changed.
    """
    layers: list[tuple[str, nn.Module]] = []
    left = []
    for name, module in model.named_modules():
        where = f"{name or 'the model itself'} ({type(module).__qualname__})"
        if type(module) in _FROZEN:
            _refuse_unfit(where, module)
            layers.append((where, module))
        elif isinstance(module, nn.RNNBase):
            left.append(where)
    for _, module in layers:
        module.__class__ = _FROZEN[type(module)]
        assert isinstance(module, _Frozen)
        module._current()
    changed = ", ".join(where for where, _ in layers)
    _log.info("fastrnn.freeze changed %d modules: %s", len(layers), changed)
    if left:
        warnings.warn(
            f"fastrnn.freeze left {', '.join(left)} alone: it takes LSTM and GRU of torch.nn and "
            "fastrnn without parametrisations, and a subclass may have its own forward method",
            stacklevel=2,
        )
    return model


def _refuse_unfit(where: str, module: nn.Module) -> None:
    """Raises ValueError for a layer that cannot be frozen."""
    assert isinstance(module, nn.RNNBase)
    problem = None
    if module.training:
        problem = "it is in training mode; call model.eval() first"
    elif module.proj_size:
        problem = "proj_size > 0 is not supported"
    else:
        own = own_parameters(module)
        found = (_problem(name, own.get(name)) for name in module._flat_weights_names)
        problem = next((each for each in found if each is not None), None)
    if problem is not None:
        raise ValueError(f"fastrnn.freeze cannot freeze {where}: {problem}")


def thaw(model: _Module) -> _Module:
    """Undoes :func:`freeze`: makes every frozen layer of a model fastrnn's LSTM or GRU, in place.

    Args:
        model: any module; it may itself be a layer.

    Returns:
        The same model.
    """
    for module in model.modules():
        if type(module) not in _THAWED:
            continue
        module.__class__ = _THAWED[type(module)]
        vars(module).pop("_packed", None)
        for parameter in module.parameters(recurse=False):
            if type(parameter) is WatchedParameter:
                parameter.__class__ = nn.Parameter  # type: ignore[assignment]
    return model

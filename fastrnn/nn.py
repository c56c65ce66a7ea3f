"""Drop-in torch.nn.LSTM, GRU, LSTMCell and GRUCell.

Constructors, parameters, state_dict, arguments, shapes and errors are torch.nn's: see its
documentation. The classes inherit all of these from torch.nn.RNNBase and RNNCellBase. They do not
extend torch.nn.LSTM and GRU, because torch.compile refuses to trace instances of those.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn import functional
from fastrnn._compat import is_tracing, own_parameters


def _is_symbolic(input: Any) -> bool:
    """Whether torch.fx is tracing the call."""
    return type(input) is fx.Proxy


class _DropIn(nn.Module):
    """What the four classes share."""

    torch_class: ClassVar[type[nn.Module]]

    def __prepare_scriptable__(self) -> nn.Module:
        """What torch.jit.script compiles instead: torch.nn's module with the same weights."""
        twin = copy.copy(self)
        twin.__class__ = self.torch_class  # type: ignore[assignment]
        return twin

    def _leaf(self, *args: Any) -> Any:
        """A leaf node in torch.fx's graph; torch.fx treats torch.nn's layers in the same way."""
        tracer = args[0].tracer
        return tracer.create_proxy("call_module", tracer.path_of_module(self), args, {})


class _Recurrent(_DropIn, nn.RNNBase):
    """What LSTM and GRU share: packed and unbatched input, default states, torch's checks."""

    _run_stack = staticmethod(functional.run_stack)

    def _run(
        self, vendor: Callable[..., Any], input: Tensor | PackedSequence, hx: Any
    ) -> tuple[Any, Any]:
        """The output and the final states; ``vendor`` is torch.lstm or torch.gru."""
        if _is_symbolic(input):
            return self._leaf(input, hx)
        weights = self._layer_weights()
        rows, states, batch_sizes, batched = self._prepare(input, hx, weights[0].dtype)
        # Positional arguments, because keywords would cost half a microsecond.
        output, *final = self._run_stack(
            "lstm" if self.mode == "LSTM" else "gru", rows, states, weights,
            (self.bias, self.num_layers, self.dropout, self.training, self.bidirectional),
            self.batch_first, batch_sizes, vendor, self.proj_size,
        )  # fmt: skip
        if not batched:
            output, final = (
                output.squeeze(0 if self.batch_first else 1),
                [s.squeeze(1) for s in final],
            )
        h_n: Any = tuple(final) if self.mode == "LSTM" else final[0]
        if isinstance(input, PackedSequence):
            packed = PackedSequence(
                output, input.batch_sizes, input.sorted_indices, input.unsorted_indices
            )
            return packed, self.permute_hidden(h_n, input.unsorted_indices)
        return output, h_n

    def _prepare(
        self, input: Tensor | PackedSequence, hx: Any, dtype: torch.dtype
    ) -> tuple[Any, ...]:
        """Input with a batch axis, states in the sorted order, batch_sizes, and whether batched."""
        batched, batch_sizes = True, None
        batch: Any
        if isinstance(input, PackedSequence):
            input, batch_sizes, indices, _ = input
            compiling = torch.compiler.is_compiling()
            # A trace keeps the tensor, so that its graph takes batches of any size.
            batch = int(batch_sizes[0]) if compiling or not is_tracing() else batch_sizes[0]
        else:
            indices = None
            if input.dim() not in (2, 3):
                raise ValueError(
                    f"{self.mode}: Expected input to be 2D or 3D, got {input.dim()}D instead"
                )
            batched = input.dim() == 3
            if not batched:
                input = input.unsqueeze(0 if self.batch_first else 1)
            batch = input.size(0) if self.batch_first else input.size(1)
        if hx is None:
            fits = input.size(-1) == self.input_size and input.dtype == dtype
            if not fits or batch_sizes is not None:  # torch's check takes a microsecond
                self.check_input(input, batch_sizes)
            rows = self.num_layers * (2 if self.bidirectional else 1)
            h = input.new_zeros((rows, batch, self.proj_size or self.hidden_size))
            c = h if not self.proj_size else input.new_zeros((rows, batch, self.hidden_size))
            hx = (h, c) if self.mode == "LSTM" else h
        else:
            if batch_sizes is None:
                hx = self._batched_states(hx, batched)
            hx = self.permute_hidden(hx, indices)
            if batch_sizes is None or not torch.compiler.is_compiling():
                self.check_forward_args(input, hx, batch_sizes)
            else:  # a graph does not know the values in batch_sizes: the ops check them
                self.check_input(input, batch_sizes)
        return input, hx, batch_sizes, batched

    def _layer_weights(self) -> list[Tensor]:
        """The weights in torch.nn's flat order, as they are now."""
        names = self._flat_weights_names
        if torch.compiler.is_compiling():  # follows attributes, not weak references to parameters
            return [getattr(self, name) for name in names]
        # torch's own test for changes looks up each weight twice through Module.__getattr__, which
        # costs as much as a small call.
        own = own_parameters(self)
        weights = cast(list[Tensor], self._flat_weights)
        if all(map(operator.is_, weights, map(own.get, names))):
            return weights
        # A parameter was replaced, the user set the list, or weights are parametrised or pruned.
        # Such weights are recomputed at each call, as in torch.
        self._update_flat_weights()
        weights = cast(list[Tensor], self._flat_weights)
        if not all(name in own for name in names):  # tensors with a graph cannot be copied
            self._flat_weights = [w.detach() for w in weights]
        return weights

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """Raises what torch.nn.RNNBase raises for input that does not fit."""
        if not torch.compiler.is_compiling():
            super().check_input(input, batch_sizes)
            return
        # torch's check reads _flat_weights, which torch.compile does not follow. The dtype is
        # checked when the layer runs.
        dim = 2 if batch_sizes is not None else 3
        if input.dim() != dim:
            raise RuntimeError(f"input must have {dim} dimensions, got {input.dim()}")
        if self.input_size != input.size(-1):
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, "
                f"got {input.size(-1)}"
            )

    def _batched_states(self, hx: Any, batched: bool) -> Any:
        """The states with a batch axis."""
        raise NotImplementedError

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # _flat_weights is derived. In a parametrised layer it holds tensors with a graph, which
        # cannot be copied.
        replica = self.__new__(type(self))
        memo[id(self)] = replica
        derived = ("_flat_weights", "_flat_weight_refs")
        own = {name: value for name, value in vars(self).items() if name not in derived}
        vars(replica).update(copy.deepcopy(own, memo))
        replica._init_flat_weights()
        return replica


class LSTM(_Recurrent):
    """torch.nn.LSTM, faster.

    ``LSTM(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, proj_size=0, device=None, dtype=None)``

    ``forward(input, (h_0, c_0)=zeros)`` takes input [T, B, I], [B, T, I] with ``batch_first``,
    [T, I], or a PackedSequence, and returns ``output, (h_n, c_n)``. Shapes, parameters, equations
    and errors: torch.nn.LSTM.
    """

    torch_class = nn.LSTM

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("LSTM", *args, **kwargs)

    # torch.nn.LSTM's own methods, which need only what RNNBase provides.
    get_expected_cell_size: Any = nn.LSTM.get_expected_cell_size
    check_forward_args: Any = nn.LSTM.check_forward_args
    permute_hidden: Any = nn.LSTM.permute_hidden

    def _batched_states(self, hx: tuple[Tensor, Tensor], batched: bool) -> tuple[Tensor, Tensor]:
        expected = 3 if batched else 2
        if hx[0].dim() != expected or hx[1].dim() != expected:
            kind = "batched 3-D" if batched else "unbatched 2-D"
            raise RuntimeError(
                f"For {kind} input, hx and cx should also be {expected}-D but got "
                f"({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
            )
        return hx if batched else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """Raises what torch.nn.LSTM raises; torch.lstm checks the dtype of packed input."""
        if batch_sizes is None or input.dtype == self.weight_ih_l0.dtype:
            super().check_input(input, batch_sizes)

    def forward(
        self, input: Tensor | PackedSequence, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
        """Returns ``output, (h_n, c_n)``; see the class."""
        return self._run(torch.lstm, input, hx)


class GRU(_Recurrent):
    """torch.nn.GRU, faster.

    ``GRU(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, device=None, dtype=None)``

    ``forward(input, h_0=zeros)`` takes input [T, B, I], [B, T, I] with ``batch_first``, [T, I], or
    a PackedSequence, and returns ``output, h_n``. Shapes, parameters, equations and errors:
    torch.nn.GRU.
    """

    torch_class = nn.GRU

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        super().__init__("GRU", *args, **kwargs)

    def _batched_states(self, hx: Tensor, batched: bool) -> Tensor:
        expected = 3 if batched else 2
        if hx.dim() != expected:
            kind = "batched 3-D" if batched else "unbatched 2-D"
            raise RuntimeError(
                f"For {kind} input, hx should also be {expected}-D but got {hx.dim()}-D tensor"
            )
        return hx if batched else hx.unsqueeze(1)

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Returns ``output, h_n``; see the class."""
        return self._run(torch.gru, input, hx)


class _Cell(_DropIn, nn.RNNCellBase):
    """What LSTMCell and GRUCell share."""

    _gates: int

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, bias, num_chunks=self._gates, device=device, dtype=dtype
        )

    def _weights(self) -> tuple[Any, ...]:
        """w_ih, w_hh, b_ih and b_hh."""
        own = own_parameters(self)
        try:
            return own["weight_ih"], own["weight_hh"], own["bias_ih"], own["bias_hh"]
        except KeyError:  # parametrised or pruned
            return self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh


class LSTMCell(_Cell):
    """torch.nn.LSTMCell: ``LSTMCell(input_size, hidden_size, bias=True, device=None, dtype=None)``.

    ``forward(input, (h_0, c_0)=zeros)`` takes input [B, I] or [I] and returns ``h_1, c_1``.
    """

    torch_class = nn.LSTMCell
    _gates = 4

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns ``h_1, c_1``; see the class."""
        if _is_symbolic(input):
            return self._leaf(input, hx)
        dim = input.dim()
        if dim not in (1, 2):
            raise ValueError(f"LSTMCell: Expected input to be 1D or 2D, got {dim}D instead")
        if hx is None:
            zeros = input.new_zeros((*input.shape[:-1], self.hidden_size), layout=torch.strided)
            hx = (zeros, zeros)
        else:
            for index, state in enumerate(hx):
                if state.dim() not in (1, 2):
                    raise ValueError(
                        f"LSTMCell: Expected hx[{index}] to be 1D or 2D, got {state.dim()}D instead"
                    )
        if dim == 2:
            return functional.lstm_cell(input, hx, *self._weights())
        hx = (hx[0].unsqueeze(0), hx[1].unsqueeze(0))
        h, c = functional.lstm_cell(input.unsqueeze(0), hx, *self._weights())
        return h.squeeze(0), c.squeeze(0)


class GRUCell(_Cell):
    """torch.nn.GRUCell: ``GRUCell(input_size, hidden_size, bias=True, device=None, dtype=None)``.

    ``forward(input, h_0=zeros)`` takes input [B, I] or [I] and returns ``h_1``.
    """

    torch_class = nn.GRUCell
    _gates = 3

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Returns ``h_1``; see the class."""
        if _is_symbolic(input):
            return self._leaf(input, hx)
        dim = input.dim()
        if dim not in (1, 2):
            raise ValueError(f"GRUCell: Expected input to be 1D or 2D, got {dim}D instead")
        if hx is None:
            hx = input.new_zeros((*input.shape[:-1], self.hidden_size), layout=torch.strided)
        elif hx.dim() not in (1, 2):
            raise ValueError(f"GRUCell: Expected hidden to be 1D or 2D, got {hx.dim()}D instead")
        if dim == 2:
            return functional.gru_cell(input, hx, *self._weights())
        row = functional.gru_cell(input.unsqueeze(0), hx.unsqueeze(0), *self._weights())
        return row.squeeze(0)

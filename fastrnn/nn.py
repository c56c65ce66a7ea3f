"""Drop-in torch.nn.LSTM, GRU, LSTMCell and GRUCell, and :func:`convert`.

Constructors, parameters, state_dict, arguments, shapes and errors are torch.nn's: see its
documentation. The classes extend torch.nn.RNNBase and RNNCellBase, so that these are torch's own
code; they do not extend torch.nn.LSTM and GRU, whose instances torch.compile refuses to trace.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn import functional

_Module = TypeVar("_Module", bound=nn.Module)


class _Recurrent(nn.RNNBase):
    """What LSTM and GRU share: packed and unbatched input, default states, torch's checks."""

    def _unpacked(self, input: Tensor | PackedSequence, hx: Any) -> tuple[Any, ...]:
        """(input, states in the sorted order, batch_sizes, is_batched); hx is None or a tuple."""
        self._update_flat_weights()
        batched, batch_sizes = True, None
        if isinstance(input, PackedSequence):
            input, batch_sizes, indices, _ = input
            batch = int(batch_sizes[0])
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
            self.check_input(input, batch_sizes)
            rows = self.num_layers * (2 if self.bidirectional else 1)
            h = input.new_zeros((rows, batch, self.proj_size or self.hidden_size))
            c = h if not self.proj_size else input.new_zeros((rows, batch, self.hidden_size))
            hx = (h, c) if self.mode == "LSTM" else h
        else:
            if batch_sizes is None:
                hx = self._batched_states(hx, batched)
            hx = self.permute_hidden(hx, indices)
            self.check_forward_args(input, hx, batch_sizes)
        return input, hx, batch_sizes, batched

    def _weights_have_changed(self) -> bool:
        # torch's looks each weight up twice through Module.__getattr__, the cost of a small call.
        own = self._parameters
        for ref, name in zip(self._flat_weight_refs, self._flat_weights_names, strict=True):
            if name not in own:  # parametrised or pruned
                return super()._weights_have_changed()
            if ref is not None and ref() is not own[name]:
                return True
        return False

    def _batched_states(self, hx: Any, batched: bool) -> Any:
        raise NotImplementedError

    def _packed(self, output: Tensor, input: PackedSequence) -> PackedSequence:
        return PackedSequence(
            output, input.batch_sizes, input.sorted_indices, input.unsorted_indices
        )


class LSTM(_Recurrent):
    """torch.nn.LSTM, faster.

    ``LSTM(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, proj_size=0, device=None, dtype=None)``

    ``forward(input, (h_0, c_0)=zeros)`` takes input [T, B, I], [B, T, I] with ``batch_first``,
    [T, I], or a PackedSequence, and returns ``output, (h_n, c_n)``. Shapes, parameters and errors:
    torch.nn.LSTM.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("LSTM", *args, **kwargs)

    # torch.nn.LSTM's own methods: what they need of self, RNNBase has.
    get_expected_cell_size: Any = nn.LSTM.get_expected_cell_size
    check_forward_args: Any = nn.LSTM.check_forward_args
    permute_hidden: Any = nn.LSTM.permute_hidden

    def _batched_states(self, hx: tuple[Tensor, Tensor], batched: bool) -> tuple[Tensor, Tensor]:
        h, c = hx
        expected = 3 if batched else 2
        if h.dim() != expected or c.dim() != expected:
            kind = "batched 3-D" if batched else "unbatched 2-D"
            raise RuntimeError(
                f"For {kind} input, hx and cx should also be {expected}-D but got "
                f"({h.dim()}-D, {c.dim()}-D) tensors"
            )
        return (h, c) if batched else (h.unsqueeze(1), c.unsqueeze(1))

    def forward(
        self, input: Tensor | PackedSequence, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
        """Returns ``output, (h_n, c_n)``; see the class."""
        rows, states, batch_sizes, batched = self._unpacked(input, hx)
        output, h_n, c_n = functional.lstm(
            rows,
            states,
            cast(list[Tensor], self._flat_weights),
            bias=self.bias,
            num_layers=self.num_layers,
            dropout=self.dropout,
            training=self.training,
            bidirectional=self.bidirectional,
            batch_first=self.batch_first,
            batch_sizes=batch_sizes,
            proj_size=self.proj_size,
        )
        if isinstance(input, PackedSequence):
            finals = self.permute_hidden((h_n, c_n), input.unsorted_indices)
            return self._packed(output, input), finals
        if not batched:
            return output.squeeze(0 if self.batch_first else 1), (h_n.squeeze(1), c_n.squeeze(1))
        return output, (h_n, c_n)


class GRU(_Recurrent):
    """torch.nn.GRU, faster.

    ``GRU(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, device=None, dtype=None)``

    ``forward(input, h_0=zeros)`` takes input [T, B, I], [B, T, I] with ``batch_first``, [T, I], or
    a PackedSequence, and returns ``output, h_n``. Shapes, parameters and errors: torch.nn.GRU.
    """

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
        rows, states, batch_sizes, batched = self._unpacked(input, hx)
        output, h_n = functional.gru(
            rows,
            states,
            cast(list[Tensor], self._flat_weights),
            bias=self.bias,
            num_layers=self.num_layers,
            dropout=self.dropout,
            training=self.training,
            bidirectional=self.bidirectional,
            batch_first=self.batch_first,
            batch_sizes=batch_sizes,
        )
        if isinstance(input, PackedSequence):
            return self._packed(output, input), self.permute_hidden(h_n, input.unsorted_indices)
        if not batched:
            return output.squeeze(0 if self.batch_first else 1), h_n.squeeze(1)
        return output, h_n


class LSTMCell(nn.RNNCellBase):
    """torch.nn.LSTMCell: ``LSTMCell(input_size, hidden_size, bias=True, device=None, dtype=None)``.

    ``forward(input, (h_0, c_0)=zeros)`` takes input [B, I] or [I] and returns ``h_1, c_1``.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns ``h_1, c_1``; see the class."""
        dim = input.dim()
        if dim not in (1, 2):
            raise ValueError(f"LSTMCell: Expected input to be 1D or 2D, got {dim}D instead")
        if hx is None:
            zeros = input.new_zeros((*input.shape[:-1], self.hidden_size))
            hx = (zeros, zeros)
        else:
            for index, state in enumerate(hx):
                if state.dim() not in (1, 2):
                    raise ValueError(
                        f"LSTMCell: Expected hx[{index}] to be 1D or 2D, got {state.dim()}D instead"
                    )
        if dim == 2:
            return functional.lstm_cell(input, hx, *_cell_weights(self))
        hx = (hx[0].unsqueeze(0), hx[1].unsqueeze(0))
        h, c = functional.lstm_cell(input.unsqueeze(0), hx, *_cell_weights(self))
        return h.squeeze(0), c.squeeze(0)


class GRUCell(nn.RNNCellBase):
    """torch.nn.GRUCell: ``GRUCell(input_size, hidden_size, bias=True, device=None, dtype=None)``.

    ``forward(input, h_0=zeros)`` takes input [B, I] or [I] and returns ``h_1``.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Returns ``h_1``; see the class."""
        dim = input.dim()
        if dim not in (1, 2):
            raise ValueError(f"GRUCell: Expected input to be 1D or 2D, got {dim}D instead")
        if hx is None:
            hx = input.new_zeros((*input.shape[:-1], self.hidden_size))
        elif hx.dim() not in (1, 2):
            raise ValueError(f"GRUCell: Expected hidden to be 1D or 2D, got {hx.dim()}D instead")
        if dim == 2:
            return functional.gru_cell(input, hx, *_cell_weights(self))
        row = functional.gru_cell(input.unsqueeze(0), hx.unsqueeze(0), *_cell_weights(self))
        return row.squeeze(0)


def _cell_weights(cell: nn.RNNCellBase) -> tuple[Any, ...]:
    own = cell._parameters  # Module.__getattr__ is slow beside a small step
    try:
        return own["weight_ih"], own["weight_hh"], own["bias_ih"], own["bias_hh"]
    except KeyError:  # parametrised or pruned
        return cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh


_DROP_INS: dict[type[nn.Module], type[nn.Module]] = {
    nn.LSTM: LSTM,
    nn.GRU: GRU,
    nn.LSTMCell: LSTMCell,
    nn.GRUCell: GRUCell,
}


def convert(model: _Module) -> _Module:
    """Makes every torch.nn.LSTM, GRU, LSTMCell and GRUCell in a model fastrnn's, in place.

    The modules keep their identity and with it their parameters, hooks, training flag and every
    reference to them (optimisers, lists, shared submodules); only their class changes. Instances of
    subclasses are left alone, for they may have a forward of their own. Returns the model.
    """
    for module in model.modules():
        if type(module) in _DROP_INS:
            module.__class__ = _DROP_INS[type(module)]
    return model

"""A GRU whose reset gate comes before the recurrent product, as TensorFlow 1's did.

For comparison with the original experiments only: its steps run one by one in eager torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastrnn import backends

MODE = "GRU-RESET-BEFORE"


class GRUResetBefore(nn.RNNBase):
    """A stack of layers with torch.nn.GRU's parameters, names and shapes, and these steps.

    ::

        r  = σ(W_r x + b_ir + U_r h + b_hr)
        z  = σ(W_z x + b_iz + U_z h + b_hz)
        n  = tanh(W_n x + b_in + U_n (r ⊙ h) + b_hn)     torch.nn.GRU: r ⊙ (U_n h + b_hn)
        h' = (1 - z) ⊙ n + z ⊙ h                         (Cho et al. 2014, version 1)
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, *, bidirectional: bool = False
    ) -> None:
        super().__init__("GRU", input_size, hidden_size, num_layers, bidirectional=bidirectional)
        self.mode = MODE  # so that nothing takes these weights for a GRU's

    def flatten_parameters(self) -> None:
        """Does nothing: this is for cuDNN, which has no such cell."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Output [T, B, D * H] and h_n [layers * D, B, H] of input [T, B, I] and h_0, or zeros."""
        weights: list[Any] = self.all_weights
        if hx is None:
            hx = input.new_zeros(len(weights), input.shape[1], self.hidden_size)
        directions = 2 if self.bidirectional else 1
        finals = []
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(directions):
                k = layer * directions + direction
                x = input.flip(0) if direction else input
                y = _sequence(x, hx[k], *weights[k])
                finals.append(y[-1])
                outputs.append(y.flip(0) if direction else y)
            input = torch.cat(outputs, 2)
        return input, torch.stack(finals)


def choose() -> backends.Choice:
    """The backend of these layers: the only one there is.

    Raises:
        RuntimeError: another one is forced.
    """
    if (forced := backends.forced_backend()) not in (None, "reference"):
        raise RuntimeError(f"backend {forced!r} has no {MODE}, whose steps are eager: reference")
    return backends.Choice("reference", f"the steps of a {MODE} are eager only")


def _sequence(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> Tensor:
    """One layer's states [T, B, H] after each of x [T, B, I]; h [B, H] is the one before."""
    hidden = h.shape[1]
    w_gates, w_new = w_hh.split((2 * hidden, hidden))
    states = []
    for row in x:
        from_input = functional.linear(row, w_ih, b_ih + b_hh)
        gates, new = from_input.split((2 * hidden, hidden), 1)
        r, z = (gates + h @ w_gates.t()).sigmoid().chunk(2, 1)
        n = (new + (r * h) @ w_new.t()).tanh()
        h = n + z * (h - n)
        states.append(h)
    return torch.stack(states)

"""A GRU whose reset gate comes before the recurrent product, as in TensorFlow 1.

It exists for comparison with the original experiments only; its steps run one by one in eager
torch.
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

    Args:
        input_size: I.
        hidden_size: H of each layer.
        num_layers: layers, with separate weights.
        bidirectional: also read the sequence backwards; D = 2 directions.
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, *, bidirectional: bool = False
    ) -> None:
        super().__init__("GRU", input_size, hidden_size, num_layers, bidirectional=bidirectional)
        self.mode = MODE  # so that no other code takes these weights for a GRU's

    def flatten_parameters(self) -> None:
        """Does nothing: flat weights are for cuDNN, which has no such cell."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Runs all layers.

        Args:
            input: [T, B, I].
            hx: initial states [num_layers * D, B, H]; zeros if not given.

        Returns:
            The last layer's output [T, B, D * H], and h_n [num_layers * D, B, H].
        """
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
    """The only backend of these layers.

    Raises:
        RuntimeError: another one is forced.
    """
    only = backends.REFERENCE.name
    if (forced := backends.forced_backend()) not in (None, only):
        raise RuntimeError(
            f"backend {forced!r} cannot run {MODE}, whose steps are eager: force {only!r} or none"
        )
    return backends.Choice(only, f"{MODE} has eager steps only")


def _sequence(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> Tensor:
    """One layer's states [T, B, H] after each of x [T, B, I]; h [B, H] is the initial state."""
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

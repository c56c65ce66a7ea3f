"""The task models: a recurrent layer of fastrnn's and a head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fastrnn

INITIALISATIONS = ("torch", "tensorflow", "orthogonal")


class Classifier(nn.Module):
    """The class of a sequence, from the last state: recurrent layers, 100 rectified units, logits.

    Args:
        cell: ``LSTM`` or ``GRU``.
        hidden_size: H of each layer.
        num_layers: layers, with separate weights.
        classes: logits.
        initialisation: see :func:`initialise`.
    """

    def __init__(
        self,
        cell: str,
        hidden_size: int,
        num_layers: int,
        classes: int,
        *,
        initialisation: str = "torch",
    ) -> None:
        super().__init__()
        self.recurrent: nn.RNNBase = getattr(fastrnn, cell)(1, hidden_size, num_layers)
        self.head = nn.Sequential(nn.Linear(hidden_size, 100), nn.ReLU(), nn.Linear(100, classes))
        initialise(self.recurrent, self.head, initialisation)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of sequences x [T, B, 1]."""
        output, _ = self.recurrent(x)
        return self.head(output[-1])


@torch.no_grad()
def initialise(recurrent: nn.RNNBase, head: nn.Module, how: str) -> None:
    """Sets the weights of a model whose modules have torch's own initial ones.

    ``torch``: leaves them. ``orthogonal``: each gate's recurrent block is orthogonal (Saxe et al.
    2014), so that gradients last over many steps, and an LSTM's forget gates start with bias 1
    (Jozefowicz et al. 2015). ``tensorflow``: the original experiments': an LSTM's forget gates and
    both of a GRU's gates start with bias 1, other biases at 0; the head's weights are from N(0, 1).

    Raises:
        ValueError: ``how`` is none of these.
    """
    if how not in INITIALISATIONS:
        raise ValueError(f"unknown initialisation {how!r}; choose one of {INITIALISATIONS}")
    if how == "torch":
        return
    lstm, hidden = recurrent.mode == "LSTM", recurrent.hidden_size
    for layer in range(recurrent.num_layers):
        b_ih, b_hh = (getattr(recurrent, f"bias_{side}_l{layer}") for side in ("ih", "hh"))
        b_ih.zero_()
        b_hh.zero_()
        if lstm:
            b_ih[hidden : 2 * hidden] = 1
        elif how == "tensorflow":
            b_ih[: 2 * hidden] = 1
        if how == "orthogonal":
            for block in getattr(recurrent, f"weight_hh_l{layer}").split(hidden):
                nn.init.orthogonal_(block)
    if how == "tensorflow":
        for module in head.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_()
                module.bias.zero_()

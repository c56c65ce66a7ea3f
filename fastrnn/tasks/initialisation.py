"""Initial weights of the task models."""

from __future__ import annotations

import torch
from torch import Tensor, nn

DEFAULT = "torch"  # the initialisation of torch.nn
INITIALISATIONS = (DEFAULT, "tensorflow", "orthogonal", "chrono")
CHRONO_STEPS = 100  # with this, a GRU-64 learned MNIST's 784 pixels faster than with 784


@torch.no_grad()
def initialise(recurrent: nn.RNNBase, head: nn.Module, how: str) -> None:
    """Sets the weights of a model whose modules have torch's initial weights.

    - ``torch``: keeps them.
    - ``orthogonal``: each gate's recurrent block is orthogonal (Saxe et al. 2014), so that
      gradients last over many steps, and an LSTM's forget gates start with bias 1 (Jozefowicz et
      al. 2015).
    - ``chrono``: orthogonal blocks and the biases of :func:`chrono`, so that a long sequence's
      early steps reach the last state.
    - ``tensorflow``: as in the original experiments. An LSTM's forget gates and both of a GRU's
      gates start with bias 1, other biases with 0; the head's weights are drawn from N(0, 1).

    Args:
        recurrent: an LSTM or GRU; changed in place.
        head: the layers on top; changed in place by ``tensorflow`` only.
        how: one of the above.

    Raises:
        ValueError: ``how`` is none of these.
    """
    if how not in INITIALISATIONS:
        raise ValueError(f"unknown initialisation {how!r}; choose one of {INITIALISATIONS}")
    if how == DEFAULT:
        return
    lstm, hidden = recurrent.mode == "LSTM", recurrent.hidden_size
    for _, w_hh, b_ih, b_hh in recurrent.all_weights:
        b_ih.zero_()
        b_hh.zero_()
        if how == "chrono":
            chrono(b_ih, lstm, CHRONO_STEPS)
        elif lstm:
            b_ih[hidden : 2 * hidden] = 1
        elif how == "tensorflow":
            b_ih[: 2 * hidden] = 1
        if how != "tensorflow":
            for block in w_hh.split(hidden):
                nn.init.orthogonal_(block)
    if how == "tensorflow":
        for module in head.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_()
                module.bias.zero_()


@torch.no_grad()
def chrono(bias: Tensor, lstm: bool, steps: int) -> None:
    """Draws a layer's gate biases so that its units remember for 1 to ``steps`` steps.

    With b ~ log U(1, steps - 1), an LSTM's forget gate has bias b and its input gate -b; a GRU's
    update gate, which in torch keeps the state, has bias b (Tallec & Ollivier 2018, "Can recurrent
    neural networks warp time?").

    Args:
        bias: [4H] of an LSTM or [3H] of a GRU, in torch's order of gates; written in place.
        lstm: whether the layer is an LSTM.
        steps: the longest memory, more than 2.
    """
    hidden = len(bias) // (4 if lstm else 3)
    keep = bias[hidden : 2 * hidden].uniform_(1, steps - 1).log_()
    if lstm:
        bias[:hidden] = -keep

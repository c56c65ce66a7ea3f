"""The task models: a recurrent layer of fastrnn's and a head."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

import fastrnn
from fastrnn import reset_before

INITIALISATIONS = ("torch", "tensorflow", "orthogonal", "chrono")
CHRONO_STEPS = 100  # a GRU-64 learned MNIST's 784 pixels faster with this than with 784


def layer(cell: str) -> Callable[..., nn.RNNBase]:
    """What makes the recurrent layers of a cell: fastrnn's, or the one that is for comparison."""
    return reset_before.GRUResetBefore if cell == reset_before.MODE else getattr(fastrnn, cell)


class Classifier(nn.Module):
    """The class of a sequence, from the last state: recurrent layers, 100 rectified units, logits.

    Args:
        cell: ``LSTM``, ``GRU`` or ``GRU-RESET-BEFORE``.
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
        self.recurrent = layer(cell)(1, hidden_size, num_layers)
        self.head = nn.Sequential(nn.Linear(hidden_size, 100), nn.ReLU(), nn.Linear(100, classes))
        initialise(self.recurrent, self.head, initialisation)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of sequences x [T, B, 1]."""
        _, state = self.recurrent(x)
        h_n = state[0] if isinstance(state, tuple) else state
        return self.head(h_n[-1])


class PixelModel(nn.Module):
    """The odds of the next binary pixel, from each state: recurrent layers and one logit.

    Args: see :class:`Classifier`.
    """

    def __init__(
        self, cell: str, hidden_size: int, num_layers: int, *, initialisation: str = "torch"
    ) -> None:
        super().__init__()
        self.recurrent = layer(cell)(1, hidden_size, num_layers)
        self.head = nn.Linear(hidden_size, 1)
        initialise(self.recurrent, self.head, initialisation)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [T, B] of the pixels that follow each of x [T, B, 1]."""
        output, _ = self.recurrent(x)
        return self.head(output).squeeze(2)


class Inpainter(nn.Module):
    """The odds of a pixel, from all the others that are known.

    One stack of recurrent layers reads the image from its first pixel on, another from its last one
    backwards; at each pixel they read its value and whether it is hidden. A logit comes from the
    first one's state before a pixel, the other's after it, and the pixels around it, by 128
    rectified units. None of these has seen the pixel itself: to the model it is always a hidden
    one, and each pixel of an image, not only those of its holes, is one to learn from.

    Args:
        height, width: of an image, in pixels; P = height * width.
        cell, hidden_size, num_layers, initialisation: see :class:`Classifier`.
    """

    def __init__(
        self,
        height: int,
        width: int,
        cell: str,
        hidden_size: int,
        num_layers: int,
        *,
        initialisation: str = "torch",
    ) -> None:
        super().__init__()
        self.height, self.width = height, width
        self.reach = min(3, height // 4, width // 4)  # of the square around a pixel
        around = (2 * self.reach + 1) ** 2 - 1
        self.before = layer(cell)(2, hidden_size, num_layers)
        self.after = layer(cell)(2, hidden_size, num_layers)
        self.head = nn.Sequential(
            nn.Linear(2 * (hidden_size + around), 128), nn.ReLU(), nn.Linear(128, 1)
        )
        for recurrent in (self.before, self.after):
            initialise(recurrent, self.head, initialisation)

    def forward(self, x: Tensor, hidden: Tensor, asked: Tensor | None = None) -> Tensor:
        """Logits [P, B] of pixels x [P, B], 0 and 1 float32, of which those ``hidden`` are unread.

        ``hidden`` and ``asked`` are [P, B] bool; where the latter (``hidden`` if not given) is
        False, the logit is 0.
        """
        asked = hidden if asked is None else asked
        seen = torch.stack([x * ~hidden, hidden.to(x.dtype)], 2)
        # The head of these pixels alone: all of them would cost as much as the layers.
        place, image = asked.nonzero(as_tuple=True)
        states = []
        for recurrent, pixels, last in (
            (self.before, seen, place - 1),
            (self.after, seen.flip(0), len(x) - 2 - place),
        ):
            output, _ = recurrent(pixels)
            # Before an image's first pixel the state is 0.
            states.append(output[last.clamp(min=0), image] * (last >= 0)[:, None])
        head = self.head(torch.cat([*states, self._around(seen, place, image)], 1))
        return x.new_zeros(x.shape).masked_scatter(asked, head.squeeze(1))

    def _around(self, seen: Tensor, place: Tensor, image: Tensor) -> Tensor:
        """What is seen [P, B, 2] in the square around each of N places; [N, ...]."""
        reach, side = self.reach, self.width + 2 * self.reach
        margins = functional.pad(
            seen.view(self.height, self.width, -1, 2), (0, 0, 0, 0, *(4 * [reach]))
        )
        centre = (place // self.width + reach) * side + place % self.width + reach
        steps = torch.arange(-reach, reach + 1, device=seen.device)
        square = (steps[:, None] * side + steps).flatten()
        others = centre[:, None] + square[square != 0]
        return margins.flatten(0, 1)[others, image[:, None]].flatten(1)


@torch.no_grad()
def initialise(recurrent: nn.RNNBase, head: nn.Module, how: str) -> None:
    """Sets the weights of a model whose modules have torch's own initial ones.

    ``torch``: leaves them. ``orthogonal``: each gate's recurrent block is orthogonal (Saxe et al.
    2014), so that gradients last over many steps, and an LSTM's forget gates start with bias 1
    (Jozefowicz et al. 2015). ``chrono``: orthogonal blocks and the biases of :func:`chrono`, so
    that a long sequence's early steps reach the last state. ``tensorflow``: the original
    experiments': an LSTM's forget gates and both of a GRU's gates start with bias 1, other biases
    at 0; the head's weights are from N(0, 1).

    Raises:
        ValueError: ``how`` is none of these.
    """
    if how not in INITIALISATIONS:
        raise ValueError(f"unknown initialisation {how!r}; choose one of {INITIALISATIONS}")
    if how == "torch":
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

    b ~ log U(1, steps - 1) is the bias of an LSTM's forget gate, and -b that of its input gate; b
    is the bias of a GRU's update gate, which in torch keeps the state (Tallec & Ollivier 2018,
    "Can recurrent neural networks warp time?").

    Args:
        bias: [4H] of an LSTM or [3H] of a GRU, in torch's order of gates; written in place.
        lstm: which of the two it is.
        steps: the longest memory, more than 2.
    """
    hidden = len(bias) // (4 if lstm else 3)
    keep = bias[hidden : 2 * hidden].uniform_(1, steps - 1).log_()
    if lstm:
        bias[:hidden] = -keep

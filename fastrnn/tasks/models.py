"""The task models: recurrent layers of fastrnn and a head."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastrnn.nn import GRU, LSTM
from fastrnn.tasks.initialisation import DEFAULT, initialise
from fastrnn.tasks.reset_before import MODE, GRUResetBefore

LAYERS: dict[str, Callable[..., nn.RNNBase]] = {"LSTM": LSTM, "GRU": GRU, MODE: GRUResetBefore}


class Classifier(nn.Module):
    """The class of a sequence: recurrent layers, then 100 rectified units on the last state.

    Args:
        cell: ``LSTM``, ``GRU`` or ``GRU-RESET-BEFORE``.
        hidden_size: H of each layer.
        num_layers: layers, with separate weights.
        classes: how many there are.
        initialisation: see :func:`~fastrnn.tasks.initialisation.initialise`.

    Raises:
        ValueError: the initialisation is unknown.
    """

    def __init__(
        self,
        cell: str,
        hidden_size: int,
        num_layers: int,
        classes: int,
        *,
        initialisation: str = DEFAULT,
    ) -> None:
        super().__init__()
        self.recurrent = LAYERS[cell](1, hidden_size, num_layers)
        self.head = nn.Sequential(nn.Linear(hidden_size, 100), nn.ReLU(), nn.Linear(100, classes))
        initialise(self.recurrent, self.head, initialisation)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of sequences x [T, B, 1]."""
        _, state = self.recurrent(x)
        h_n = state[0] if isinstance(state, tuple) else state
        return self.head(h_n[-1])


class PixelModel(nn.Module):
    """The next binary pixel from those before it: recurrent layers, then one logit per state.

    Arguments and errors: see :class:`Classifier`.
    """

    def __init__(
        self, cell: str, hidden_size: int, num_layers: int, *, initialisation: str = DEFAULT
    ) -> None:
        super().__init__()
        self.recurrent = LAYERS[cell](1, hidden_size, num_layers)
        self.head = nn.Linear(hidden_size, 1)
        initialise(self.recurrent, self.head, initialisation)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [T, B] of the pixel after each of x [T, B, 1]."""
        output, _ = self.recurrent(x)
        return self.head(output).squeeze(2)


class Inpainter(nn.Module):
    """A binary pixel from all others that are known.

    One stack of recurrent layers reads the image from its first pixel on, another from its last
    pixel backwards; at each pixel they read its value and whether it is hidden. 128 rectified units
    compute a pixel's logit from the first stack's state before it, the second's state after it, and
    the pixels in a square around it. None of these depends on the pixel itself, so that the model
    can learn from every pixel of an image, not only from the hidden ones.

    Args:
        height: of an image, in pixels.
        width: of an image, in pixels; P = height * width.
        cell, hidden_size, num_layers, initialisation: see :class:`Classifier`.

    Raises:
        ValueError: the initialisation is unknown.
    """

    def __init__(
        self,
        height: int,
        width: int,
        cell: str,
        hidden_size: int,
        num_layers: int,
        *,
        initialisation: str = DEFAULT,
    ) -> None:
        super().__init__()
        self.height, self.width = height, width
        self.reach = min(3, height // 4, width // 4)  # of the square, from its centre
        around = (2 * self.reach + 1) ** 2 - 1
        self.before = LAYERS[cell](2, hidden_size, num_layers)
        self.after = LAYERS[cell](2, hidden_size, num_layers)
        self.head = nn.Sequential(
            nn.Linear(2 * (hidden_size + around), 128), nn.ReLU(), nn.Linear(128, 1)
        )
        for recurrent in (self.before, self.after):
            initialise(recurrent, self.head, initialisation)

    def forward(self, x: Tensor, hidden: Tensor, wanted: Tensor | None = None) -> Tensor:
        """Logits of pixels from all others that are known.

        Args:
            x: [P, B] float32 of 0 and 1; the values of hidden pixels are ignored.
            hidden: [P, B] bool.
            wanted: [P, B] bool, the pixels whose logits are wanted; the hidden ones if not given.

        Returns:
            [P, B], 0 where no logit is wanted.
        """
        wanted = hidden if wanted is None else wanted
        seen = torch.stack([x * ~hidden, hidden.to(x.dtype)], 2)
        # Only these pixels go through the head: all of them would cost as much as the layers.
        place, image = wanted.nonzero(as_tuple=True)
        states = []
        for recurrent, pixels, last in (
            (self.before, seen, place - 1),
            (self.after, seen.flip(0), len(x) - 2 - place),
        ):
            output, _ = recurrent(pixels)
            # At an image's end there is no pixel to read before this one: the state is 0.
            states.append(output[last.clamp(min=0), image] * (last >= 0)[:, None])
        head = self.head(torch.cat([*states, self._around(seen, place, image)], 1))
        # Under autocast, logits have its dtype.
        return head.new_zeros(x.shape).masked_scatter(wanted, head.squeeze(1))

    def _around(self, seen: Tensor, place: Tensor, image: Tensor) -> Tensor:
        """What ``seen`` [P, B, 2] holds in the square around each of N places; [N, ...].

        Args:
            seen: value and hidden flag of each pixel.
            place: [N] int64, pixels at the squares' centres, which are left out.
            image: [N] int64, the images they are in.
        """
        reach, side = self.reach, self.width + 2 * self.reach
        margins = functional.pad(
            seen.view(self.height, self.width, -1, 2), (0, 0, 0, 0, *(4 * [reach]))
        )
        centre = (place // self.width + reach) * side + place % self.width + reach
        steps = torch.arange(-reach, reach + 1, device=seen.device)
        square = (steps[:, None] * side + steps).flatten()
        others = centre[:, None] + square[square != 0]
        return margins.flatten(0, 1)[others, image[:, None]].flatten(1)

"""In-painting: hidden pixels of a binary image from all others.

Recurrent layers read the known pixels from both ends. The original experiments used the likelihood
of a pixel-prediction model instead, so these presets are our own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastrnn.tasks import data, figures
from fastrnn.tasks.base import PixelTask
from fastrnn.tasks.config import BEST, BEST_ON_DIGITS, PixelConfig
from fastrnn.tasks.models import Inpainter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PATCHES = 6  # hidden in each image of a training batch
SPREAD = 0.18  # standard deviation of a patch's place, as a share of the image's side
LEARNT = 0.5  # share of the known pixels that count in the loss; they outnumber the hidden ones
EXAMPLES = 8  # test images in the figure


def _best(hidden_size: int, learning_rate: float) -> PixelConfig:
    return dataclasses.replace(
        BEST,
        hidden_size=hidden_size,
        epochs=15,
        batch_size=50,
        learning_rate=learning_rate,
        clip=2.0,
    )


class Inpainting(PixelTask):
    """Task: hidden pixels of a binary image from those before and after them."""

    name = "inpainting"
    presets: Mapping[str, PixelConfig] = {
        "best-gru-64": _best(64, 1e-2),
        "best-gru-128": _best(128, 7e-3),
        "digits": dataclasses.replace(
            BEST_ON_DIGITS,
            hidden_size=32,
            epochs=60,
            batch_size=16,
            learning_rate=1.4e-2,
            clip=2.0,
        ),
    }
    mnist_preset = "best-gru-64"
    best_by = "hidden_loss"
    units: Mapping[str, str] = {
        "loss": "nats per image",
        "hidden_loss": "nats per pixel",
        "accuracy": "% of hidden pixels",
    }

    def _new_model(self, config: PixelConfig, dataset: data.ImageFormat) -> nn.Module:
        how = config.initialisation
        return Inpainter(dataset.height, dataset.width, *config.layers, initialisation=how)

    def _noise(
        self, model: nn.Module, split: data.Split, count: int, config: PixelConfig
    ) -> tuple[Tensor, ...]:
        """Which pixels are hidden, and a number in [0, 1) for each; [P, B] each, on the CPU."""
        painter = cast(Inpainter, model)
        hidden = patches(count, painter.height, painter.width)
        return hidden, torch.rand(hidden.shape)

    def _measure(
        self,
        model: nn.Module,
        x: Tensor,
        labels: Tensor,
        config: PixelConfig,
        noise: tuple[Tensor, ...],
    ) -> dict[str, Tensor]:
        """Metrics of images with randomly hidden patches, [B] each.

        ``loss`` is the mean cross-entropy of the hidden pixels and a random share of the known
        ones, times P: nats per image. ``hidden_loss`` is the mean over the hidden pixels, in nats
        per pixel; ``accuracy`` is the share of these whose likelier value is the right one.
        """
        painter = cast(Inpainter, model)
        truth = x[:, :, 0]
        hidden, chance = (each.to(x.device) for each in noise)
        wanted = hidden | (chance < LEARNT)
        logits = painter(truth, hidden, wanted)
        losses = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        right = (logits > 0) == (truth > 0)
        return {
            "loss": _means(losses, wanted) * len(x),
            "hidden_loss": _means(losses, hidden),
            "accuracy": _means(right, hidden),
        }

    def score(self, validation: Mapping[str, float]) -> float:
        """The loss of the hidden pixels, negated."""
        return -validation["hidden_loss"]

    @torch.no_grad()
    def figures(
        self, model: nn.Module, dataset: data.Dataset, config: PixelConfig
    ) -> dict[str, Callable[[], Figure]]:
        """Test images with holes, and as the model fills them."""
        painter = cast(Inpainter, model).eval()
        rows = torch.arange(min(EXAMPLES, len(dataset.test)))
        x, _ = self.batch(dataset.test, rows, config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            hidden = patches(x.shape[1], painter.height, painter.width).to(x.device)
        truth = x[:, :, 0]
        filled = torch.where(hidden, (painter(truth, hidden) > 0).float(), truth)
        shape = (-1, painter.height, painter.width)
        images = [each.t().reshape(shape).cpu() for each in (truth, hidden, filled)]
        return {"examples": lambda: figures.inpainted(*images)}


def _means(values: Tensor, chosen: Tensor) -> Tensor:
    """Means [B] of the chosen values [P, B]; each column has at least one."""
    return (values * chosen).sum(0) / chosen.sum(0)


def patches(images: int, height: int, width: int) -> Tensor:
    """Draws which pixels to hide, with torch's global generator on the CPU.

    Each image gets PATCHES patches: single pixels, squares of 2 x 2 and rectangles up to 4 x 4 in
    equal shares, near the centre, where an image's ink is.

    Returns:
        [height * width, images] bool.
    """
    shape = (images, PATCHES, 1)
    kind = torch.randint(3, shape)
    covered = []
    for side in (height, width):
        size = torch.where(kind == 2, torch.randint(1, 5, shape), kind + 1)
        centre = (side - 1) / 2 + SPREAD * side * torch.randn(shape)
        start = (centre - (size - 1) / 2).round().clamp(min=0).minimum(side - size)
        pixel = torch.arange(side)
        covered.append((pixel >= start) & (pixel < start + size))
    rows, columns = covered
    hidden = (rows[..., :, None] & columns[..., None, :]).any(1)
    return hidden.reshape(images, height * width).t()


TASK = Inpainting()

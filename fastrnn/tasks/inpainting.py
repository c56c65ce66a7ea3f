"""Which are the hidden pixels? Recurrent layers from both sides read all the others.

The original experiments in-painted with the likelihood of a pixel-prediction model alone; these
presets are our own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastrnn import data, training
from fastrnn.config import Config, ConfigError
from fastrnn.models import Inpainter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PATCHES = 6  # hidden in each image of a training batch
SPREAD = 0.18  # of their places around the image's centre, as a share of its side
ASKED = 0.5  # of the other pixels, which are learnt from as well: there are so many more of them


def _best(hidden_size: int, learning_rate: float) -> Config:
    return Config(
        cell="GRU",
        hidden_size=hidden_size,
        initialisation="chrono",
        epochs=15,
        batch_size=50,
        learning_rate=learning_rate,
        schedule="cosine",
        warmup=0.05,
        clip=2.0,
    )


class Inpainting:
    """Task: hidden pixels of a binary image from those on both sides."""

    name = "inpainting"
    presets: Mapping[str, Config] = {
        "best-gru-64": _best(64, 1e-2),
        "best-gru-128": _best(128, 7e-3),
        "digits": Config(
            hidden_size=32,
            initialisation="orthogonal",
            epochs=60,
            batch_size=16,
            learning_rate=1.4e-2,
            schedule="cosine",
            warmup=0.1,
            clip=2.0,
        ),
    }

    def default_preset(self, dataset: str) -> str:
        """The quickest that does well."""
        return "digits" if dataset == "digits" else "best-gru-64"

    def model(self, config: Config, dataset: data.Dataset) -> nn.Module:
        """Recurrent layers in each direction and a logit for each pixel.

        Raises:
            ConfigError: the pixels are grey.
        """
        if config.pixels != "binary":
            raise ConfigError(
                f"{self.name} gives odds of binary pixels, not {config.pixels} ones: drop --pixels"
            )
        return Inpainter(
            dataset.height,
            dataset.width,
            config.cell,
            config.hidden_size,
            config.num_layers,
            initialisation=config.initialisation,
        )

    def measure(
        self, model: nn.Module, x: Tensor, labels: Tensor, config: Config
    ) -> dict[str, Tensor]:
        """Nats an image, nats a hidden pixel, and the share of these guessed right; each [B].

        Nats an image are what all its pixels would have, each given the others, if they were like
        those that are asked for: the hidden ones and a share of the known.
        """
        painter = cast(Inpainter, model)
        truth = x[:, :, 0]
        hidden = patches(x.shape[1], painter.height, painter.width).to(x.device)
        asked = hidden | (torch.rand(x.shape[:2]) < ASKED).to(x.device)
        logits = painter(truth, hidden, asked)
        losses = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        right = (logits > 0) == (truth > 0)
        return {
            "loss": _means(losses, asked) * len(x),
            "hidden_loss": _means(losses, hidden),
            "accuracy": _means(right, hidden),
        }

    def score(self, validation: Mapping[str, float]) -> float:
        """Minus the nats a hidden pixel."""
        return -validation["hidden_loss"]

    @torch.no_grad()
    def pictures(
        self, model: nn.Module, dataset: data.Dataset, config: Config
    ) -> dict[str, Figure]:
        """Test images with holes, as the model fills them."""
        from fastrnn import plots

        painter = cast(Inpainter, model).eval()
        x, _ = training.batch(dataset.test, torch.arange(min(12, len(dataset.test))), config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            hidden = patches(x.shape[1], painter.height, painter.width).to(x.device)
        truth = x[:, :, 0]
        filled = torch.where(hidden, (painter(truth, hidden) > 0).float(), truth)
        shape = (-1, painter.height, painter.width)
        images = (each.t().reshape(shape).cpu() for each in (truth, hidden, filled))
        return {"examples": plots.inpainted(*images)}


def _means(values: Tensor, chosen: Tensor) -> Tensor:
    """Of the chosen values [P, B], which are some in each column; [B]."""
    return (values * chosen).sum(0) / chosen.sum(0)


def patches(images: int, height: int, width: int) -> Tensor:
    """Draws which pixels are hidden, [P, images] bool, with torch's global generator on the CPU.

    An image gets PATCHES of them: single pixels, squares of 2 x 2 and rectangles up to 4 x 4 in
    equal shares, near the centre, where an image's ink is.
    """
    shape = (images, PATCHES, 1)
    kind = torch.randint(3, shape)
    covered = []
    for side in (height, width):
        size = torch.where(kind == 2, torch.randint(1, 5, shape), kind + 1)
        centre = (side - 1) / 2 + SPREAD * side * torch.randn(shape)
        first = (centre - (size - 1) / 2).round().clamp(min=0).minimum(side - size)
        pixel = torch.arange(side)
        covered.append((pixel >= first) & (pixel < first + size))
    rows, columns = covered
    hidden = (rows[..., :, None] & columns[..., None, :]).any(1)
    return hidden.reshape(images, height * width).t()


TASK = Inpainting()

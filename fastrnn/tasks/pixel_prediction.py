"""Pixel prediction: each pixel of a binary image from those before it.

A recurrent layer reads the pixels one by one, and each state gives the next pixel's logit. The
presets without ``best`` are the settings of the original TensorFlow experiments, which had GRUs
only, and the same settings with LSTMs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastrnn.tasks import data, figures
from fastrnn.tasks.base import PixelTask, dropped, kept
from fastrnn.tasks.config import BEST, BEST_ON_DIGITS, PixelConfig
from fastrnn.tasks.models import PixelModel
from fastrnn.training import evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _original(cell: str) -> dict[str, PixelConfig]:
    one = {
        f"{cell.lower()}-{hidden}": PixelConfig(
            cell=cell, hidden_size=hidden, batch_size=500, learning_rate=5e-4, epochs=100
        )
        for hidden in (32, 64, 128)
    }
    three = PixelConfig(cell=cell, num_layers=3, batch_size=300, learning_rate=1.5e-3, epochs=130)
    return {**one, f"{cell.lower()}-3x32": three}


def _best(cell: str, hidden_size: int, num_layers: int) -> PixelConfig:
    return dataclasses.replace(
        BEST,
        cell=cell,
        hidden_size=hidden_size,
        num_layers=num_layers,
        epochs=15,
        batch_size=50,
        learning_rate=7e-3,
        clip=2.0,
    )


class PixelPrediction(PixelTask):
    """Task: each pixel of a binary image from those before it, in raster order."""

    name = "pixel-prediction"
    presets: Mapping[str, PixelConfig] = {
        **_original("GRU"),
        **_original("LSTM"),
        "best-gru-128": _best("GRU", 128, 1),
        "best-lstm-128": _best("LSTM", 128, 1),
        "best-gru-3x32": _best("GRU", 32, 3),
        # There are so few of the 8 x 8 digits that the model overfits without dropout.
        "digits": dataclasses.replace(
            BEST_ON_DIGITS,
            input_dropout=0.02,
            hidden_size=64,
            epochs=30,
            batch_size=32,
            learning_rate=2e-2,
            clip=1.0,
        ),
    }
    mnist_preset = "gru-32"
    best_by = "loss"
    units: Mapping[str, str] = {"loss": "nats per image", "accuracy": "% of pixels"}

    def _new_model(self, config: PixelConfig, dataset: data.ImageFormat) -> nn.Module:
        return PixelModel(*config.layers, initialisation=config.initialisation)

    def _noise(
        self, model: nn.Module, split: data.Split, count: int, config: PixelConfig
    ) -> tuple[Tensor, ...]:
        """Which pixels are kept; see :func:`kept`."""
        return kept(model, split.images.shape[1] - 1, count, config)

    def _measure(
        self,
        model: nn.Module,
        x: Tensor,
        labels: Tensor,
        config: PixelConfig,
        noise: tuple[Tensor, ...],
    ) -> dict[str, Tensor]:
        """Metrics over the P - 1 pixels after the first, [B] each.

        ``loss`` is the sum of their cross-entropies, in nats per image; ``accuracy`` is the share
        whose likelier value is the right one.
        """
        wanted = x[1:, :, 0]
        logits = model(dropped(x[:-1], noise))
        losses = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        return {
            "loss": losses.sum(0),
            "accuracy": ((logits > 0) == (wanted > 0)).float().mean(0),
        }

    def score(self, validation: Mapping[str, float]) -> float:
        """The loss, negated."""
        return -validation["loss"]

    @torch.no_grad()
    def figures(
        self, model: nn.Module, dataset: data.Dataset, config: PixelConfig
    ) -> dict[str, Callable[[], Figure]]:
        """The mean loss of each pixel over the test set."""
        total = torch.zeros(dataset.height * dataset.width, dtype=torch.float64)
        model.eval()
        for x, _ in evaluation.batches(self, dataset.test, config):
            losses = functional.binary_cross_entropy_with_logits(
                model(x[:-1]), x[1:, :, 0], reduction="none"
            )
            total[1:] += losses.double().sum(1).cpu()
        mean = (total / len(dataset.test)).view(dataset.height, dataset.width)
        return {"loss_map": lambda: figures.loss_map(mean)}


TASK = PixelPrediction()

"""Classification: which digit an image shows.

A recurrent layer reads the pixels one by one, and its last state gives the class. The presets
without ``best`` are the settings of the original TensorFlow experiments.
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
from fastrnn.tasks.models import Classifier
from fastrnn.training import evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _lstm(hidden_size: int) -> PixelConfig:
    return PixelConfig(
        cell="LSTM", hidden_size=hidden_size, batch_size=500, learning_rate=5e-4, epochs=100
    )


def _gru(hidden_size: int) -> PixelConfig:
    return PixelConfig(
        cell="GRU", hidden_size=hidden_size, batch_size=200, learning_rate=1e-3, epochs=40
    )


def _best(cell: str, hidden_size: int, num_layers: int, learning_rate: float) -> PixelConfig:
    return dataclasses.replace(
        BEST,
        cell=cell,
        hidden_size=hidden_size,
        num_layers=num_layers,
        epochs=20,
        batch_size=100,
        learning_rate=learning_rate,
        clip=1.0,
    )


class Classification(PixelTask):
    """Task: the class of an image from its pixels in raster order."""

    name = "classification"
    presets: Mapping[str, PixelConfig] = {
        "lstm-32": _lstm(32),
        "lstm-64": _lstm(64),
        "lstm-128": _lstm(128),
        "lstm-3x32": PixelConfig(
            cell="LSTM", num_layers=3, batch_size=300, learning_rate=7e-4, epochs=100
        ),
        "gru-32": _gru(32),
        "gru-64": _gru(64),
        "gru-128": _gru(128),
        "gru-3x32": PixelConfig(
            cell="GRU", num_layers=3, batch_size=500, learning_rate=6e-4, epochs=1
        ),
        "best-lstm-128": _best("LSTM", 128, 1, 5e-3),
        "best-gru-128": _best("GRU", 128, 1, 5e-3),
        "best-gru-3x32": _best("GRU", 32, 3, 8e-3),
        # There are so few of the 8 x 8 digits that the model overfits without dropout.
        "digits": dataclasses.replace(
            BEST_ON_DIGITS,
            pixels="grey",
            input_dropout=0.1,
            hidden_size=64,
            epochs=80,
            batch_size=32,
            learning_rate=8e-3,
            clip=1.0,
        ),
    }
    mnist_preset = "gru-32"
    best_by = "accuracy"
    units: Mapping[str, str] = {"loss": "nats per image", "accuracy": "% of images"}
    reads_grey = True

    def _new_model(self, config: PixelConfig, dataset: data.ImageFormat) -> nn.Module:
        how = config.initialisation
        return Classifier(*config.layers, dataset.classes, initialisation=how)

    def _noise(
        self, model: nn.Module, split: data.Split, count: int, config: PixelConfig
    ) -> tuple[Tensor, ...]:
        """Which pixels are kept; see :func:`kept`."""
        return kept(model, split.images.shape[1], count, config)

    def _measure(
        self,
        model: nn.Module,
        x: Tensor,
        labels: Tensor,
        config: PixelConfig,
        noise: tuple[Tensor, ...],
    ) -> dict[str, Tensor]:
        """``loss``, the cross-entropy in nats, and ``accuracy``, 1 or 0; [B] each."""
        logits = model(dropped(x, noise))
        return {
            "loss": functional.cross_entropy(logits, labels, reduction="none"),
            "accuracy": (logits.argmax(1) == labels).float(),
        }

    def score(self, validation: Mapping[str, float]) -> float:
        """The accuracy."""
        return validation["accuracy"]

    @torch.no_grad()
    def figures(
        self, model: nn.Module, dataset: data.Dataset, config: PixelConfig
    ) -> dict[str, Callable[[], Figure]]:
        """The confusion matrix of the test set, with images of the worst confusions."""
        test = dataset.test
        model.eval()
        parts = [model(x).argmax(1).cpu() for x, _ in evaluation.batches(self, test, config)]
        labels, predicted = test.labels.cpu(), torch.cat(parts)
        classes = dataset.classes
        pairs = labels * classes + predicted
        counts = torch.bincount(pairs, minlength=classes * classes).view(classes, classes)
        images = test.images.view(-1, dataset.height, dataset.width).cpu()
        seen = images / 255 if dataset.grey else images.float()
        worst = figures.worst(seen, labels, predicted, classes)
        return {"confusion": lambda: figures.confusion(counts, worst)}


TASK = Classification()

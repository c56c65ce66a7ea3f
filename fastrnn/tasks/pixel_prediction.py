"""What is the next pixel? A recurrent layer reads the pixels; each state gives the next one's odds.

The presets without ``best`` are the settings of the original TensorFlow experiments, which had GRUs
only, and the same with LSTMs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastrnn import data, training
from fastrnn.config import Config, ConfigError
from fastrnn.models import PixelModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _original(cell: str) -> dict[str, Config]:
    one = {
        f"{cell.lower()}-{hidden}": Config(
            cell=cell, hidden_size=hidden, batch_size=500, learning_rate=5e-4, epochs=100
        )
        for hidden in (32, 64, 128)
    }
    three = Config(cell=cell, num_layers=3, batch_size=300, learning_rate=1.5e-3, epochs=130)
    return {**one, f"{cell.lower()}-3x32": three}


def _best(cell: str, hidden_size: int, num_layers: int) -> Config:
    return Config(
        cell=cell,
        hidden_size=hidden_size,
        num_layers=num_layers,
        initialisation="chrono",
        epochs=15,
        batch_size=50,
        learning_rate=7e-3,
        schedule="cosine",
        warmup=0.05,
        clip=2.0,
    )


class PixelPrediction:
    """Task: each pixel of a binary image from those before it, in raster order."""

    name = "pixel-prediction"
    presets: Mapping[str, Config] = {
        **_original("GRU"),
        **_original("LSTM"),
        "best-gru-128": _best("GRU", 128, 1),
        "best-lstm-128": _best("LSTM", 128, 1),
        "best-gru-3x32": _best("GRU", 32, 3),
        # For scikit-learn's 8 x 8 digits, of which there are so few that noise has to help.
        "digits": Config(
            input_dropout=0.02,
            hidden_size=64,
            initialisation="orthogonal",
            epochs=30,
            batch_size=32,
            learning_rate=2e-2,
            schedule="cosine",
            warmup=0.1,
            clip=1.0,
        ),
    }

    def default_preset(self, dataset: str) -> str:
        """The quickest that does well."""
        return "digits" if dataset == "digits" else "gru-32"

    def model(self, config: Config, dataset: data.Dataset) -> nn.Module:
        """Recurrent layers and one logit a step.

        Raises:
            ConfigError: the pixels are grey.
        """
        if config.pixels != "binary":
            raise ConfigError(
                f"{self.name} gives odds of binary pixels, not {config.pixels} ones: drop --pixels"
            )
        return PixelModel(
            config.cell,
            config.hidden_size,
            config.num_layers,
            initialisation=config.initialisation,
        )

    def measure(
        self, model: nn.Module, x: Tensor, labels: Tensor, config: Config
    ) -> dict[str, Tensor]:
        """Nats an image over the P - 1 pixels after the first, and the share guessed right; [B]."""
        read, wanted = x[:-1], x[1:, :, 0]
        if model.training and config.input_dropout:
            read = read * (torch.rand_like(read) >= config.input_dropout)
        logits = model(read)
        losses = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        return {
            "loss": losses.sum(0),
            "accuracy": ((logits > 0) == (wanted > 0)).float().mean(0),
        }

    def score(self, validation: Mapping[str, float]) -> float:
        """Minus the nats an image."""
        return -validation["loss"]

    @torch.no_grad()
    def pictures(
        self, model: nn.Module, dataset: data.Dataset, config: Config
    ) -> dict[str, Figure]:
        """The mean loss of each pixel of the test set."""
        from fastrnn import plots

        total = torch.zeros(dataset.height * dataset.width, dtype=torch.float64)
        model.eval()
        for x, _ in training.batches(dataset.test, config):
            losses = functional.binary_cross_entropy_with_logits(
                model(x[:-1]), x[1:, :, 0], reduction="none"
            )
            total[1:] += losses.double().sum(1).cpu()
        mean = (total / len(dataset.test)).view(dataset.height, dataset.width)
        return {"loss_map": plots.loss_map(mean)}


TASK = PixelPrediction()

"""Which digit is it? A recurrent layer reads the pixels one by one; its last state tells the class.

The presets without ``best`` are the settings of the original TensorFlow experiments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastrnn import data, training
from fastrnn.config import Config
from fastrnn.models import Classifier

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _lstm(hidden_size: int) -> Config:
    return Config(
        cell="LSTM", hidden_size=hidden_size, batch_size=500, learning_rate=5e-4, epochs=100
    )


def _gru(hidden_size: int) -> Config:
    return Config(
        cell="GRU", hidden_size=hidden_size, batch_size=200, learning_rate=1e-3, epochs=40
    )


def _best(cell: str, hidden_size: int, num_layers: int, learning_rate: float) -> Config:
    return Config(
        cell=cell,
        hidden_size=hidden_size,
        num_layers=num_layers,
        initialisation="chrono",
        epochs=20,
        batch_size=100,
        learning_rate=learning_rate,
        schedule="cosine",
        warmup=0.05,
        clip=1.0,
    )


class Classification:
    """Task: the class of an image from its pixels in raster order."""

    name = "classification"
    presets: Mapping[str, Config] = {
        "lstm-32": _lstm(32),
        "lstm-64": _lstm(64),
        "lstm-128": _lstm(128),
        "lstm-3x32": Config(
            cell="LSTM", num_layers=3, batch_size=300, learning_rate=7e-4, epochs=100
        ),
        "gru-32": _gru(32),
        "gru-64": _gru(64),
        "gru-128": _gru(128),
        "gru-3x32": Config(cell="GRU", num_layers=3, batch_size=500, learning_rate=6e-4, epochs=1),
        "best-lstm-128": _best("LSTM", 128, 1, 5e-3),
        "best-gru-128": _best("GRU", 128, 1, 5e-3),
        "best-gru-3x32": _best("GRU", 32, 3, 8e-3),
        # For scikit-learn's 8 x 8 digits, of which there are so few that noise has to help.
        "digits": Config(
            pixels="grey",
            input_dropout=0.1,
            hidden_size=64,
            initialisation="orthogonal",
            epochs=80,
            batch_size=32,
            learning_rate=8e-3,
            schedule="cosine",
            warmup=0.1,
            clip=1.0,
        ),
    }

    def default_preset(self, dataset: str) -> str:
        """The quickest that does well."""
        return "digits" if dataset == "digits" else "gru-32"

    def model(self, config: Config, dataset: data.Dataset) -> nn.Module:
        """Recurrent layers, 100 rectified units on the last state, one logit a class."""
        return Classifier(
            config.cell,
            config.hidden_size,
            config.num_layers,
            dataset.classes,
            initialisation=config.initialisation,
        )

    def measure(
        self, model: nn.Module, x: Tensor, labels: Tensor, config: Config
    ) -> dict[str, Tensor]:
        """Cross-entropy in nats, and whether the likeliest class is the right one; each [B]."""
        if model.training and config.input_dropout:
            x = x * (torch.rand_like(x) >= config.input_dropout)
        logits = model(x)
        return {
            "loss": functional.cross_entropy(logits, labels, reduction="none"),
            "accuracy": (logits.argmax(1) == labels).float(),
        }

    def score(self, validation: Mapping[str, float]) -> float:
        """Accuracy."""
        return validation["accuracy"]

    @torch.no_grad()
    def pictures(
        self, model: nn.Module, dataset: data.Dataset, config: Config
    ) -> dict[str, Figure]:
        """The confusion matrix of the test set."""
        from fastrnn import plots

        counts = torch.zeros(dataset.classes, dataset.classes, dtype=torch.int64)
        model.eval()
        for x, labels in training.batches(dataset.test, config):
            pairs = torch.stack([labels, model(x).argmax(1)]).cpu()
            counts.index_put_(tuple(pairs), torch.ones(1, dtype=torch.int64), accumulate=True)
        return {"confusion": plots.confusion(counts)}


TASK = Classification()

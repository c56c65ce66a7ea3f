"""The settings that the tasks on pixels add to the loop's, and what the presets share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastrnn.tasks import data, reset_before
from fastrnn.tasks.initialisation import DEFAULT, INITIALISATIONS
from fastrnn.training.config import Config, ConfigError

MOST_LAYERS = 1000  # far more than can be trained


@dataclass(frozen=True)
class PixelConfig(Config):
    """Every setting of a run.

    Attributes:
        dataset: ``mnist``, ``digits``, or ``auto``: MNIST where it is found, otherwise digits.
        data_dir: the folder of MNIST's files, as :func:`fastrnn.tasks.data.load` takes it.
        pixels: ``binary`` or ``grey``.
        cell: ``LSTM``, ``GRU`` or ``GRU-RESET-BEFORE``.
        hidden_size: H of each layer.
        num_layers: recurrent layers.
        initialisation: see :func:`fastrnn.tasks.initialisation.initialise`.
        input_dropout: share of the pixels that are set to 0 in training, in [0, 1).
        shift: largest distance, in pixels, by which a training image is moved up or down, and left
            or right; the distances are drawn anew each time.
        slant: largest distance, in pixels, by which a training image's top row is moved to one
            side and its bottom row to the other, with all rows between in proportion.

    Raises:
        ConfigError: a setting is invalid.
    """

    dataset: str = "auto"
    data_dir: str | None = None
    pixels: str = "binary"
    cell: str = "GRU"
    hidden_size: int = 32
    num_layers: int = 1
    initialisation: str = DEFAULT
    input_dropout: float = 0.0
    shift: int = 0
    slant: int = 0

    added = Config.added | {"shift", "slant"}

    def __post_init__(self) -> None:
        self._one_of("dataset", "auto", "mnist", "digits")
        self._one_of("pixels", "binary", "grey")
        self._one_of("cell", "LSTM", "GRU", reset_before.MODE)
        self._one_of("initialisation", *INITIALISATIONS)
        self._sizes("hidden_size")
        self._number("num_layers", int, f"1 to {MOST_LAYERS}", lambda n: 1 <= n <= MOST_LAYERS)
        self._shares("input_dropout")
        for name in ("shift", "slant"):
            self._number(name, int, "0 (none) or more", lambda n: 0 <= n < 1 << 31)
        if not isinstance(self.data_dir, str | None):
            raise ConfigError(f"data_dir is {self.data_dir!r}; expected a path", "data_dir")
        super().__post_init__()

    @property
    def layers(self) -> tuple[str, int, int]:
        """Cell, hidden size and number of layers, as every model takes them."""
        return self.cell, self.hidden_size, self.num_layers

    @property
    def moves_images(self) -> bool:
        """Whether training images are shifted or slanted."""
        return self.shift > 0 or self.slant > 0

    @property
    def grey(self) -> bool:
        """Whether the pixels are grey, not binary."""
        return self.pixels == "grey"

    def load_data(self, *, download: bool = False) -> data.Dataset:
        """The dataset of these settings.

        Args:
            download: fetch MNIST if it is missing.

        Raises:
            DataError: the dataset is missing or damaged.
        """
        folder = Path(self.data_dir) if self.data_dir else None
        return data.load(self.dataset, folder, grey=self.grey, download=download)


# What the presets tuned for MNIST share, and those tuned for the 8 x 8 digits.
BEST = PixelConfig(initialisation="chrono", schedule="cosine", warmup=0.05)
BEST_ON_DIGITS = PixelConfig(initialisation="orthogonal", schedule="cosine", warmup=0.1)

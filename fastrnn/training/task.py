"""What the training loop needs from a task and from its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from fastrnn import backends

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Split(Protocol):
    """A part of a dataset."""

    def __len__(self) -> int:
        """How many examples there are."""


class Dataset(Protocol):
    """What to train on, what to select the best weights by, and what to test them on."""

    @property
    def train(self) -> Split:
        """Examples to learn from."""

    @property
    def validation(self) -> Split:
        """Examples that select the best epoch."""

    @property
    def test(self) -> Split:
        """Examples that only the finished run is measured on."""


class Task(Protocol):
    """What a task offers the loop.

    The loop hands a task's own config, dataset and splits back to it, so their types are Any here;
    a task declares the classes it works with.

    Attributes:
        name: what the command line and config.json call it.
        best_by: the metric of :meth:`measure` that selects the best epoch on validation.
        units: the unit of each metric, as an axis's label shows it.
    """

    name: str
    best_by: str
    units: Mapping[str, str]

    def model(self, config: Any, dataset: Any) -> nn.Module:
        """A new model, on the CPU, initialised from torch's global generator.

        Raises:
            ConfigError: the task has no model for these settings.
        """

    def batch(self, split: Any, rows: Tensor, config: Any) -> tuple[Tensor, Tensor]:
        """The examples of a split at ``rows`` [B]: inputs and targets, on the run's device."""

    def noise(self, model: nn.Module, split: Any, count: int, config: Any) -> tuple[Tensor, ...]:
        """All random draws that :meth:`measure` needs for a batch of so many of a split.

        They come from torch's global generators, whose state is part of the checkpoint. Each is
        [..., B, ...] with the examples in dimension 1, so that a share of a batch gets its part.
        """

    def measure(
        self,
        model: nn.Module,
        x: Tensor,
        labels: Tensor,
        config: Any,
        noise: tuple[Tensor, ...],
    ) -> dict[str, Tensor]:
        """Metrics of a batch from :meth:`batch`, [B] each; training minimises the mean ``loss``.

        ``model.training`` is False in evaluation, which needs no gradients.
        """

    def score(self, validation: Mapping[str, float]) -> float:
        """The figure that selects the best epoch; higher is better.

        Args:
            validation: means of :meth:`measure` over the validation set.
        """

    def choose_backend(self, model: nn.Module, config: Any, dataset: Any) -> backends.Choice:
        """The backend that runs the model in training.

        Raises:
            ConfigError: the forced backend cannot run the model.
        """

    def figures(
        self, model: nn.Module, dataset: Any, config: Any
    ) -> dict[str, Callable[[], Figure]]:
        """What draws pictures of the result on the test set, by file name without ``.png``."""

"""What the tasks on pixels share: default presets, models, batches, the choice of a backend."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastrnn import backends
from fastrnn.choice import explain
from fastrnn.tasks import augmentation, data, memory, reset_before
from fastrnn.tasks.config import PixelConfig
from fastrnn.training import report
from fastrnn.training.config import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class PixelTask(abc.ABC):
    """A :class:`~fastrnn.training.task.Task` on images, read as sequences of P pixels.

    Attributes:
        name: what the command line and config.json call it.
        presets: named settings.
        mnist_preset: the default preset for MNIST: the fastest to train that does well.
        best_by: the metric that selects the best epoch on validation.
        units: the unit of each metric, as an axis's label shows it.
        reads_grey: whether the task is defined for grey pixels, not for binary ones alone.
    """

    name: str
    presets: Mapping[str, PixelConfig]
    mnist_preset: str
    best_by: str
    units: Mapping[str, str]
    reads_grey: bool = False

    def default_preset(self, dataset: str) -> str:
        """The name of the preset to use if the user names none."""
        return "digits" if dataset == "digits" else self.mnist_preset

    def model(self, config: PixelConfig, dataset: data.ImageFormat) -> nn.Module:
        """A new model, on the CPU, initialised from torch's global generator.

        Raises:
            ConfigError: the pixels are grey, and the task is defined for binary ones only.
        """
        if config.grey and not self.reads_grey:
            raise ConfigError(f"{self.name} predicts binary pixels, not grey ones: drop --pixels")
        most = (min(dataset.height, dataset.width) - 1) // 2
        for name in ("shift", "slant"):
            if (given := getattr(config, name)) > most:
                raise ConfigError(
                    f"{name} is {given}; expected 0 to {most} for images of {dataset.height} × "
                    f"{dataset.width} pixels",
                    name,
                )
        size = config.hidden_size
        layers, units = report.count(config.num_layers, "layer"), report.count(size, "unit")
        memory.check(
            3 * size * (size + 4) * config.num_layers * 4 * 4,  # weights, gradients, Adam's moments
            f"a model of {layers} of {units}",
            "make --hidden-size or --num-layers smaller",
        )
        return self._new_model(config, dataset)

    @abc.abstractmethod
    def _new_model(self, config: PixelConfig, dataset: data.ImageFormat) -> nn.Module:
        """The model of these settings, which have been checked."""

    def noise(
        self, model: nn.Module, split: data.Split, count: int, config: PixelConfig
    ) -> tuple[Tensor, ...]:
        """The random draws that :meth:`measure` needs for so many of a split's images.

        Each is [..., B, ...] with the images in dimension 1.
        """
        own = self._noise(model, split, count, config)
        if not (model.training and config.moves_images):
            return own
        return (*own, augmentation.moves(count, config.shift, config.slant))

    @abc.abstractmethod
    def _noise(
        self, model: nn.Module, split: data.Split, count: int, config: PixelConfig
    ) -> tuple[Tensor, ...]:
        """The random draws that :meth:`_measure` needs."""

    def measure(
        self,
        model: nn.Module,
        x: Tensor,
        labels: Tensor,
        config: PixelConfig,
        noise: tuple[Tensor, ...],
    ) -> dict[str, Tensor]:
        """Metrics of a batch; training minimises the mean ``loss``.

        Args:
            model: one of :meth:`model`; in training mode, the input may be perturbed.
            x: [P, B, 1] float32, as :func:`fastrnn.tasks.data.sequences` makes it.
            labels: [B] int64.
            config: the run's settings.
            noise: draws of :meth:`noise` for these images.

        Returns:
            Metrics by name, [B] each.
        """
        if model.training and config.moves_images:
            like = data.image_format(config.dataset, grey=config.grey)
            x = augmentation.moved(x, noise[-1], like.height, like.width)
            noise = noise[:-1]
        return self._measure(model, x, labels, config, noise)

    @abc.abstractmethod
    def _measure(
        self,
        model: nn.Module,
        x: Tensor,
        labels: Tensor,
        config: PixelConfig,
        noise: tuple[Tensor, ...],
    ) -> dict[str, Tensor]:
        """:meth:`measure`, of images that are no longer to be moved."""

    @abc.abstractmethod
    def score(self, validation: Mapping[str, float]) -> float:
        """The figure that selects the best epoch; higher is better."""

    @abc.abstractmethod
    def figures(
        self, model: nn.Module, dataset: data.Dataset, config: PixelConfig
    ) -> dict[str, Callable[[], Figure]]:
        """What draws pictures of the result on the test set, by file name without ``.png``."""

    def batch(self, split: data.Split, rows: Tensor, config: PixelConfig) -> tuple[Tensor, Tensor]:
        """The images of a split at ``rows`` [B] int64, on the run's device.

        Returns:
            x [P, B, 1] float32 and labels [B] int64.
        """
        rows = rows.to(split.images.device)
        x = data.sequences(split.images[rows], config.grey)
        return x.to(config.device), split.labels[rows].to(config.device)

    def choose_backend(
        self, model: nn.Module, config: PixelConfig, dataset: data.Dataset
    ) -> backends.Choice:
        """The backend that runs the model's recurrent layers in training.

        Raises:
            ConfigError: the forced backend cannot run them.
        """
        layer = next(m for m in model.modules() if isinstance(m, nn.RNNBase))
        try:
            if isinstance(layer, reset_before.GRUResetBefore):
                return reset_before.choose()
            return explain(
                layer.mode,
                batch=config.batch_size,
                hidden_size=layer.hidden_size,
                input_size=layer.input_size,
                steps=dataset.height * dataset.width,
                device=config.device,
                training=True,
            )
        except (RuntimeError, ValueError) as error:
            raise ConfigError(str(error)) from None


def kept(model: nn.Module, steps: int, count: int, config: PixelConfig) -> tuple[Tensor, ...]:
    """Draws which of [steps, count, 1] pixels a model in training reads; the others are set to 0.

    Nothing is drawn for a model in evaluation mode, or without dropout.
    """
    if not (model.training and config.input_dropout):
        return ()
    drawn = torch.rand(steps, count, 1, device=config.device)
    return (drawn >= config.input_dropout,)


def dropped(x: Tensor, noise: tuple[Tensor, ...]) -> Tensor:
    """Pixels x [P, B, 1] without those that :func:`kept` has not drawn."""
    return x * noise[0] if noise else x

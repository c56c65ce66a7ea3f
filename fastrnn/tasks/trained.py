"""A trained model, to use from Python."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex, TypeVar

import torch
from torch import Tensor, nn

from fastrnn.tasks import data, filling, image_arrays, opening, pixels
from fastrnn.tasks.config import PixelConfig
from fastrnn.tasks.models import Classifier, Inpainter, PixelModel
from fastrnn.training.config import ConfigError
from fastrnn.training.errors import DataError, RunError
from fastrnn.training.evaluation import EVALUATION_BATCH

_CPU = torch.device("cpu")
ModelT = TypeVar("ModelT", bound=nn.Module)

_TASKS = {
    Classifier: "classification",
    PixelModel: "pixel-prediction",
    Inpainter: "inpainting",
}


class Prediction(NamedTuple):
    """What a classifier makes of images.

    Attributes:
        labels: [...] int64, the likeliest class of each image.
        probabilities: [..., classes] float32, of each class.
    """

    labels: Tensor
    probabilities: Tensor


class Filling(NamedTuple):
    """Images whose holes a model has filled.

    Attributes:
        images: [..., H, W] bool.
        nats: [...] float64, negative log-likelihoods: of the whole image given its first pixel, by
            a run of pixel-prediction; of the hidden pixels, by one of inpainting.
    """

    images: Tensor
    nats: Tensor


class TrainedModel:
    """The model of a run with its best weights; :func:`fastrnn.tasks.load` makes it.

    Each method says which tasks it is for; on a run of another task it raises RunError. Images are
    light ink on a dark ground, in H rows of W pixels, in any number of dimensions before these:

    - [..., H, W] or flat [..., H * W], in raster order: 28 x 28 for a run on MNIST, 8 x 8 on the
      digits;
    - bool (ink or none), integers from 0 to 255 (or binary, if none is above 1), or floats from 0
      to 1; tensors on any device, NumPy arrays, Pillow images, or nested lists.

    A model of binary pixels binarises grey ones as its training data were: a pixel is ink from 26
    of 255 on (MNIST), or from 8 of scikit-learn's 16 on (digits). Another shape or value raises
    ValueError, another dtype TypeError. Results are tensors on the model's device; nothing records
    gradients. Random draws come from the CPU, so that a seed means the same on every device.

    Attributes:
        run: the run's folder.
        task: ``classification``, ``pixel-prediction`` or ``inpainting``.
        config: the run's settings.
        image_format: name of the dataset, height, width, classes, and whether pixels are grey.
        module: the :class:`torch.nn.Module`, in evaluation mode. Its state_dict has the names and
            shapes of the same model made of torch.nn.LSTM or GRU, and loads into it.
    """

    def __init__(
        self,
        run: Path,
        task: str,
        config: PixelConfig,
        image_format: data.ImageFormat,
        module: nn.Module,
    ) -> None:
        self.run = run
        self.task = task
        self.config = config
        self.image_format = image_format
        self.module = module

    def __repr__(self) -> str:
        like, config = self.image_format, self.config
        return (
            f"<{self.task} of {like.name}, {like.height} x {like.width} {config.pixels} pixels: "
            f"{config.cell} {config.num_layers} x {config.hidden_size}, from {self.run}>"
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are, and the results."""
        return next(self.module.parameters()).device

    @torch.no_grad()
    def predict(self, images: Any) -> Prediction:
        """The classes of images. For runs of classification.

        Args:
            images: [..., H, W], see :class:`TrainedModel`.
        """
        model = self._model("predict", Classifier)
        flat, leading = self._read(images)
        parts = flat.split(EVALUATION_BATCH)
        logits = torch.cat([model(data.sequences(part, grey=False)) for part in parts])
        return Prediction(
            logits.argmax(1).view(leading), logits.softmax(1).view(*leading, logits.shape[1])
        )

    def log_likelihood(self, images: Any) -> Tensor:
        """Log-likelihoods of images, each given its first pixel. For runs of pixel-prediction.

        Args:
            images: [..., H, W], see :class:`TrainedModel`.

        Returns:
            [...] float64, in nats; their mean, negated, is the loss that evaluate prints.
        """
        model = self._model("log_likelihood", PixelModel)
        flat, leading = self._read(images)
        return pixels.score(model, flat).view(leading)

    def sample(self, count: int = 1, *, seed: SupportsIndex | torch.Generator = 0) -> Tensor:
        """Draws whole images. For runs of pixel-prediction.

        The first pixel, which the model does not predict, is blank.

        Args:
            count: how many, N.
            seed: of the draws, or a generator on the CPU, which goes on from call to call.

        Returns:
            [N, H, W] bool.
        """
        self._model("sample", PixelModel)
        blank = torch.zeros(self._size, dtype=torch.bool, device=_CPU)
        return self.complete(blank, 1, samples=count, seed=seed)

    def complete(
        self,
        images: Any,
        known: int,
        *,
        samples: int = 1,
        seed: SupportsIndex | torch.Generator = 0,
    ) -> Tensor:
        """Draws the ends of images. For runs of pixel-prediction.

        Args:
            images: [..., H, W], see :class:`TrainedModel`.
            known: how many pixels of each image to keep, from the first on in raster order, from 1
                to H * W; 14 * 28 keeps the upper half of an image of MNIST. The values of the
                others are ignored.
            samples: how many completions of each image to draw, S.
            seed: of the draws, or a generator on the CPU, which goes on from call to call.

        Returns:
            [..., S, H, W] bool: the known pixels and the drawn ones.
        """
        model = self._model("complete", PixelModel)
        flat, leading = self._read(images)
        count, size = flat.shape
        if not 1 <= known <= size:
            raise ValueError(f"known is {known}; expected 1 to {size}, pixels of an image")
        if samples < 0:
            raise ValueError(f"samples is {samples}; expected 0 or more")
        generator = seed
        if not isinstance(generator, torch.Generator):
            generator = torch.Generator(_CPU).manual_seed(operator.index(generator))
        uniforms = torch.rand(
            count, samples, size - known, generator=generator, dtype=torch.float32, device=_CPU
        ).to(self.device)
        drawn, _ = pixels.sample(model, flat[:, :known], size - known, uniforms)
        prefix = flat[:, None, :known].expand(-1, samples, -1)
        return self._shaped(torch.cat([prefix, drawn], 2), *leading, samples)

    def fill(self, images: Any, hidden: Any, *, width: int = filling.WIDTH) -> Filling:
        """Fills holes in images. For runs of pixel-prediction and inpainting.

        A run of pixel-prediction finds the likeliest of all fillings, exactly if an image hides at
        most log2(``width``) pixels, otherwise by a beam search. A run of inpainting fills the
        hidden pixels one by one, always the one that the model is surest of.

        Args:
            images: [..., H, W], see :class:`TrainedModel`; the values of hidden pixels are ignored.
            hidden: bool, True where a pixel is hidden, of the images' shape; one mask [H, W] serves
                all of them.
            width: how many fillings of an image to follow, for runs of pixel-prediction.

        Returns:
            The images with all their pixels, and their nats.
        """
        model = self._model("fill", PixelModel, Inpainter)
        flat, leading = self._read(images)
        mask = image_arrays.read_mask(hidden, leading, self.image_format).to(self.device)
        if width < 1:
            raise ValueError(f"width is {width}; expected 1 or more fillings")
        done, nats = filling.filled(model, flat, mask, width)
        return Filling(self._shaped(done, *leading), nats.view(leading))

    @property
    def _size(self) -> tuple[int, int]:
        return self.image_format.height, self.image_format.width

    def _read(self, given: Any) -> tuple[Tensor, torch.Size]:
        """Pixels [N, P] on the model's device, and the shape of the dimensions that became N."""
        flat, leading = image_arrays.read(given, self.image_format)
        return flat.to(self.device), leading

    def _shaped(self, flat: Tensor, *leading: int) -> Tensor:
        """Binary pixels as images [*leading, H, W] bool."""
        return flat.bool().view(*leading, *self._size)

    def _model(self, method: str, *kinds: type[ModelT]) -> ModelT:
        """The module, if it is of one of these kinds."""
        if isinstance(self.module, kinds):
            return self.module
        tasks = " or ".join(_TASKS[kind] for kind in kinds)
        raise RunError(
            f"{self.run} is a run of {self.task}, which has no {method}(): load a run of {tasks}"
        )


def load(
    run: str | os.PathLike[str],
    device: str | torch.device | None,
    warn: Callable[[str], None] = opening.print_warning,
) -> TrainedModel:
    """As :func:`fastrnn.tasks.load`; calls ``warn`` with problems that do not prevent loading."""
    folder = Path(run)
    wanted = None if device is None else str(device)
    if wanted is not None and (missing := PixelConfig(device=wanted).missing_device):
        raise ConfigError(f"{missing}; use cpu", "device")
    opened, task, config = opening.open_run(folder, warn=warn, device=wanted)
    try:
        like = data.image_format(config.dataset, grey=config.grey)
    except DataError as error:
        raise RunError(f"{folder / 'config.json'} is damaged ({error})") from None
    module = opening.restored(opened, task, config, like, warn)
    return TrainedModel(folder, task.name, config, like, module)

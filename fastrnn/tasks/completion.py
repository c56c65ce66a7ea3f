"""Completion: draws the last pixels of test images from a pixel model, and scores them by it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fastrnn.tasks import data, pixels
from fastrnn.tasks.models import PixelModel
from fastrnn.training import distributed
from fastrnn.training.config import ConfigError

LENGTHS = {"mnist": (1, 10, 28, 300), "digits": (1, 4, 8, 22)}  # pixels to complete, by dataset
BATCH = 100  # images that are completed at once


@dataclass(frozen=True)
class Completions:
    """N test images of P pixels, of which the last W were drawn S times.

    Attributes:
        rows: [N] int64, the images' places in the test set.
        images: [N, P] uint8.
        labels: [N] int64.
        samples: [N, S, W] uint8.
        logits: [N, S, W] of each sampled pixel, given the sampled ones before it.
        true_logits: [N, W] of each true pixel, given the true ones before it.
        seconds: time spent on drawing.
    """

    rows: Tensor
    images: Tensor
    labels: Tensor
    samples: Tensor
    logits: Tensor
    true_logits: Tensor
    seconds: float

    @property
    def window(self) -> int:
        """W."""
        return self.samples.shape[2]

    def sample_nats(self, lengths: Sequence[int]) -> Tensor:
        """Cross-entropy [N, S, lengths] float64 of the first so many drawn pixels, summed."""
        return _nats(self.logits, self.samples, lengths)

    def true_nats(self, lengths: Sequence[int]) -> Tensor:
        """Cross-entropy [N, lengths] float64 of the first so many removed pixels, summed."""
        return _nats(self.true_logits, self.images[:, -self.window :], lengths)

    def variance(self, lengths: Sequence[int]) -> Tensor:
        """Variance over the samples [N, lengths] float64, mean over the first so many pixels."""
        variance = self.samples.double().var(1, unbiased=False).cumsum(1)
        return _at(variance, lengths) / torch.tensor(lengths)


def _nats(logits: Tensor, drawn: Tensor, lengths: Sequence[int]) -> Tensor:
    losses = functional.binary_cross_entropy_with_logits(
        logits.double(), drawn.double(), reduction="none"
    )
    return _at(losses.cumsum(-1), lengths)


def _at(sums: Tensor, lengths: Sequence[int]) -> Tensor:
    return sums[..., torch.tensor(lengths) - 1]


def checked_lengths(text: str | None, dataset: data.Dataset) -> tuple[int, ...]:
    """How many pixels to complete: numbers in rising order.

    Args:
        text: as in ``1,10,28,300``, in any order; None for the dataset's own.
        dataset: whose images have P pixels.

    Raises:
        ConfigError: a number is not from 1 to P - 1, or occurs twice.
    """
    if text is None:
        return LENGTHS[dataset.name]
    last = dataset.height * dataset.width - 1
    found = {int(each) for each in text.split(",") if each.strip().isdecimal()}
    if len(found) != len(text.split(",")) or min(found) < 1 or max(found) > last:
        raise ConfigError(
            f"--pixels is {text!r}; expected different whole numbers from 1 to {last}, as in "
            f"{','.join(map(str, LENGTHS[dataset.name]))}"
        )
    return tuple(sorted(found))


@torch.no_grad()
def complete(
    model: PixelModel,
    test: data.Split,
    *,
    window: int,
    images: int,
    samples: int,
    seed: int,
    show: Callable[[int], None],
) -> Completions:
    """Chooses images at random and draws their last pixels.

    A shorter completion is the beginning of a longer one, so one drawing serves every length.
    Several processes share the images; all of them return the whole.

    Args:
        model: in evaluation mode.
        test: binary images to choose from.
        window: W, pixels to draw of each image.
        images: N.
        samples: S.
        seed: of a generator on the CPU, so that every backend and device draws the same pixels.
        show: called with the number of completed images after each batch.
    """
    device = model.head.weight.device
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(test), generator=generator)[:images]
    uniforms = torch.rand(images, samples, window, generator=generator)
    own, _ = distributed.share(images)
    parts = []
    seconds = 0.0
    for batch in own.split(BATCH):
        x = data.sequences(test.images[rows[batch]], grey=False).to(device)
        true_logits = model(x[:-1])[-window:].t()
        prefix = x[:-window, :, 0].t().to(torch.uint8)
        started = time.perf_counter()
        drawn, logits = pixels.sample(model, prefix, window, uniforms[batch].to(device))
        parts.append((drawn.cpu(), logits.cpu(), true_logits.cpu()))
        seconds += time.perf_counter() - started
        show(min(sum(len(part[0]) for part in parts) * distributed.size(), images))
    drawn, logits, true_logits = distributed.collected(own, parts, images)
    return Completions(
        rows, test.images[rows], test.labels[rows], drawn, logits, true_logits, seconds
    )


def means(done: Completions, lengths: Sequence[int]) -> list[dict[str, float]]:
    """A row per length: mean nats per image and per pixel, true and sampled."""
    true = done.true_nats(lengths).mean(0).tolist()
    sampled = done.sample_nats(lengths).mean((0, 1)).tolist()
    return [
        {
            "pixels": length,
            "true_nats": t,
            "true_nats_per_pixel": t / length,
            "sample_nats": s,
            "sample_nats_per_pixel": s / length,
        }
        for length, t, s in zip(lengths, true, sampled, strict=True)
    ]

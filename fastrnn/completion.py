"""Completing images: the last pixels of test images are removed, drawn from a model and judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fastrnn import data, pictures, pixels, plots, runs, training
from fastrnn.config import Config, ConfigError
from fastrnn.models import PixelModel

LENGTHS = {"mnist": (1, 10, 28, 300), "digits": (1, 4, 8, 22)}
BATCH = 100  # images that are completed at once
PICTURED = 10  # images in a picture, and samples of each


@dataclass(frozen=True)
class Completions:
    """N test images of P pixels, of which the last W were drawn S times."""

    rows: Tensor  # [N] places in the test set
    images: Tensor  # [N, P] uint8
    labels: Tensor  # [N]
    samples: Tensor  # [N, S, W] uint8
    logits: Tensor  # [N, S, W] of each sampled pixel, given the sampled ones before it
    true_logits: Tensor  # [N, W] of each true pixel, given the true ones before it
    seconds: float  # spent on drawing

    @property
    def window(self) -> int:
        """W."""
        return self.samples.shape[2]

    def sample_nats(self, lengths: Sequence[int]) -> Tensor:
        """Cross-entropy [N, S, lengths] of the first pixels that were drawn."""
        return _nats(self.logits, self.samples, lengths)

    def true_nats(self, lengths: Sequence[int]) -> Tensor:
        """Cross-entropy [N, lengths] of the first pixels that were removed."""
        return _nats(self.true_logits, self.images[:, -self.window :], lengths)

    def variance(self, lengths: Sequence[int]) -> Tensor:
        """Variance [N, lengths] of a pixel over the samples, mean over the first pixels."""
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
    """Numbers of pixels to complete, from ``1,10,28,300`` or the data set's own; in rising order.

    Raises:
        ConfigError: one is not a number from 1 to P - 1.
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
    config: Config,
    *,
    window: int,
    images: int,
    samples: int,
    seed: int,
    show: Callable[[int], None],
) -> Completions:
    """Draws the last pixels of images that the seed chooses, with random numbers of the seed's.

    A shorter completion is the beginning of a longer one, so one drawing serves every length.

    Args:
        model: in evaluation mode.
        test: where the images come from.
        config: the run's device.
        window: W, pixels to draw of each image.
        images, samples: N and S.
        seed: of a generator on the CPU, so that every backend and device draws the same.
        show: is called with the images that are done.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(test), generator=generator)[:images]
    uniforms = torch.rand(images, samples, window, generator=generator)
    parts = []
    seconds = 0.0
    for first in range(0, images, BATCH):
        batch = slice(first, first + BATCH)
        x, _ = training.batch(test, rows[batch], config)
        true_logits = model(x[:-1])[-window:].t()
        prefix = x[:-window, :, 0].t().to(torch.uint8)
        start = time.perf_counter()
        drawn, logits = pixels.sample(model, prefix, window, uniforms[batch].to(x.device))
        parts.append((drawn.cpu(), logits.cpu(), true_logits.cpu()))
        seconds += time.perf_counter() - start
        show(min(first + BATCH, images))
    drawn, logits, true_logits = (torch.cat(part) for part in zip(*parts, strict=True))
    return Completions(
        rows, test.images[rows], test.labels[rows], drawn, logits, true_logits, seconds
    )


def means(done: Completions, lengths: Sequence[int]) -> list[dict[str, float]]:
    """A row for each length: mean nats of an image and of a pixel, true and sampled."""
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


def write(
    folder: Path,
    done: Completions,
    lengths: Sequence[int],
    shape: tuple[int, int],
    facts: Mapping[str, Any],
) -> None:
    """Fills a folder with arrays, tables, pictures and, with the facts in it, summary.json.

    ::

        completions.npz              images, samples, logits, nats
        images.csv means.csv         nats by image and length, and by length
        completions.png              the first images
        fail/ good/ var/             LENGTH.png: the images whose true pixels are the least and the
                                     most likely, and those whose samples differ most
    """
    known = done.images.shape[1] - done.window
    true, sampled = done.true_nats(lengths), done.sample_nats(lengths)
    variance = done.variance(lengths)
    masked = done.images.to(torch.int8)
    masked[:, known:] = -1
    completed = done.images[:, None].repeat(1, done.samples.shape[1], 1)
    completed[:, :, known:] = done.samples
    runs.write_arrays(
        folder / "completions.npz",
        rows=done.rows,
        labels=done.labels,
        images=done.images,
        masked=masked,
        samples=completed,
        logits=done.logits,
        true_logits=done.true_logits,
        lengths=lengths,
        sample_nats=sampled,
        true_nats=true,
    )
    runs.write_csv(
        folder / "images.csv",
        [
            {
                "row": int(done.rows[image]),
                "label": int(done.labels[image]),
                "pixels": length,
                "true_nats": true[image, k].item(),
                "sample_nats": sampled[image, :, k].mean().item(),
                "variance": variance[image, k].item(),
            }
            for k, length in enumerate(lengths)
            for image in range(len(done.rows))
        ],
    )
    table = means(done, lengths)
    runs.write_csv(folder / "means.csv", table)
    shaped = done.images.view(-1, *shape), completed.view(*completed.shape[:2], *shape)
    for name, (title, chosen, k) in sets(done, lengths).items():
        figure = pictures.completions(
            title,
            *(images[chosen] for images in shaped),
            known=known,
            predicted=lengths[k],
            captions=[
                f"test {done.rows[image]}: {done.labels[image]}\n{true[image, k]:.2f} nats"
                for image in chosen.tolist()
            ],
        )
        (folder / name).parent.mkdir(exist_ok=True)
        plots.save(figure, folder / name)
    summary = {**facts, "sampling_seconds": done.seconds, "means": table}
    runs.write_json(folder / "summary.json", summary)


def sets(done: Completions, lengths: Sequence[int]) -> dict[str, tuple[str, Tensor, int]]:
    """Pictures by file name: a title, the images to show, and the place of their length."""
    true, variance = done.true_nats(lengths), done.variance(lengths)
    last = len(lengths) - 1
    count = f"of {len(done.rows)} images"
    some = f"{min(PICTURED, len(done.rows))} {count}, the last {done.window} pixels drawn"
    found = {"completions.png": (some, torch.arange(len(done.rows)), last)}
    for k, length in enumerate(lengths):
        end = "next pixel" if length == 1 else f"next {length} pixels"
        orders = {
            "fail": (f"FAIL: true {end} least likely, {count}", -true[:, k]),
            "good": (f"GOOD: true {end} most likely, {count}", true[:, k]),
            "var": (f"VAR: sampled {end} most varied, {count}", -variance[:, k]),
        }
        for name, (title, key) in orders.items():
            found[f"{name}/{length}.png"] = (title, key.sort(stable=True).indices, k)
    return {name: (title, rows[:PICTURED], k) for name, (title, rows, k) in found.items()}

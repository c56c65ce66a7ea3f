"""The folder that a completion writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastrnn.tasks import completion_figures
from fastrnn.tasks.completion import Completions, means
from fastrnn.training import figures, files, report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURED = 8  # images in a figure


def write(
    folder: Path,
    done: Completions,
    lengths: Sequence[int],
    facts: Mapping[str, Any],
) -> None:
    """Fills a folder with arrays, tables and summary.json, which lists their checksums.

    ::

        completions.npz              images, samples, logits, nats
        images.csv means.csv         nats by image and length, and by length

    Args:
        folder: exists and is empty.
        done: the completions.
        lengths: how many pixels to judge; the largest is W.
        facts: more entries of summary.json.

    Raises:
        RunError: a file cannot be written.
    """
    known = done.images.shape[1] - done.window
    true, sampled = done.true_nats(lengths), done.sample_nats(lengths)
    variance = done.variance(lengths)
    masked = done.images.to(torch.int8)
    masked[:, known:] = -1
    files.write_arrays(
        folder / "completions.npz",
        rows=done.rows,
        labels=done.labels,
        images=done.images,
        masked=masked,
        samples=_completed(done),
        logits=done.logits,
        true_logits=done.true_logits,
        lengths=lengths,
        sample_nats=sampled,
        true_nats=true,
    )
    files.write_csv(
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
    files.write_csv(folder / "means.csv", table)
    summary = {**facts, "sampling_seconds": done.seconds, "means": table}
    files.write_summary(folder, summary, ["completions.npz", "images.csv", "means.csv"])


def draw(
    folder: Path,
    done: Completions,
    lengths: Sequence[int],
    shape: tuple[int, int],
    warn: Callable[[str], None],
    show: Callable[[int], None],
) -> None:
    """Adds the figures.

    ::

        completions.png              the first images
        fail/ good/ var/             LENGTH.png: the images whose true pixels are the least and the
                                     most likely, and those whose samples differ most

    Args:
        folder: what :func:`write` has filled, at its place.
        done, lengths: as :func:`write`.
        shape: height and width of an image.
        warn: told of each picture that cannot be made.
        show: called with the number of pictures after each, of :func:`pictures`.
    """
    known = done.images.shape[1] - done.window
    true = done.true_nats(lengths)
    sampled = done.sample_nats(lengths)
    truth, samples = done.images.view(-1, *shape), _completed(done)
    for number, (name, (title, chosen, k)) in enumerate(sets(done, lengths).items(), 1):

        def make(title: str = title, chosen: Tensor = chosen, k: int = k) -> Figure:
            shown = completion_figures.ranks(sampled[chosen, :, k])
            return completion_figures.completions(
                title,
                truth[chosen],
                samples[chosen[:, None], shown].view(*shown.shape, *shape),
                known=known,
                predicted=lengths[k],
                captions=[
                    f"test {done.rows[image]}: {done.labels[image]}\n{true[image, k]:.2f} nats"
                    for image in chosen.tolist()
                ],
            )

        figures.draw(make, folder / name, warn)
        show(number)


def pictures(lengths: Sequence[int]) -> int:
    """How many pictures :func:`draw` adds."""
    return 1 + 3 * len(lengths)


def _completed(done: Completions) -> Tensor:
    """The images with each of their drawn ends, [N, S, P] uint8."""
    whole = done.images[:, None].repeat(1, done.samples.shape[1], 1)
    whole[:, :, -done.window :] = done.samples
    return whole


def sets(done: Completions, lengths: Sequence[int]) -> dict[str, tuple[str, Tensor, int]]:
    """The figures to draw, by file name.

    Returns:
        For each: its title, the rows of ``done`` to show, and the index of its length.
    """
    true, variance = done.true_nats(lengths), done.variance(lengths)
    longest = len(lengths) - 1
    count = f"{min(PICTURED, len(done.rows))} of {report.count(len(done.rows), 'image')}"
    window = "last pixel" if done.window == 1 else f"last {done.window:,} pixels"
    some = f"{count}, the {window} drawn"
    found = {"completions.png": (some, torch.arange(len(done.rows)), longest)}
    for k, length in enumerate(lengths):
        end = "next pixel" if length == 1 else f"part of {length} pixels"
        orders = {
            "fail": (f"{count}, those whose true {end} is least likely", -true[:, k]),
            "good": (f"{count}, those whose true {end} is most likely", true[:, k]),
            "var": (f"{count}, those whose drawn {end} varies most", -variance[:, k]),
        }
        for name, (title, key) in orders.items():
            found[f"{name}/{length}.png"] = (title, key.sort(stable=True).indices, k)
    return {name: (title, rows[:PICTURED], k) for name, (title, rows, k) in found.items()}

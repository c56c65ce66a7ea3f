"""``fastrnn complete``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastrnn.cli.shared import (
    Backend,
    DataDir,
    Device,
    check_images,
    check_number,
    command_line,
    progress,
    restored,
)


def complete(
    run: Annotated[Path, typer.Argument(help="Folder of a run of pixel-prediction.")],
    images: Annotated[int, typer.Option(help="Test images to complete.")] = 100,
    samples: Annotated[int, typer.Option(help="Completions of each.")] = 10,
    pixels: Annotated[
        str | None,
        typer.Option(help="Numbers of pixels to judge; the most are drawn. As in 1,10,28,300."),
    ] = None,
    seed: Annotated[int, typer.Option()] = 0,
    out: Annotated[
        Path | None, typer.Option(help="A new folder; RUN/completions if not given.")
    ] = None,
    data_dir: DataDir = None,
    device: Device = None,
    backend: Backend = None,
) -> None:
    """Remove the end of test images, draw it from the model, and judge what was drawn."""
    from fastrnn import completion, runs, training
    from fastrnn.models import PixelModel

    found = restored(run, data_dir, device, backend, "pixel-prediction")
    model, data, config = found.model, found.dataset, found.config
    assert isinstance(model, PixelModel)
    lengths = completion.checked_lengths(pixels, data)
    check_images(images, data)
    check_number("--samples", samples, 1)
    check_number("--seed", seed, 0)
    with runs.new_folder(out or run / "completions") as folder:
        with progress("completing", images) as show, training.forced(config):
            done = completion.complete(
                model,
                data.test,
                config,
                window=max(lengths),
                images=images,
                samples=samples,
                seed=seed,
                show=show,
            )
        facts = {
            "images": images,
            "samples": samples,
            "seed": seed,
            "command": command_line(),
        }
        completion.write(folder, done, lengths, (data.height, data.width), facts)
    print(
        f"{images} images × {samples} samples in {done.seconds:.2f} s: {out or run / 'completions'}"
    )
    for row in completion.means(done, lengths):
        print(
            f"{row['pixels']:4} pixels: true {row['true_nats']:8.3f} nats, "
            f"sampled {row['sample_nats']:8.3f} nats an image"
        )

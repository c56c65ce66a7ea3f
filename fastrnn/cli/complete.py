"""``fastrnn complete``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastrnn.cli import options


def complete(
    run: Annotated[Path, typer.Argument(help="Folder of a run of pixel-prediction.")],
    images: Annotated[int, typer.Option(help="Test images to complete.")] = 100,
    samples: Annotated[int, typer.Option(help="Completions per image.")] = 10,
    pixels: Annotated[
        str | None,
        typer.Option(help="Lengths to judge, as in 1,10,28,300; the longest is drawn."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice of images and of the samples.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="A new folder; RUN/completions if not given.")
    ] = None,
    data_dir: options.DataDir = None,
    device: options.Device = None,
    backend: options.Backend = None,
) -> None:
    """Remove the end of test images, draw it from the model, and judge the result."""
    from fastrnn.cli import runs
    from fastrnn.tasks import completion, completion_files, memory
    from fastrnn.tasks.models import PixelModel
    from fastrnn.training import report

    found = runs.open_trained(run, data_dir, device, backend, "pixel-prediction")
    model, data = found.model, found.dataset
    assert isinstance(model, PixelModel)
    lengths = completion.checked_lengths(pixels, data)
    options.check_images(images, data)
    options.check_number("--samples", samples, 1)
    options.check_number("--seed", seed, 0)
    samples_of_all = images * samples * (9 * max(lengths) + data.height * data.width)
    memory.check(samples_of_all, "completing", "make --images or --samples smaller")
    target = out or run / "completions"
    output = report.Output()
    with runs.results(target) as folder:
        with runs.progress("completing", images) as show, found.config.use_backend():
            done = completion.complete(
                model,
                data.test,
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
            "command": runs.command_line(),
        }
        if folder:
            completion_files.write(folder, done, lengths, facts)
    output.print(f"{images} images × {samples} samples in {done.seconds:.2f} s: {target}")
    for row in completion.means(done, lengths):
        output.print(
            f"{row['pixels']:4} pixels: true {row['true_nats']:8.3f}, "
            f"sampled {row['sample_nats']:8.3f} nats per image"
        )
    if folder:
        completion_files.draw(target, done, lengths, (data.height, data.width), output.warn)

"""``fastrnn complete``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastrnn.cli import options


def complete(
    run: Annotated[Path, typer.Argument(help="Folder of a run of pixel-prediction.")],
    images: Annotated[int, typer.Option(help="Test images to complete, chosen at random.")] = 100,
    samples: Annotated[int, typer.Option(help="Completions to draw per image.")] = 10,
    pixels: Annotated[
        str | None,
        typer.Option(
            help="Lengths to judge, in pixels; the longest is drawn.",
            show_default="1,10,28,300; 1,4,8,22 for 8×8 digits",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice of images and of the samples.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="A new folder for the results.", show_default="RUN/completions"),
    ] = None,
    data_dir: options.DataDir = None,
    device: options.Device = None,
    backend: options.Backend = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Draw the end of test images from a pixel model.

    The last pixels of each image are removed and drawn several times. The command prints the
    model's cross-entropy of the true and of the drawn pixels, in nats per image.
    """
    from fastrnn.cli import results
    from fastrnn.tasks import completion, completion_files, memory, opening
    from fastrnn.tasks.models import PixelModel
    from fastrnn.training import report

    found = opening.open_trained(run, data_dir, device, backend, "pixel-prediction")
    model, data = found.model, found.dataset
    assert isinstance(model, PixelModel)
    lengths = completion.checked_lengths(pixels, data)
    options.check_images(images, data)
    options.check_number("--samples", samples, 1)
    options.check_number("--seed", seed, 0)
    samples_of_all = images * samples * (9 * max(lengths) + data.height * data.width)
    memory.check(samples_of_all, "completing", "make --images or --samples smaller")
    target = out or run / "completions"
    output, bar = options.outputs(verbose, quiet, as_json=as_json)
    with results.new_folder(target) as folder:
        with bar.progress("completing", images) as show, found.config.use_backend():
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
            "command": results.command_line(),
        }
        if folder:
            completion_files.write(folder, done, lengths, facts)
    if as_json:
        table = completion.means(done, lengths)
        output.json({"folder": str(target), **facts, "seconds": done.seconds, "means": table})
    else:
        counts = f"{report.count(images, 'image')} × {report.count(samples, 'sample')}"
        output.print(f"{counts} in {done.seconds:.2f} s: {target}")
        for row in completion.means(done, lengths):
            noun = "pixel: " if row["pixels"] == 1 else "pixels:"
            output.print(
                f"{row['pixels']:4} {noun} true {row['true_nats']:8.3f}, "
                f"sampled {row['sample_nats']:8.3f} nats per image"
            )
    output.detail(options.on_what(found, images, done.seconds))
    if folder:
        count, shape = completion_files.pictures(lengths), (data.height, data.width)
        with bar.progress("drawing", count, unit="pictures") as show:
            completion_files.draw(target, done, lengths, shape, output.warn, show)

"""``fastrnn inpaint``."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastrnn.cli import options
from fastrnn.training.config import ConfigError

if TYPE_CHECKING:
    from fastrnn.tasks.config import PixelConfig
    from fastrnn.tasks.data import Dataset
    from fastrnn.tasks.holes import Holes


def inpaint(
    run: Annotated[Path, typer.Argument(help="Folder of a run of pixel-prediction or inpainting.")],
    holes: Annotated[
        str,
        typer.Option(
            help="pixel or square (2×2): one hole per test image; or a file with an array "
            "[2, N, P]: images with -1 in their holes, and the same images whole."
        ),
    ] = "square",
    images: Annotated[
        int | None,
        typer.Option(
            help="Test images, from the first on.", show_default="1000, or all if there are fewer"
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Share of white, above 0 up to 1, from which a pixel is 1.",
            show_default="as in training",
        ),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(
            help="For a run of pixel-prediction: fillings to follow per image.",
            show_default="256",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the holes' places.", show_default="0")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="A new folder for the results.", show_default="RUN/inpainted-HOLES"),
    ] = None,
    data_dir: options.DataDir = None,
    device: options.Device = None,
    backend: options.Backend = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Fill holes in images, and compare with the true pixels.

    The images are the test set's, or those of a file. The model's cross-entropy of the filled and
    of the true image is reported in nats per image.
    """
    from fastrnn.cli import results
    from fastrnn.tasks import filling, filling_files, opening
    from fastrnn.training import report

    found = opening.open_trained(run, data_dir, device, backend, "pixel-prediction", "inpainting")
    if width is not None:
        options.check_number("--width", width, 1)
        if found.task.name != "pixel-prediction":
            raise ConfigError(
                f"--width is for a run of pixel-prediction; {run} is one of inpainting: drop it"
            )
    data = found.dataset
    wanted = _holes(holes, images, threshold, seed, data, found.config)
    target = out or run / f"inpainted-{Path(holes).stem}"
    output, bar = options.outputs(verbose, quiet, as_json=as_json)
    with results.new_folder(target) as folder:
        start = time.perf_counter()
        with bar.progress("in-painting", len(wanted)) as show, found.config.use_backend():
            done = filling.fill(found.model, wanted, width or filling.WIDTH, show)
        seconds = time.perf_counter() - start
        facts = {
            "task": found.task.name,
            "images": len(wanted),
            "holes": holes,
            "seconds": seconds,
            "command": results.command_line(),
        }
        if folder:
            filling_files.write(folder, wanted, done, facts)
    metrics = filling.metrics(wanted, done)
    if as_json:
        output.json({"folder": str(target), **facts, **metrics})
    else:
        output.print(
            f"{report.count(len(wanted), 'image')} in {seconds:.2f} s: {target}\n"
            f"all right {metrics['exact_accuracy']:.2%}, "
            f"pixels right {metrics['pixel_accuracy']:.2%}\n"
            f"in-painted {metrics['inpainted_nats']:.4f}, true {metrics['true_nats']:.4f} "
            "nats per image"
        )
    output.detail(options.on_what(found, len(wanted), seconds))
    if folder:
        filling_files.draw(target, wanted, done, (data.height, data.width), output.warn)


def _holes(
    text: str,
    images: int | None,
    threshold: float | None,
    seed: int | None,
    dataset: Dataset,
    config: PixelConfig,
) -> Holes:
    """The holes that --holes asks for; the other options are for generated ones."""
    from fastrnn.tasks import holes

    if text not in holes.SIDES:
        if not (images is threshold is seed is None):
            raise ConfigError(
                "--images, --threshold and --seed are for generated holes: drop them, or give "
                "--holes pixel or --holes square"
            )
        if not Path(text).exists():
            raise ConfigError(f"--holes is {text!r}; expected pixel, square or a file")
        return holes.read(Path(text), dataset.height * dataset.width)
    count = min(1000, len(dataset.test)) if images is None else images
    options.check_images(count, dataset)
    seed = 0 if seed is None else seed
    options.check_number("--seed", seed, 0)
    truth = dataset.test.images
    if threshold is not None:
        if not 0 < threshold <= 1:
            raise ConfigError(f"--threshold is {threshold}; expected more than 0, at most 1")
        grey = dataclasses.replace(config, dataset=dataset.name, pixels="grey").load_data()
        truth = holes.binarised(grey.test.images, threshold)
    return holes.generate(truth[:count], dataset.height, dataset.width, text, seed)

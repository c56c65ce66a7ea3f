"""``fastrnn inpaint``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from fastrnn.config import Config
    from fastrnn.data import Dataset
    from fastrnn.holes import Holes


def inpaint(
    run: Annotated[Path, typer.Argument(help="Folder of a run of pixel-prediction or inpainting.")],
    holes: Annotated[
        str,
        typer.Option(help="pixel or square (2×2): make one in each image; or a file, [2, N, P]."),
    ] = "square",
    images: Annotated[
        int | None, typer.Option(help="Test images, from the first on; 1000 if there are.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Share of white from which a test image's pixel is 1; as trained."),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(help="Fillings that are followed with a pixel-prediction run; 256."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the generated holes' places; 0.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="A new folder; RUN/inpainted-HOLES if not given.")
    ] = None,
    data_dir: DataDir = None,
    device: Device = None,
    backend: Backend = None,
) -> None:
    """Fill holes of test images, or of a file's, and compare with the true pixels."""
    from fastrnn import inpainting, runs, training
    from fastrnn.config import ConfigError

    found = restored(run, data_dir, device, backend, "pixel-prediction", "inpainting")
    if width is not None:
        check_number("--width", width, 1)
        if found.task.name != "pixel-prediction":
            raise ConfigError(f"--width is of a run of pixel-prediction; {run} is of inpainting")
    data = found.dataset
    wanted = _holes(holes, images, threshold, seed, data, found.config)
    target = out or run / f"inpainted-{Path(holes).stem}"
    with runs.new_folder(target) as folder:
        start = time.perf_counter()
        with progress("in-painting", len(wanted)) as show, training.forced(found.config):
            done = inpainting.fill(found.model, wanted, width or inpainting.WIDTH, show)
        facts = {
            "task": found.task.name,
            "images": len(wanted),
            "holes": holes,
            "seconds": time.perf_counter() - start,
            "command": command_line(),
        }
        inpainting.write(folder, wanted, done, (data.height, data.width), facts)
    figures = inpainting.figures(wanted, done)
    print(
        f"{len(wanted)} images in {facts['seconds']:.2f} s: {target}\n"
        f"all right {figures['exact_accuracy']:.2%}, pixels right {figures['pixel_accuracy']:.2%}; "
        f"in-painted {figures['inpainted_nats']:.4f}, true {figures['true_nats']:.4f} nats an image"
    )


def _holes(
    text: str,
    images: int | None,
    threshold: float | None,
    seed: int | None,
    dataset: Dataset,
    config: Config,
) -> Holes:
    """What --holes names."""
    from fastrnn import data, holes
    from fastrnn.config import ConfigError

    if text not in holes.SIDES:
        if not (images is threshold is seed is None):
            raise ConfigError(
                "--images, --threshold and --seed are of generated holes, not of a file's"
            )
        if not Path(text).is_file():
            raise ConfigError(f"--holes is {text!r}; expected pixel, square or a file")
        return holes.read(Path(text), dataset.height * dataset.width)
    count = min(1000, len(dataset.test)) if images is None else images
    check_images(count, dataset)
    seed = 0 if seed is None else seed
    check_number("--seed", seed, 0)
    truth = dataset.test.images
    if threshold is not None:
        if not 0 < threshold <= 1:
            raise ConfigError(f"--threshold is {threshold}; expected more than 0, at most 1")
        folder = Path(config.data_dir) if config.data_dir else None
        grey = data.load(dataset.name, folder, grey=True)
        truth = holes.binarised(grey.test.images, threshold)
    return holes.generate(truth[:count], dataset.height, dataset.width, text, seed)

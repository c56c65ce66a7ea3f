"""``fastrnn predict``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastrnn.cli import options

if TYPE_CHECKING:
    import numpy as np

    from fastrnn.tasks.picture_files import Picture
    from fastrnn.tasks.trained import TrainedModel

NAMED = 3  # likeliest classes to print
LEAST = 0.001  # probability of a class that is printed beside the likeliest


def predict(
    run: Annotated[
        Path, typer.Argument(help="Folder of a run of classification or pixel-prediction.")
    ],
    images: Annotated[
        list[Path],
        typer.Argument(help="Pictures of one digit each: PNG, JPEG, BMP, GIF or PPM."),
    ],
    device: options.Device = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Say which digit a picture shows, or how likely it is as a digit.

    The digit may be dark on light or light on dark. It is scaled and centred as the training images
    were, and printed as the model sees it.
    """
    import numpy as np

    from fastrnn.tasks import picture_files, trained
    from fastrnn.training.errors import RunError

    model = trained.load(run, device)
    if model.task == "inpainting":
        raise RunError(
            f"{run} is a run of inpainting, which fills holes and predicts nothing else; expected "
            "classification or pixel-prediction"
        )
    pictures = [picture_files.read(path, model.image_format) for path in images]
    found = _results(model, np.stack([picture.image for picture in pictures]))
    output, _ = options.outputs(verbose, quiet, as_json=as_json)
    rows = list(zip(images, pictures, found, strict=True))
    if as_json:
        output.json([{"image": str(path), **_facts(p), **result} for path, p, result in rows])
        return
    for path, picture, result in rows:
        output.print(f"{path}: {_described(result)}")
        if "probabilities" in result:
            output.detail(_all(result["probabilities"]))
        output.note(f"  {_how_read(picture, model)}")
        output.note(_drawn(picture.image, model))


def _results(model: TrainedModel, images: np.ndarray) -> list[dict[str, Any]]:
    """What the model makes of images [N, H, W], an entry each."""
    if model.task == "pixel-prediction":
        return [{"nats": -nats} for nats in model.log_likelihood(images).tolist()]
    labels, probabilities = (part.tolist() for part in model.predict(images))
    return [
        {"label": label, "probabilities": each}
        for label, each in zip(labels, probabilities, strict=True)
    ]


def _described(result: dict[str, Any]) -> str:
    if "nats" in result:
        return f"{result['nats']:.2f} nats (the fewer, the more like the training's images)"
    ranked = sorted(enumerate(result["probabilities"]), key=lambda pair: -pair[1])[:NAMED]
    first, *others = [f"{label} ({p:.1%})" for label, p in ranked if p >= LEAST]
    return f"{first}, then {' and '.join(others)}" if others else first


def _all(probabilities: list[float]) -> str:
    """The probability of each class, for -v."""
    from fastrnn.training import report

    return report.joined([f"{k} {p:.2%}" for k, p in enumerate(probabilities)], "  ", "  ")


def _facts(picture: Picture) -> dict[str, Any]:
    """What was seen of a picture, for JSON."""
    return {
        "width": picture.width,
        "height": picture.height,
        "dark_on_light": picture.inverted,
        "scaled": picture.scaled,
    }


def _how_read(picture: Picture, model: TrainedModel) -> str:
    like = model.image_format
    ink = "dark ink on light" if picture.inverted else "light ink on dark"
    size = f"{like.width} × {like.height} {'grey' if like.grey else 'binary'} pixels"
    if not picture.scaled:
        return f"saw {ink}, {size}, taken as they are"
    return f"saw {ink}, {picture.width} × {picture.height}; scaled to {size}:"


def _drawn(image: np.ndarray, model: TrainedModel) -> str:
    """An image as the model sees it, two rows of pixels in a line of text."""
    from fastrnn.tasks.data import THRESHOLDS

    inked = image >= (128 if model.image_format.grey else THRESHOLDS[model.image_format.name])
    lines = []
    for upper, lower in zip(inked[::2], inked[1::2], strict=True):
        cells = zip(upper.tolist(), lower.tolist(), strict=True)
        lines.append("  " + "".join(" ▄▀█"[2 * above + below] for above, below in cells))
    return "\n".join(line.rstrip() for line in lines if line.strip())

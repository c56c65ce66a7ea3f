"""A page that shows a trained model at work: one HTML file, which runs the model in JavaScript.

``page/`` holds its parts. Those named after a task are for that task; the others are for all.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Mapping
from importlib import resources

import torch
from torch import Tensor, nn

from fastrnn import backends
from fastrnn.tasks import data, reset_before
from fastrnn.tasks.config import PixelConfig
from fastrnn.training.config import ConfigError

MOST = 2_000_000  # bytes of a page
EXAMPLES = 4  # test images of each class that a page offers

_DATA = {"mnist": "MNIST", "digits": "scikit-learn's digits"}
_TITLES = {
    "classification": "Watch a model read digits",
    "pixel-prediction": "Let a model finish your digit",
    "inpainting": "Let a model fill in a digit",
}
_NAMES = {
    "classification": "Classification",
    "pixel-prediction": "Pixel prediction",
    "inpainting": "In-painting",
}
_TEST = {  # the figure of a task, with its unit
    "classification": "{accuracy:.1%} right",
    "pixel-prediction": "{loss:.2f} nats per digit",
    "inpainting": "{accuracy:.1%} of hidden pixels right",
}
_TOOLS = {"draw": "Draw", "erase": "Erase"}
_BUTTONS = {
    "classification": {"centre": "Centre", "clear": "Clear"},
    "pixel-prediction": {"clear": "Clear"},
    "inpainting": {"clear": "Restore all"},
}
_RUBBERS = {"rub": "Rub out", "restore": "Restore", "draw": "Draw"}
_PENS = {"mnist": 1.0, "digits": 0.5}  # radius, in pixels; strokes are as thick as the dataset's
_RUBBER_RADII = {"mnist": 1.5, "digits": 0.0}
_THRESHOLDS = {"mnist": data.MNIST_THRESHOLD / 255, "digits": data.DIGITS_THRESHOLD / 16}


def page(
    task: str,
    model: nn.Module,
    config: PixelConfig,
    dataset: data.Dataset,
    test: Mapping[str, float],
) -> bytes:
    """The page of a trained model.

    Args:
        task: its name.
        model: one of the task's.
        config: the run's settings.
        dataset: whose test images the page offers.
        test: the task's metrics on the test set, by name.

    Returns:
        HTML in UTF-8, at most MOST bytes.

    Raises:
        ConfigError: the model is too large for that.
    """
    weights = {name: weight.detach() for name, weight in model.state_dict().items()}
    parameters = sum(weight.numel() for weight in weights.values())
    text = _filled(
        "page.html",
        title=_TITLES[task],
        task=_NAMES[task],
        data=_DATA[dataset.name],
        version=backends.fastrnn_version(),
        facts=_facts(task, config, dataset, test, parameters),
        style=_part("page.css"),
        script="\n".join(
            ['"use strict";', *map(_part, ("models.js", "board.js", "page.js", f"{task}.js"))]
        ),
        run=_run(config, dataset, weights),
        **_areas(task, config, dataset),
    )
    content = (text + "\n").encode()
    if len(content) > MOST:
        raise ConfigError(
            f"the model has {parameters:,} weights, and its page would have "
            f"{len(content) / 1e6:.1f} MB; expected at most {MOST / 1e6:.0f} MB: train one with a "
            "smaller --hidden-size"
        )
    return content


def _part(name: str) -> str:
    return (resources.files("fastrnn.tasks") / "page" / name).read_text("utf-8").strip()


def _filled(name: str, **values: str) -> str:
    """A part of the page with a value for each {{name}} in it."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], _part(name))


def _areas(task: str, config: PixelConfig, dataset: data.Dataset) -> dict[str, str]:
    """The headline of a task's page, and what is below it."""
    inpainting = task == "inpainting"
    tools = "".join(
        f'<label><input type="radio" name="tool" value="{value}"{" checked" * (not number)}>'
        f"{text}</label>"
        for number, (value, text) in enumerate((_RUBBERS if inpainting else _TOOLS).items())
    )
    board = _filled(
        "board.html",
        height=str(dataset.height),
        width=str(dataset.width),
        tools=tools,
        buttons="".join(
            f'<button type="button" id="{name}">{text}</button>'
            for name, text in _BUTTONS[task].items()
        ),
        space="rubs out" if inpainting else "draws",
        delete="restores" if inpainting else "erases",
    )
    content = _filled(
        f"{task}.html", model=_described(config), board=board, examples=_part("examples.html")
    )
    header, _, areas = content.partition("<!-- areas -->")
    return {"header": header.strip(), "areas": areas.strip()}


def _described(config: PixelConfig) -> str:
    """``A GRU with one layer of 128 units``."""
    cell, units, layers = config.cell, config.hidden_size, config.num_layers
    name = {"LSTM": "An LSTM", reset_before.MODE: "A GRU (reset gate first)"}.get(cell, "A GRU")
    depth = "one layer" if layers == 1 else f"{layers} layers"
    return f"{name} with {depth} of {units} {'unit' if units == 1 else 'units'}"


def _facts(
    task: str,
    config: PixelConfig,
    dataset: data.Dataset,
    test: Mapping[str, float],
    parameters: int,
) -> str:
    """What the model is, as entries of a list of definitions."""
    facts = {
        "Model": f"{config.cell} {config.num_layers}×{config.hidden_size}",
        "Size": f"{parameters:,} weights",
        "Images": f"{dataset.height}×{dataset.width}, {config.pixels}",
        f"On {len(dataset.test):,} test digits": _TEST[task].format(**test),
    }
    return "\n".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
        for name, value in facts.items()
    )


def _run(config: PixelConfig, dataset: data.Dataset, weights: Mapping[str, Tensor]) -> str:
    """What the scripts read, as JSON: sizes, weights in float32, and test images."""
    rows = _examples(dataset)
    values = torch.cat([weight.flatten() for weight in weights.values()]).cpu().numpy()
    content = {
        "cell": config.cell,
        "hidden": config.hidden_size,
        "layers": config.num_layers,
        "height": dataset.height,
        "width": dataset.width,
        "classes": dataset.classes,
        "grey": dataset.grey,
        "threshold": _THRESHOLDS[dataset.name],
        "pen": _PENS[dataset.name],
        "rubber": _RUBBER_RADII[dataset.name],
        "parameters": [[name, weight.numel()] for name, weight in weights.items()],
        "values": base64.b64encode(values.astype("<f4").tobytes()).decode(),
        "labels": dataset.test.labels[rows].tolist(),
        "images": base64.b64encode(dataset.test.images[rows].numpy().tobytes()).decode(),
    }
    return json.dumps(content).replace("<", "\\u003c")


def _examples(dataset: data.Dataset) -> Tensor:
    """Rows of the test set: an image of each class in turn, up to EXAMPLES of each."""
    by_class = [(dataset.test.labels == label).nonzero()[:, 0] for label in range(dataset.classes)]
    rounds = [rows[number] for number in range(EXAMPLES) for rows in by_class if len(rows) > number]
    return torch.stack(rounds)

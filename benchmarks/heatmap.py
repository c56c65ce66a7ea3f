"""``python -m benchmarks.heatmap RESULTS.json PICTURE.png``: ratios as a heat map.

It draws what ``python -m benchmarks.compare --json RESULTS.json`` has measured: torch.nn's time
divided by fastrnn's. Ratios that round to less than 1, where torch.nn was faster, are framed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrnn.training import figures

from .report import Row, ratio

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 16.0  # the ratio of the darkest colour, and 1 / MOST


def rows_of(path: Path) -> tuple[list[Row], dict[str, Any]]:
    """The results in a file of benchmarks.compare, and the environment they were measured in."""
    content = json.loads(path.read_text())
    return content["results"], content["environment"]


def heatmap(rows: Iterable[Row], environment: dict[str, Any]) -> Figure:
    """A panel per cell and mode, with a row per shape and a column per hidden size.

    Args:
        rows: results of benchmarks.compare.
        environment: where they were measured.
    """
    from matplotlib.figure import Figure

    rows = list(rows)
    panels: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row["sizes"]["cell"], row["sizes"]["mode"])):
        panels.setdefault(f"{row['sizes']['cell']} {row['sizes']['mode']}", []).append(row)
    shapes = sorted({_shape(row) for row in rows})
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    size = (figures.WIDTH * 1.2, down * (0.9 + 0.2 * len(shapes)) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for panel in axes[len(panels) :]:
        panel.set_axis_off()
    for number, (panel, (title, part)) in enumerate(zip(axes, panels.items(), strict=False)):
        _draw(panel, title, part, shapes, labelled=number % across == 0)
    threads = environment["threads"]
    figure.suptitle(
        "time of torch.nn / time of fastrnn; framed: torch.nn is faster\n"
        f"{environment['device']}, {threads} threads, torch {environment['torch']}",
        fontsize=9,
    )
    return figure


def _shape(row: Row) -> tuple[int, str, int]:
    """T, I and B; I is H where both are equal."""
    sizes = row["sizes"]
    width = "H" if sizes["input"] == sizes["hidden"] else str(sizes["input"])
    return sizes["steps"], width, sizes["batch"]


def _draw(
    panel: Axes, title: str, rows: Sequence[Row], shapes: list[tuple[int, str, int]], labelled: bool
) -> None:
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    hiddens = sorted({row["sizes"]["hidden"] for row in rows})
    values: list[list[float]] = [[float("nan")] * len(hiddens) for _ in shapes]
    for row in rows:
        if (value := ratio(row)) is not None:
            values[shapes.index(_shape(row))][hiddens.index(row["sizes"]["hidden"])] = value
    panel.imshow(values, cmap="RdBu", norm=LogNorm(1 / MOST, MOST), aspect="auto")
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            if value != value:
                continue
            shade = "white" if value > MOST / 2.5 or value < 2.5 / MOST else "black"
            digits = 2 if value < 10 else 1 if value < 100 else 0
            text = f"{value:.{digits}f}"
            panel.text(x, y, text, ha="center", va="center", fontsize=7, color=shade)
            if text < "1":
                frame = Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, fill=False, lw=1.6, ec="black")
                panel.add_patch(frame)
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0)
    panel.set(title=title, xlabel="hidden size H, units")
    panel.set_xticks(range(len(hiddens)), list(map(str, hiddens)))
    names = [f"T {steps}, I {width}, B {batch}" for steps, width, batch in shapes]
    panel.set_yticks(range(len(shapes)), names if labelled else [""] * len(shapes))


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws a file of results; the exit status is 1 if there is no picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.heatmap", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args(arguments)
    return draw(*rows_of(options.results), options.picture)


def draw(rows: Iterable[Row], environment: dict[str, Any], picture: Path) -> int:
    """Writes the heat map; the exit status is 1 if that failed, with the reason on stderr."""
    drawn = figures.draw(
        lambda: heatmap(rows, environment), picture, lambda text: print(text, file=sys.stderr)
    )
    return int(not drawn)


if __name__ == "__main__":
    raise SystemExit(main())

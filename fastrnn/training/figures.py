"""Figures of any run, and the style of all figures.

matplotlib loads on first use and only writes files. Figures are made for pages that show them about
900 pixels wide: at DPI, that is WIDTH.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrnn.training import files, reading

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
WIDTH = 6.0  # inches of a figure that fills a page

# Okabe and Ito's colours, which people with any colour vision can tell apart.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000",
)  # fmt: skip
COLOURS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK)
DASHES = ("-", "--", ":", "-.")  # the second seven curves are dashed, and so on
GREY = "#555555"
SHORT = 36  # characters of a run's name, of which two fit side by side
STYLE: Any = {
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "figure.facecolor": "white",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "legend.fontsize": 8,
    "legend.frameon": False,
}


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, atomically.

    Raises:
        RunError: the file cannot be written.
    """
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI)
    files.write(path, content.getvalue())


def draw(make: Callable[[], Figure], path: Path, warn: Callable[[str], None]) -> bool:
    """Makes a figure in our style and writes it; whatever fails is a warning.

    No result depends on a picture. Returns whether it was written.
    """
    # matplotlib warns if it cannot write its cache, which only costs time.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        import matplotlib as mpl

        path.parent.mkdir(exist_ok=True)
        with mpl.rc_context(STYLE):
            save(make(), path)
    except Exception as error:
        warn(f"no picture {path} ({type(error).__name__}: {reading.reason(error)})")
        return False
    return True


def label(name: str, unit: str | None) -> str:
    """A metric with its unit, as an axis shows it."""
    return f"{name.replace('_', ' ')}, {unit}" if unit else name.replace("_", " ")


def plotted(values: Sequence[float], unit: str | None) -> list[float]:
    """Values in their unit: shares become percentages."""
    return [100 * value for value in values] if unit and unit.startswith("%") else list(values)


def curves(
    history: Sequence[Mapping[str, float]],
    units: Mapping[str, str] | None = None,
    best_epoch: int = 0,
) -> Figure:
    """A panel per metric that training and validation share, over the epochs.

    Args:
        history: the rows of metrics.csv.
        units: of the metrics, by name.
        best_epoch: the epoch to mark, counted from 1; 0 for none.
    """
    from matplotlib.figure import Figure

    names = [key.removeprefix("train_") for key in history[0] if key.startswith("train_")]
    epochs = [row["epoch"] for row in history]
    size = (max(WIDTH, 2.6 * len(names)), 2.9)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for panel, name in zip(panels, names, strict=True):
        unit = (units or {}).get(name)
        for split, colour, dash in (("train", BLUE, "--"), ("validation", RED, "-")):
            values = plotted([row[f"{split}_{name}"] for row in history], unit)
            marker = "o" if len(epochs) == 1 else None
            panel.plot(epochs, values, dash, label=split, color=colour, marker=marker)
            if split == "validation" and best_epoch:
                panel.plot(
                    best_epoch, values[best_epoch - 1], "o", color=colour,
                    label=f"best, epoch {best_epoch}",
                )  # fmt: skip
        panel.set(title=name.replace("_", " "), ylabel=unit or "")
        over_epochs(panel)
    panels[-1].legend()
    return figure


def over_epochs(panel: Axes) -> None:
    """Labels a panel whose x axis counts epochs."""
    from matplotlib.ticker import MaxNLocator

    panel.set(xlabel="epoch")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    first, last = panel.dataLim.intervalx
    if first == last:  # or the axis would show thousandths
        panel.set_xlim(first - 0.5, first + 0.5)
    panel.grid(visible=True)


def comparison(
    runs: Mapping[str, Sequence[float]], name: str, unit: str | None, lower_is_better: bool
) -> Figure:
    """A metric of several runs on validation, over the epochs.

    Args:
        runs: values after each epoch, by the run's name.
        name: of the metric.
        unit: of the metric.
        lower_is_better: whether small values are good; then they get more room.
    """
    from matplotlib.figure import Figure

    columns = 2 if len(runs) > 3 and max(map(len, runs)) <= SHORT else 1
    rows = -(-len(runs) // columns)
    figure = Figure(figsize=(WIDTH, 3.0 + 0.17 * rows), layout="constrained")
    panel = figure.subplots()
    for number, (run, values) in enumerate(runs.items()):
        shown = plotted(values, unit)
        dash = DASHES[number // len(COLOURS) % len(DASHES)]
        colour = COLOURS[number % len(COLOURS)]
        epochs = range(1, len(shown) + 1)
        panel.plot(epochs, shown, dash, color=colour, label=run)
        if shown:
            best = (min if lower_is_better else max)(shown)
            panel.plot(shown.index(best) + 1, best, "o", color=colour)
    panel.set(title=f"{name.replace('_', ' ')} on validation; dots: best epochs", ylabel=unit or "")
    over_epochs(panel)
    figure.legend(loc="outside lower left", ncols=columns)
    return figure

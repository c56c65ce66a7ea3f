"""Tables as plain text, which fit a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from fastrnn.training.report import COLUMNS

GAP = 2  # spaces between columns


def lines(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A table whose first column takes the room that the others leave.

    An entry of the first column that is longer has a line of its own, above the rest of its row.

    Args:
        header: titles of the columns.
        rows: as many texts each.
        right: the columns that are aligned at the right.
    """
    widths = [max(len(row[k]) for row in (header, *rows)) for k in range(len(header))]
    room = COLUMNS - sum(GAP + width for width in widths[1:])
    if widths[0] > room:
        shorter = [len(row[0]) for row in (header, *rows) if len(row[0]) <= room]
        widths[0] = max(shorter, default=0)
    text = []
    for row in (header, *rows):
        cells = list(row)
        if len(cells[0]) > widths[0]:
            text.append(cells[0])
            cells[0] = ""
        aligned = [
            cell.rjust(width) if k in right else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        text.append((" " * GAP).join(aligned).rstrip())
    return "\n".join(text)

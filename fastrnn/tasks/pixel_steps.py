"""Reading or drawing pixels with a model's own layers, for calls without a native loop."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from fastrnn.tasks.models import PixelModel

_VALUES = 1 << 25  # of a layer's output that are kept at once


def run(
    model: PixelModel,
    h: Tensor,
    c: Tensor | None,
    logit: Tensor,
    pixels: Tensor,
    lengths: Tensor | None,
    thresholds: Tensor | None,
) -> Tensor:
    """Reads pixels, or draws them if there are thresholds: 1 where the logit is above it.

    Args:
        model: gives the layers and the head.
        h: [L, B, H]: initial states of the layers; on return, the final ones.
        c: [L, B, H]: the same for an LSTM's cell states; None for other cells.
        logit: [B]: of the first pixel; on return, of the one after each row's last.
        pixels: [B, T] uint8; written if there are thresholds.
        lengths: [B] int64, non-increasing, 0 to T; None if all rows have T pixels.
        thresholds: [B, T], or None.

    Returns:
        The logits [B, T] of the pixel after each, 0 beyond a row's length.
    """
    batch, steps = pixels.shape
    logits = h.new_zeros(batch, steps)
    ends = [steps] * batch if lengths is None else lengths.tolist()
    for start, stop, rows in _spans(ends, h.shape[2] if thresholds is None else None):
        if thresholds is not None:
            pixels[:rows, start] = logit[:rows] > thresholds[:rows, start]
        x = pixels[:rows, start:stop].t().unsqueeze(2).to(h.dtype)
        initial = h[:, :rows].contiguous()
        if c is None:
            output, h[:, :rows] = model.recurrent(x, initial)
        else:
            output, (h[:, :rows], c[:, :rows]) = model.recurrent(
                x, (initial, c[:, :rows].contiguous())
            )
        logits[:rows, start:stop] = model.head(output).squeeze(2).t()
        logit[:rows] = logits[:rows, stop - 1]
    return logits


def _spans(ends: list[int], width: int | None) -> Iterator[tuple[int, int, int]]:
    """Ranges of steps that the same leading rows run, short enough to keep their output.

    Args:
        ends: of each row, non-increasing.
        width: H; None for ranges of one step.

    Yields:
        start, stop and the number of rows.
    """
    start, rows = 0, len(ends)
    while rows:
        if start == ends[rows - 1]:
            rows -= 1
            continue
        most = 1 if width is None else max(1, _VALUES // (rows * width))
        stop = min(ends[rows - 1], start + most)
        yield start, stop, rows
        start = stop

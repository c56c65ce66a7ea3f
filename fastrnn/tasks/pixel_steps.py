"""Reading or drawing pixels by calling a model's modules, for what no native loop computes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from fastrnn._compat import variant
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
    *,
    continued: bool,
) -> Tensor:
    """Reads pixels, or draws them if there are thresholds: 1 where the logit is above it.

    Each step is part of a call of the model itself, so hooks run as in any other call.

    Args:
        model: its forward is PixelModel's.
        h: [L, B, H]: initial states of the layers; on return, the final ones.
        c: [L, B, H]: the same for an LSTM's cell states; None for other cells.
        logit: [B]: of the first pixel; on return, of the one after each row's last.
        pixels: [B, T] uint8; written if there are thresholds.
        lengths: [B] int64, non-increasing, 0 to T; None if all rows have T pixels.
        thresholds: [B, T], or None.
        continued: whether the first step takes the initial states; if not, the layers are called
            without any, and choose their own.

    Returns:
        The logits [B, T] of the pixel after each, 0 beyond a row's length.

    Raises:
        ValueError: the model does not give one logit per step.
    """
    batch, steps = pixels.shape
    logits = logit.new_zeros(batch, steps)
    ends = [steps] * batch if lengths is None else lengths.tolist()
    layers = _Continued(model.recurrent)
    call = variant(model, recurrent=layers)
    for start, stop, rows in _spans(ends, h.shape[2] if thresholds is None else None):
        if thresholds is not None:
            pixels[:rows, start] = logit[:rows] > thresholds[:rows, start]
        if continued or start > 0:
            initial = h[:, :rows].contiguous()
            layers.state = initial if c is None else (initial, c[:, :rows].contiguous())
        logits[:rows, start:stop] = whole(call, pixels[:rows, start:stop], h)
        if c is None:
            h[:, :rows] = layers.state
        else:
            h[:, :rows], c[:, :rows] = layers.state
        logit[:rows] = logits[:rows, stop - 1]
    return logits


def whole(model: nn.Module, pixels: Tensor, like: Tensor) -> Tensor:
    """The logits [B, T] of the pixel after each of [B, T], from a call of the model.

    Args:
        model: takes [T, B, 1].
        pixels: uint8.
        like: the model's input has this tensor's dtype and device.

    Raises:
        ValueError: the model does not give one logit per step.
    """
    x = pixels.t().unsqueeze(2).to(like)
    logits = model(x)
    if logits.shape != x.shape[:2]:
        raise ValueError(
            f"model: a call with {list(x.shape)} gave {list(logits.shape)}, one logit per step, "
            f"{list(x.shape[:2])}, expected: model.head has to have one output"
        )
    return logits.t()


class _Continued:
    """A model's layers, which continue from a state and keep the new one.

    Attributes:
        state: what the layers take and return; None to call them without one.
    """

    state: Any = None

    def __init__(self, recurrent: nn.Module) -> None:
        self._recurrent = recurrent

    def __call__(self, x: Tensor) -> tuple[Tensor, Any]:
        hx = () if self.state is None else (self.state,)
        output, self.state = self._recurrent(x, *hx)
        return output, self.state

    def __getattr__(self, name: str) -> Any:
        return getattr(self._recurrent, name)  # for hooks that look at the model


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

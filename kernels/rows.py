"""A sequence's rows on a GPU, and the products over all of them outside the time loop."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor


def tf32() -> bool:
    """Whether torch's switch for recurrent layers allows TF32 in float32 products."""
    rnn: Any = torch.backends.cudnn.rnn
    return rnn.fp32_precision == "tf32"


def product(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product. In float32 TF32 needs both of torch's switches.

    They are the one of products and the one of recurrent layers. Both hold for the whole process,
    so neither is changed here; float64 is exact whatever they say.
    """
    matmul: Any = torch.backends.cuda.matmul
    if a.dtype == torch.float32 and matmul.fp32_precision == "tf32" and not tf32():
        return (a.double() @ b.double()).float()
    return a @ b


@dataclasses.dataclass(frozen=True)
class Rows:
    """Where the rows of a sequence's steps lie.

    Args:
        steps: T.
        batch: B.
        offsets: packed: each time's first row, int64 [T + 10], five more at either end; or None.
        lengths: packed: each sequence's steps, int32 [B]; or None.
    """

    steps: int
    batch: int
    offsets: Tensor | None = None
    lengths: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor, batch: int, batch_sizes: Tensor | None) -> Rows:
        """Rows of x [N, ...]; copies a packed layout to its device without waiting for it."""
        if batch_sizes is None:
            return cls(x.shape[0] // max(batch, 1), batch)
        steps = batch_sizes.shape[0]
        offsets = torch.nn.functional.pad(batch_sizes.cumsum(0), (6, 4))
        offsets[-4:] = x.shape[0]
        below = torch.searchsorted(batch_sizes.flip(0), torch.arange(batch), right=True)
        lengths = (steps - below).to(torch.int32)
        offsets = offsets.to(x.device, non_blocking=True)
        return cls(steps, batch, offsets, lengths.to(x.device, non_blocking=True))

    def first(self, rows: Tensor, reverse: bool) -> Tensor:
        """The row of each sequence's first step on its way, [B, ...]."""
        b = self.batch
        if not reverse:
            return rows[:b]
        if self.offsets is None:
            return rows[-b:]
        assert self.lengths is not None
        last = self.offsets[5:][self.lengths.long() - 1]
        return rows[last + torch.arange(b, device=rows.device)]

    def recurrent_gradient(self, dgates: Tensor, h0: Tensor, y: Tensor, reverse: bool) -> Tensor:
        """dgates^T h', with h' [N, H] the state before each row: h0, or a row of y."""
        if self.offsets is None:
            b = self.batch
            if reverse:
                first, rest, before = dgates[-b:], dgates[:-b], y[b:]
            else:
                first, rest, before = dgates[:b], dgates[b:], y[:-b]
            return product(first.t(), h0) + product(rest.t(), before)
        n = y.shape[0]
        starts = self.offsets[5:-4]  # [T + 1]
        time = torch.repeat_interleave(starts.diff(), output_size=n)
        b_of_row = torch.arange(n, device=y.device) - starts[time]
        assert self.lengths is not None
        if reverse:
            inside = time + 1 < self.lengths[b_of_row]
            index = starts[time + 1] + b_of_row
        else:
            inside = time > 0
            index = self.offsets[4:][time] + b_of_row
        index = torch.where(inside, index, n + b_of_row)
        return product(dgates.t(), torch.cat((y, h0))[index])

    def lstm_gradients(
        self, dgates: Tensor, x: Tensor, h0: Tensor, y: Tensor, w_ih: Tensor, reverse: bool,
        need_dx: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """From dgates [N, 4H]: dx (or empty), dw_ih, dw_hh, db."""
        dx = product(dgates, w_ih) if need_dx else x.new_empty(0)
        dw_hh = self.recurrent_gradient(dgates, h0, y, reverse)
        return dx, product(dgates.t(), x), dw_hh, dgates.sum(0)

    def gru_gradients(
        self, dgates: Tensor, x: Tensor, h0: Tensor, y: Tensor, w_ih: Tensor, reverse: bool,
        need_dx: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """From dgates [N, 4H] of n, r, z, m: dx (or empty), dw_ih, dw_hh, db_ih, db_hh."""
        h = h0.shape[1]
        d_input, d_recurrent = dgates[:, : 3 * h], dgates[:, h:]
        dx = product(d_input, w_ih.roll(h, 0)) if need_dx else x.new_empty(0)
        dw_ih = product(d_input.t(), x).roll(-h, 0)
        dw_hh = self.recurrent_gradient(d_recurrent, h0, y, reverse)
        db = dgates.sum(0)
        return dx, dw_ih, dw_hh, db[: 3 * h].roll(-h), db[h:].clone()

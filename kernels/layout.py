"""Where the rows of a sequence's steps lie, padded and packed."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Rows:
    """Where the rows of a sequence's steps lie.

    Attributes:
        steps: T.
        batch: B.
        offsets: packed: the first row of each step, int64 [T + 10] with five more entries at either
            end, so that kernels may read ahead; None if padded.
        lengths: packed: how many steps each sequence has, int32 [B]; None if padded.
    """

    steps: int
    batch: int
    offsets: Tensor | None = None
    lengths: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor, batch: int, batch_sizes: Tensor | None) -> Rows:
        """The rows of x [N, ...]; copies a packed layout to x's device without waiting for it."""
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
        """Each sequence's first row in the order of processing, [B, ...], from rows [N, ...]."""
        b = self.batch
        if not reverse:
            return rows[:b]
        if self.offsets is None:
            return rows[-b:]
        assert self.lengths is not None
        last = self.offsets[5:][self.lengths.long() - 1]
        return rows[last + torch.arange(b, device=rows.device)]

    def index_before(self, count: int, reverse: bool) -> Tensor:
        """For each of ``count`` packed rows, the index [N] of the row that its step started from.

        Index ``count`` + b stands for the initial state of sequence b.
        """
        assert self.offsets is not None
        assert self.lengths is not None
        starts, time, sequence = self._places(count)
        if reverse:
            inside = time + 1 < self.lengths[sequence]
            index = starts[time + 1] + sequence
        else:
            inside = time > 0
            index = self.offsets[4:][time] + sequence
        return torch.where(inside, index, count + sequence)

    def turned(self, rows: Tensor) -> Tensor:
        """The index [N] that reverses the rows of each sequence; it is its own inverse."""
        count = len(rows)
        if self.offsets is None:
            return torch.arange(count, device=rows.device).view(-1, self.batch).flip(0).view(-1)
        assert self.lengths is not None
        starts, time, sequence = self._places(count)
        return starts[self.lengths[sequence] - 1 - time] + sequence

    def _places(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The first row of each step, [T + 1], and each packed row's step and sequence, [N]."""
        assert self.offsets is not None
        starts = self.offsets[5:-4]
        time = torch.repeat_interleave(starts.diff(), output_size=count)
        return starts, time, torch.arange(count, device=starts.device) - starts[time]

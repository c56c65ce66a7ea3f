"""What every kernel module offers: ``forward`` and ``backward``, the same for both cells.

One call runs one layer in one direction over a whole sequence. Sizes: T steps, B sequences, I input
features, H hidden units, N rows over all steps. Rows lie as in ``PackedSequence.data``: the rows of
step t start at the sum of ``batch_sizes`` before t, one for each sequence that has a step t. A
padded time-major batch is the case in which every step has all B sequences (``batch_sizes`` None).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cell:
    """How many tensors a cell has, and how wide they are.

    Attributes:
        name: ``lstm`` or ``gru``.
        code: the enumerator in ``csrc/fastrnn.h``.
        gates: weights have gates * H rows.
        state_names: what a step hands to the next one.
        saved_widths: widths, in units of H, of the tensors that backward needs from forward.
        bias_gradients: 1 if both biases have the same gradient, otherwise 2.
    """

    name: str
    code: int
    gates: int
    state_names: tuple[str, ...]
    saved_widths: tuple[int, ...]
    bias_gradients: int

    @property
    def states(self) -> int:
        """How many states there are."""
        return len(self.state_names)


# Only the same module's backward reads the saved tensors, so a module may order a row as it likes.
# Saved: gates i, f, g, o after activation, and cell states.
LSTM = Cell("lstm", 0, 4, ("h", "c"), (4, 1), 1)
# Saved: r, z, n after activation, and m = W_hn h + b_hn, the recurrent half of n.
GRU = Cell("gru", 1, 3, ("h",), (4,), 2)
CELLS = {cell.name: cell for cell in (LSTM, GRU)}

# y [N, H]; final states [B, H] each; saved tensors [N, width * H] each.
Forward = tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]
# dx [N, I]; gradients of the initial states [B, H] each, or none; dw_ih, dw_hh, and one db or two.
Backward = tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]


class KernelModule(Protocol):
    """A module of this package that runs layers.

    All tensors are contiguous, on one device and of one floating dtype, except ``batch_sizes``,
    which is int64 on the CPU. Results are new tensors; arguments are not changed.
    """

    def forward(
        self,
        cell: Cell,
        x: Tensor,
        states: Sequence[Tensor],
        weights: Sequence[Tensor | None],
        batch_sizes: Tensor | None,
        reverse: bool,
        save: bool,
    ) -> Forward:
        """Runs a layer.

        Args:
            cell: LSTM or GRU.
            x: [N, I].
            states: initial states [B, H]: h, and c for an LSTM.
            weights: w_ih [gates * H, I], w_hh [gates * H, H], b_ih and b_hh [gates * H], or None
                for both biases. The order of gates is torch.nn's: i f g o; r z n.
            batch_sizes: [T], positive and non-increasing, the first one B; None for padded rows.
            reverse: walk each sequence from its own last step to its first.
            save: whether backward will be called.

        Returns:
            y [N, H], the final states, and the saved tensors; these are of shape [0] unless
            ``save``.
        """

    def backward(
        self,
        cell: Cell,
        dy: Tensor | None,
        d_final: Sequence[Tensor],
        x: Tensor,
        states: Sequence[Tensor],
        weights: Sequence[Tensor],
        y: Tensor,
        saved: Sequence[Tensor],
        batch_sizes: Tensor | None,
        reverse: bool,
        need_dx: bool,
        need_d_states: bool,
    ) -> Backward:
        """Computes the gradients of a layer.

        Args:
                cell, x, states, batch_sizes, reverse: as passed to forward.
            dy: [N, H]; None stands for zeros.
            d_final: gradients of the final states, [B, H] each.
            weights: w_ih and w_hh.
            y, saved: what forward returned.
            need_dx: whether dx is wanted.
            need_d_states: whether the gradients of the initial states are wanted.

        Returns:
            dx, of shape [0] unless ``need_dx``; the gradients of the initial states, or () unless
            ``need_d_states``; and those of the weights: dw_ih, dw_hh, then db, which is both
            biases' gradient (LSTM), or db_ih and db_hh (GRU).
        """


class PixelLoop(Protocol):
    """A module of this package that runs models of binary pixels, over a whole sequence at once.

    The model has L layers of H units: the first one reads one feature, the pixel, and each other
    one reads the states of the layer below. A head computes the next pixel's logit from the last
    layer's state.

    Attributes:
        DTYPES: of the weights that it can run.
    """

    DTYPES: tuple[torch.dtype, ...]

    def fits(self, hidden_size: int, layers: int) -> bool:
        """Whether the loop can run a model of this size."""

    def run(
        self,
        cell: Cell,
        weights: Sequence[Tensor],
        head_weight: Tensor,
        head_bias: Tensor,
        h: Tensor,
        c: Tensor | None,
        logit: Tensor,
        pixels: Tensor,
        lengths: Tensor | None,
        thresholds: Tensor | None,
    ) -> Tensor:
        """Reads pixels or, with thresholds, draws them: 1 where the logit is above the threshold.

        All tensors but ``weights`` are contiguous, and all are on one device. h, c, logit and, with
        thresholds, pixels are written in place.

        Args:
            cell: LSTM or GRU.
            weights: w_ih, w_hh, b_ih and b_hh of each layer; see :class:`KernelModule`.
            head_weight: [1, H].
            head_bias: [1].
            h: [L, B, H] states of the layers: initial ones on entry, final ones on return.
            c: [L, B, H] cell states of an LSTM, likewise; None for a GRU.
            logit: [B]: of the first pixel on entry, of the pixel after the last one on return.
            pixels: [B, T] uint8 of 0 and 1.
            lengths: [B] int64, non-increasing, how many pixels each sequence has, 0 to T; None if
                all have T.
            thresholds: [B, T]; None to read the pixels.

        Returns:
            The logits [B, T] of the pixel after each, 0 beyond a sequence's length.
        """

"""Filling holes in images: by a pixel model's likelihood, or by an in-painter from both sides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastrnn.tasks import pixels
from fastrnn.tasks.holes import Holes
from fastrnn.tasks.models import Inpainter, PixelModel
from fastrnn.training import distributed

WIDTH = 256  # default beam: fillings of an image that are followed; exact for up to 8 hidden pixels
BATCH = 4096  # fillings that are followed at once, over all images


@dataclass(frozen=True)
class Inpainted:
    """N images as a model filled them.

    A pixel model's nats are those of the whole image, its first pixel given; an in-painter's are
    those of the hidden pixels.

    Attributes:
        pixels: [N, P] uint8.
        nats: [N] float64, of the filled images.
        true_nats: [N] float64, of the true images.
    """

    pixels: Tensor
    nats: Tensor
    true_nats: Tensor


@torch.no_grad()
def fill(model: nn.Module, holes: Holes, width: int, show: Callable[[int], None]) -> Inpainted:
    """Fills holes; see :func:`by_likelihood` and :func:`from_both_sides`.

    Several processes share the images; all of them return the whole.

    Args:
        model: a PixelModel or an Inpainter, in evaluation mode.
        holes: what to fill.
        width: of the beam, for a PixelModel.
        show: called with the number of filled images after each batch.
    """
    own, _ = distributed.share(len(holes))
    device = next(model.parameters()).device
    order, parts = [], []
    done = 0
    for rows in _batches(holes.hidden[own], width):
        chunk = own[rows]
        truth, hidden = holes.truth[chunk].to(device), holes.hidden[chunk].to(device)
        found, nats = _filled(model, truth, hidden, width)
        if isinstance(model, Inpainter):
            _, true_nats = from_both_sides(model, truth, hidden, forced=True)
        else:
            assert isinstance(model, PixelModel)
            true_nats = -pixels.score(model, truth)
        order.append(chunk)
        parts.append((found.cpu(), nats.cpu(), true_nats.cpu()))
        done += len(chunk)
        show(min(done * distributed.size(), len(holes)))
    return Inpainted(*distributed.collected(torch.cat(order), parts, len(holes)))


@torch.no_grad()
def filled(
    model: nn.Module, images: Tensor, hidden: Tensor, width: int = WIDTH
) -> tuple[Tensor, Tensor]:
    """Fills holes in images whose true pixels are not known.

    Args:
        model: a PixelModel or an Inpainter, in evaluation mode.
        images: [N, P] uint8, on the model's device; the values of hidden pixels are ignored.
        hidden: [N, P] bool, any number in each row.
        width: of the beam, for a PixelModel.

    Returns:
        The filled images [N, P] uint8 and their nats [N] float64, see :class:`Inpainted`.
    """
    done = images.clone()
    nats = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    for rows in _batches(hidden, width):
        done[rows], nats[rows] = _filled(model, images[rows], hidden[rows], width)
    return done, nats


def _batches(hidden: Tensor, width: int) -> Iterator[Tensor]:
    """Rows that can be filled together, at most so many that their fillings are BATCH.

    All rows of a batch have as many hidden pixels, and hide the first pixel or do not.
    """
    kinds = hidden.sum(1) * 2 + hidden[:, 0]
    for kind in kinds.unique().tolist():
        rows = (kinds == kind).nonzero()[:, 0]
        yield from rows.split(max(1, BATCH // min(width, 2 ** (kind // 2))))


def _filled(model: nn.Module, images: Tensor, hidden: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """As :func:`filled`, for one of :func:`_batches`."""
    if isinstance(model, Inpainter):
        return from_both_sides(model, images, hidden)
    assert isinstance(model, PixelModel)
    found, likelihood = by_likelihood(model, images, hidden, width)
    return found, -likelihood


@torch.no_grad()
def by_likelihood(
    model: PixelModel, images: Tensor, hidden: Tensor, width: int = WIDTH
) -> tuple[Tensor, Tensor]:
    """The likeliest filling of each image.

    The pixels before a hidden one are read once for all fillings that follow. Each hidden pixel
    doubles the number of states, of which the ``width`` likeliest are kept. With 2^k <= width, all
    fillings are scored and the result is exact; otherwise this is a beam search. The model does not
    predict the first pixel: if it is hidden, 0 and 1 are equally likely there.

    Args:
        model: the model.
        images: [N, P] uint8; the values of hidden pixels are ignored.
        hidden: [N, P] bool, k in each row; the first pixel is hidden in all rows or in none.
        width: of the beam.

    Returns:
        The filled images [N, P] uint8, and their log-likelihoods [N] float64 in nats.
    """
    if not hidden.any():
        return images.clone(), pixels.score(model, images)
    count, size = images.shape
    holes = hidden.nonzero()[:, 1].view(count, -1)
    ends = torch.cat([holes[:, 1:], holes.new_full((count, 1), size)], 1)
    state = None
    if not hidden[0, 0]:
        state = pixels.advance(model, images, lengths=holes[:, 0])[1]
    chosen = images.new_zeros(count, 1, 0)  # [N, branches, holes so far]
    for hole, end in zip(holes.t(), ends.t(), strict=True):
        branches = chosen.shape[1] * 2
        values = torch.arange(branches, device=images.device).to(images.dtype) % 2
        chosen = torch.cat(
            [chosen.repeat_interleave(2, 1), values.expand(count, -1)[:, :, None]], 2
        )
        reach = hole[:, None] + torch.arange(int((end - hole).max()), device=images.device)
        after = images.gather(1, reach.clamp(max=size - 1)).repeat_interleave(branches, 0)
        after[:, 0] = chosen[:, :, -1].flatten()
        lengths = (end - hole).repeat_interleave(branches)
        forks = state and state.repeat(2)
        state = pixels.advance(model, after, forks, lengths)[1]
        if branches > width:
            kept = state.log_likelihood.view(count, branches).topk(width, 1).indices
            chosen = chosen.gather(1, kept[:, :, None].expand(-1, -1, chosen.shape[2]))
            start = torch.arange(count, device=images.device)[:, None] * branches
            state = state.select((kept + start).flatten())
    assert state is not None
    likelihood, best = state.log_likelihood.view(count, -1).max(1)
    values = chosen[torch.arange(count, device=images.device), best]
    return images.scatter(1, holes, values), likelihood


@torch.no_grad()
def from_both_sides(
    model: Inpainter, images: Tensor, hidden: Tensor, *, forced: bool = False
) -> tuple[Tensor, Tensor]:
    """Fills one hidden pixel of each image after the other, the one the model is surest of first.

    Args:
        model: the model.
        images: [N, P] uint8; the values of hidden pixels are ignored unless forced.
        hidden: [N, P] bool.
        forced: fill with the images' own values, to get their likelihood.

    Returns:
        The filled images [N, P] uint8, and the nats [N] float64 of the filled pixels, each given
        the known pixels and those filled before it.
    """
    left = hidden.clone()
    filled = images.masked_fill(hidden, 0)
    nats = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    while (rows := left.any(1).nonzero()[:, 0]).numel():
        logits = model(filled[rows].t().float(), left[rows].t()).t()
        place = logits.abs().masked_fill(~left[rows], -1).argmax(1)
        logit = logits.gather(1, place[:, None])[:, 0].double()
        value = images[rows, place] if forced else (logit > 0).to(images.dtype)
        filled[rows, place] = value
        left[rows, place] = False
        nats[rows] += functional.binary_cross_entropy_with_logits(
            logit, value.double(), reduction="none"
        )
    return filled, nats


def metrics(holes: Holes, found: Inpainted) -> dict[str, float]:
    """Shares of images and of hidden pixels that are right, and mean nats per image."""
    wrong = found.pixels != holes.truth
    return {
        "exact_accuracy": 1 - wrong.any(1).double().mean().item(),
        "pixel_accuracy": 1 - (wrong.sum() / holes.hidden.sum()).item(),
        "inpainted_nats": found.nats.mean().item(),
        "true_nats": found.true_nats.mean().item(),
    }

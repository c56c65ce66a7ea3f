"""Binary images under a pixel model: their likelihood, and drawing the rest of an image.

From the pixels read so far, a :class:`~fastrnn.tasks.models.PixelModel` gives the logit of the next
one; the first pixel of an image is given, never predicted. Images are uint8 of 0 and 1, [B, n] with
any number of pixels. A :class:`State` is what a model has read; it can be continued any number of
times::

    _, state = advance(model, images[:, :300])           # read once
    forks = state.repeat(2)                              # and continued in two ways
    nats = score(model, pixels.repeat(len(images), 1), forks)  # pixels [2, n]

Everything runs without gradients, on the model's device. If a backend has a loop over pixels that
computes exactly what the model does, one call reads or draws a pixel, steps all layers and computes
the next logit, for all steps. Otherwise the model's modules are called, with their hooks; layers
with a forward of their own have to continue from the state that they are given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional

from fastrnn import backends
from fastrnn.tasks import pixel_models, pixel_steps
from fastrnn.tasks.models import PixelModel

_ROWS = 4096  # sequences that are read or drawn at once
_CALLED_ROWS = 256  # by a call of the model, which keeps its output for all steps


@dataclass(frozen=True)
class State:
    """What a model has read of B images.

    Attributes:
        h: [L, B, H] states of the layers.
        c: [L, B, H] an LSTM's cell states; None for a GRU.
        logit: [B] of the next pixel.
        log_likelihood: [B] float64, of the pixels read, given the first one; in nats.
    """

    h: Tensor
    c: Tensor | None
    logit: Tensor
    log_likelihood: Tensor

    def select(self, rows: Tensor | slice) -> State:
        """The state of these rows of the B, in this order; a row may occur several times."""
        return State(
            self.h[:, rows],
            None if self.c is None else self.c[:, rows],
            self.logit[rows],
            self.log_likelihood[rows],
        )

    def repeat(self, times: int) -> State:
        """Each row ``times`` times, its copies next to each other."""
        rows = torch.arange(len(self.logit), device=self.logit.device)
        return self.select(rows.repeat_interleave(times))


def advance(
    model: PixelModel,
    pixels: Tensor,
    state: State | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, State]:
    """Reads pixels.

    Args:
        model: the model.
        pixels: [B, n] uint8: an image's beginning or, with ``state``, the pixels that follow it.
        state: what was read before; it is not changed.
        lengths: [B] int64, how many of the n pixels each row reads: 0 to n, without a state at
            least 1; None for all n. This is how rows at different places of their images are read
            together.

    Returns:
        The logits [B, n] of the pixel after each, 0 beyond a row's length, and the new state.

    Raises:
        ValueError: shapes, dtypes or values are not these, or the model cannot continue from a
            state: it has a forward of its own, or its layers are bidirectional or batch_first.
        RuntimeError: a call of the model raises it (its dtypes differ, for example), or the forced
            backend cannot run the model.
    """
    least = 0 if state else 1
    pixel_models.check_steps(model)
    _check_pixels("pixels", pixels, least=least)
    if state is not None:
        _check_state(state, _nothing_read(model, len(pixels)))
    if lengths is None:
        return _read(model, pixels, state, None)
    _check_lengths(lengths, pixels, least=least)
    device = pixel_models.like(model.recurrent).device
    pixels, lengths = pixels.to(device), lengths.to(device)
    order = lengths.argsort(descending=True)
    back = order.argsort()
    logits, state = _read(
        model, pixels[order], state and state.select(order), lengths[order].contiguous()
    )
    return logits[back], state.select(back)


def score(
    model: PixelModel,
    images: Tensor,
    state: State | None = None,
    lengths: Tensor | None = None,
) -> Tensor:
    """Log-likelihoods [N] float64, in nats, of images [N, P] uint8 given their first pixels.

    With a ``state``, the images hold the pixels that follow it, and the result is the likelihood of
    everything that was read: ``score(model, images)`` equals ``score(model, images[:, n:], state)``
    with the state of the first n pixels. A model with a forward of its own is called on whole
    images, if there is no state; its logits must not depend on later pixels. Arguments and errors:
    see :func:`advance`.
    """
    by_calls = state is None and pixel_models.has_own_forward(model)
    parts = []
    for rows in _chunks(len(images), _CALLED_ROWS if by_calls else _ROWS):
        length = None if lengths is None else lengths[rows]
        if by_calls:
            parts.append(_score_by_call(model, images[rows], length))
        else:
            part = state and state.select(rows)
            parts.append(advance(model, images[rows], part, length)[1].log_likelihood)
    return torch.cat(parts)


@torch.no_grad()
def _score_by_call(model: PixelModel, images: Tensor, lengths: Tensor | None) -> Tensor:
    """As :func:`score`, for a model that cannot continue from a state."""
    _check_pixels("images", images, least=1)
    if lengths is not None:
        _check_lengths(lengths, images, least=1)
    like = pixel_models.like(model)
    images = images.to(like.device)
    after = pixel_steps.whole(model, images, like)
    first = after.new_zeros(len(images))
    return -_nats(first, after, images, lengths, first_is_given=True)


@torch.no_grad()
def sample(
    model: PixelModel, prefix: Tensor, steps: int, uniforms: Tensor
) -> tuple[Tensor, Tensor]:
    """Draws S completions of each image's beginning.

    A pixel is 1 iff its uniform number u is below sigmoid(logit). This is computed as logit >
    log(u / (1 - u)), so that equal logits give equal pixels on every backend.

    Args:
        model: the model.
        prefix: [B, n] uint8, the first n >= 1 pixels; they are read once for all S.
        steps: how many pixels to draw.
        uniforms: [B, S, steps] float32 in [0, 1).

    Returns:
        The pixels [B, S, steps] uint8, and their logits [B, S, steps].

    Raises:
        ValueError, RuntimeError: see :func:`advance`.
    """
    pixel_models.check_steps(model)
    _check_pixels("prefix", prefix, least=1)
    _check_uniforms(uniforms, len(prefix), steps)
    _, state = _read(model, prefix, None, None)
    count, samples, _ = uniforms.shape
    pixels = state.h.new_empty(count * samples, steps, dtype=torch.uint8)
    logits = torch.empty_like(pixels, dtype=state.logit.dtype)
    for rows in _chunks(len(pixels), _ROWS):
        thresholds = torch.logit(uniforms.flatten(0, 1)[rows].double()).to(logits).contiguous()
        images = torch.arange(len(pixels), device=pixels.device)[rows] // max(samples, 1)
        part = state.select(images)
        after, _ = _run(model, part, pixels[rows], None, thresholds)
        logits[rows] = torch.cat([part.logit[:, None], after], 1)[:, :steps]
    return pixels.view(uniforms.shape), logits.view(uniforms.shape)


@torch.no_grad()
def _read(
    model: PixelModel, pixels: Tensor, state: State | None, lengths: Tensor | None
) -> tuple[Tensor, State]:
    """As :func:`advance`, with non-increasing lengths."""
    initial = state or _nothing_read(model, len(pixels))
    pixels = pixels.to(initial.h.device).contiguous()
    after, final = _run(model, initial, pixels, lengths, None, continued=state is not None)
    nats = _nats(initial.logit, after, pixels, lengths, first_is_given=state is None)
    return after, replace(final, log_likelihood=initial.log_likelihood - nats)


def _nats(
    first: Tensor,
    after: Tensor,
    pixels: Tensor,
    lengths: Tensor | None,
    *,
    first_is_given: bool,
) -> Tensor:
    """Negative log-likelihoods [B] float64 of pixels [B, T].

    Args:
        first: [B] logits of the first pixels.
        after: [B, T] logits of the pixel after each.
        pixels: what was read.
        lengths: how many count in each row; None for all.
        first_is_given: whether the first pixel counts as known.
    """
    steps = pixels.shape[1]
    logits = torch.cat([first[:, None], after], 1)[:, :steps]
    nats = functional.binary_cross_entropy_with_logits(logits, pixels.to(logits), reduction="none")
    if first_is_given:
        nats[:, :1] = 0
    if lengths is not None:
        lengths = lengths.to(nats.device)
        nats[torch.arange(steps, device=nats.device) >= lengths[:, None]] = 0
    return nats.sum(1, dtype=torch.float64)


def _nothing_read(model: PixelModel, rows: int) -> State:
    recurrent, head = model.recurrent, model.head
    weight = pixel_models.like(recurrent)
    units = getattr(recurrent, "proj_size", 0) or recurrent.hidden_size
    h = weight.new_zeros(recurrent.num_layers, rows, units)
    c = None
    if recurrent.mode == "LSTM":
        c = weight.new_zeros(recurrent.num_layers, rows, recurrent.hidden_size)
    logit = weight.new_zeros(rows, dtype=pixel_models.like(head).dtype)
    return State(h, c, logit, weight.new_zeros(rows, dtype=torch.float64))


def _run(
    model: PixelModel,
    state: State,
    pixels: Tensor,
    lengths: Tensor | None,
    thresholds: Tensor | None,
    *,
    continued: bool = True,
) -> tuple[Tensor, State]:
    """Reads pixels, or draws them if there are thresholds: 1 where the logit is above it.

    Returns the logits [B, T] of the pixel after each, and the new state with the log-likelihood of
    the old one.
    """
    h, logit = _copy(state.h), _copy(state.logit)
    c = None if state.c is None else _copy(state.c)
    loop = None
    if (weights := pixel_models.native_weights(model)) is not None:
        layers, (batch, steps) = model.recurrent, pixels.shape
        call = backends.Call(
            layers.mode, h.device.type, h.dtype, steps, batch, 1, layers.hidden_size, training=False
        )
        loop = backends.pixel_loop(call, layers.num_layers)
    if loop is not None and weights is not None:
        *weights, head_weight, head_bias = weights
        logits = loop(
            weights, head_weight.contiguous(), head_bias, h, c, logit, pixels, lengths, thresholds
        )
    else:
        logits = pixel_steps.run(
            model, h, c, logit, pixels, lengths, thresholds, continued=continued
        )
    return logits, State(h, c, logit, state.log_likelihood)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _chunks(rows: int, most: int) -> Iterator[slice]:
    """Slices of at most so many rows; at least one, so that an empty batch has an empty result."""
    for start in range(0, max(rows, 1), most):
        yield slice(start, start + most)


def _check_pixels(name: str, pixels: Tensor, *, least: int) -> None:
    if pixels.dim() != 2 or pixels.dtype != torch.uint8 or pixels.shape[1] < least:
        raise ValueError(
            f"{name}: {pixels.dtype} {tuple(pixels.shape)} given, uint8 [B, n] expected, "
            f"n at least {least}"
        )
    if pixels.numel() and (top := int(pixels.max())) > 1:
        raise ValueError(f"{name}: {top} given, only 0 and 1 expected")


def _check_lengths(lengths: Tensor, pixels: Tensor, *, least: int) -> None:
    batch, most = pixels.shape
    if lengths.shape != (batch,) or lengths.dtype != torch.int64:
        raise ValueError(
            f"lengths: {lengths.dtype} {tuple(lengths.shape)} given, int64 ({batch},) expected"
        )
    if batch and not least <= lengths.min() <= lengths.max() <= most:
        raise ValueError(
            f"lengths: {int(lengths.min())} to {int(lengths.max())} given, "
            f"{least} to {most} expected"
        )


def _check_state(state: State, like: State) -> None:
    for field in fields(State):
        given, wanted = getattr(state, field.name), getattr(like, field.name)
        given, wanted = (
            "none" if t is None else f"{t.dtype} {tuple(t.shape)} on {t.device}"
            for t in (given, wanted)
        )
        if given != wanted:
            raise ValueError(f"state.{field.name}: {given} given, {wanted} expected")


def _check_uniforms(uniforms: Tensor, batch: int, steps: int) -> None:
    shape = tuple(uniforms.shape)
    if uniforms.dtype != torch.float32 or len(shape) != 3 or shape[::2] != (batch, steps):
        raise ValueError(
            f"uniforms: {uniforms.dtype} {shape} given, float32 ({batch}, S, {steps}) expected"
        )
    if not ((uniforms >= 0) & (uniforms < 1)).all():
        raise ValueError("uniforms: a number outside [0, 1) given, 0 <= u < 1 expected")

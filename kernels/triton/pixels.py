"""Binary pixels on a GPU: each pixel is drawn or read, goes through all layers, and gives a logit.

One program runs a few sequences from their first pixel to their last, with the weights of all
layers in registers (see `plans`). Every thread reads the last layer's h from shared memory anyway,
so the head is one more product with it: all threads know the logit, and thereby the next pixel,
without another exchange. Random numbers come in as thresholds, so that every backend draws the
same pixels.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: RUF005 (Triton compiles no starred tuples)
from __future__ import annotations

from collections.abc import Sequence

import torch
import triton.language as tl
from torch import Tensor

from fastrnn.kernels import contract
from fastrnn.kernels.contract import Cell

from . import gru, lstm
from .arithmetic import load_weights, partial, share, shared_buffers, total
from .inputs import load_biases, load_columns
from .language import gl, gluon, kernel
from .launch import launch, processor
from .plans import choose_plan
from .rows import element_offsets, select, sequences, units

DTYPES = (torch.float32,)


@gluon.jit
def _products(w, h, P: tl.constexpr):
    """The product of each gate's weights and h, as far as a thread can sum it."""
    values = ()
    for g in gl.static_range(len(w)):
        values = values + (partial(w[g], h, P),)
    return values


@gluon.jit
def _run_layers(
    x, states, products, w, v, columns, biases, shared,
    LAYERS: tl.constexpr, P: tl.constexpr, LSTM: tl.constexpr,
):  # fmt: skip
    """Runs a pixel x through all layers; `products` are each layer's W_hh h.

    Returns the last layer's h as products read it, the new states and the new products.
    """
    GATES: tl.constexpr = 4 if LSTM else 3
    new_states = ()
    new_products = ()
    h = None
    for k in gl.static_range(LAYERS):
        mine = products[k]
        if k > 0:
            below = _products(v[k - 1], h, P)
        sums = ()
        for g in gl.static_range(GATES):
            if g == 2 and not LSTM:  # n, of which the input's share is one sum, and m another
                sums = sums + ((columns[g] * x if k == 0 else total(below[g], P)) + biases[k][g],)
                sums = sums + (total(mine[g], P) + biases[k][3],)
            else:
                value = total(mine[g] if k == 0 else mine[g] + below[g], P)
                value = (value if g == 2 else value * P.slope) + biases[k][g]
                sums = sums + (value + columns[g] * x if k == 0 else value,)
        if LSTM:
            _, new = lstm.activate(sums, states[k], P)
        else:
            _, new = gru.activate(sums, states[k], P)
        share(shared[k], new[0], P)
        h = shared[k].load(P.operand)
        new_states = new_states + (new,)
        new_products = new_products + (_products(w[k], h, P),)
    return h, new_states, new_products


@kernel
def pixel_kernel(
    w_ih,  # [G * H] of the first layer, where G is 4 (LSTM) or 3 (GRU)
    v,  # [L - 1, G * H, H]: W_ih of the other layers
    w,  # [L, G * H, H]: W_hh
    b_ih,  # [L, G * H]
    b_hh,  # [L, G * H]
    head,  # [H]
    b_head,  # [1]
    h,  # [L, B, H]: read and written
    c,  # [L, B, H]: read and written; GRU: None
    logit,  # [B], of the next pixel: read and written
    pixels,  # uint8 [B, T]; written if drawn
    thresholds,  # [B, T]: a drawn pixel is 1 where its logit is above; None to read pixels
    logits,  # [B, T]: written: of the pixel after each
    lengths,  # int32 [B], non-increasing; None: all T
    T,
    B,
    H: tl.constexpr,
    LAYERS: tl.constexpr,
    P: tl.constexpr,
    LSTM: tl.constexpr,
):
    """Runs `P.rows` sequences per program; a step is `lstm`'s or `gru`'s in each of L layers.

    The input of the first layer is the pixel, of the others h of the layer below; the logit of the
    next pixel is head · h + b_head of the last layer.
    """
    GATES: tl.constexpr = 4 if LSTM else 3
    DRAW: tl.constexpr = thresholds is not None
    first, both, steps = sequences(lengths, T, B, P)
    length = both[0]
    b = gl.arange(0, P.rows, gl.SliceLayout(0, P.state))[None, :]
    mask = (units(P) < H) & (b + first < B)
    leader = (units(P) == 0) & (b + first < B)
    columns = load_columns(w_ih, GATES, 1, H, P)
    layer_head = load_weights(head, 1, 0, 1, H, P)[0]
    bias_head = gl.load(b_head)
    layer_w = ()
    layer_v = ()
    biases = ()
    states = ()
    products = ()
    shared0 = shared_buffers(LAYERS, gl.float32, P)
    shared1 = shared_buffers(LAYERS, gl.float32, P)
    for k in gl.static_range(LAYERS):
        layer_w = layer_w + (load_weights(w + k * GATES * H * H, GATES, H, 1, H, P),)
        if k > 0:
            layer_v = layer_v + (load_weights(v + (k - 1) * GATES * H * H, GATES, H, 1, H, P),)
        biases = biases + (load_biases(b_ih + k * GATES * H, b_hh + k * GATES * H, GATES, H, P),)
        at = (k * B.to(gl.int64) + first) * H + element_offsets(H, P)
        state = (gl.load(h + at, mask=mask, other=0.0),)
        if LSTM:
            state = state + (gl.load(c + at, mask=mask, other=0.0),)
        states = states + (state,)
        share(shared1[k], state[0], P)
        products = products + (_products(layer_w[k], shared1[k].load(P.operand), P),)
    next_logit = gl.load(logit + first + b + units(P) * 0, mask=b + first < B, other=0.0)
    given = (thresholds if DRAW else pixels) + first * T + b * T
    pixels += first * T + b * T + units(P) * 0
    logits += first * T + b * T + units(P) * 0

    # Two pixels per turn, each with its own shared memory: then one barrier per layer is enough.
    x = gl.load(given, mask=length > 0, other=0).to(gl.float32)
    for turn in range(0, steps, 2):
        for half in gl.static_range(2):
            t = turn + half
            running = t < length
            following = gl.load(given + t + 1, mask=t + 1 < length, other=0).to(gl.float32)
            if DRAW:
                pixel = gl.where(next_logit > x, 1.0, 0.0)
                gl.store(pixels + t, pixel.to(gl.uint8), mask=leader & running)
            else:
                pixel = x
            hs, new_states, products = _run_layers(
                pixel, states, products, layer_w, layer_v, columns, biases,
                shared0 if half == 0 else shared1, LAYERS, P, LSTM,
            )  # fmt: skip
            new_logit = total(partial(layer_head, hs, P), P) + bias_head
            gl.store(logits + t, new_logit, mask=leader & running)
            next_logit = gl.where(running, new_logit, next_logit)
            kept = ()
            for k in gl.static_range(LAYERS):
                kept = kept + (select(running, new_states[k], states[k]),)
            states = kept
            x = following
    for k in gl.static_range(LAYERS):
        at = (k * B.to(gl.int64) + first) * H + element_offsets(H, P)
        gl.store(h + at, states[k][0], mask=mask)
        if LSTM:
            gl.store(c + at, states[k][1], mask=mask)
    gl.store(logit + first + b + units(P) * 0, next_logit, mask=leader)


def fits(hidden_size: int, layers: int) -> bool:
    """Whether the registers of a program hold the weights, in float32."""
    return hidden_size <= 64 if layers == 1 else hidden_size <= 32 and layers <= 3


def run(
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
    """Reads or draws pixels; see :class:`~fastrnn.kernels.contract.PixelLoop`."""
    (batch, steps), (layers, _, hidden_size) = pixels.shape, h.shape
    logits = h.new_zeros(batch, steps)
    if batch == 0 or steps == 0:
        return logits
    w_ih, w_hh, b_ih, b_hh = (list(weights[k::4]) for k in range(4))
    v = torch.stack(w_ih[1:]) if layers > 1 else w_ih[0]
    stacked = [v, *(torch.stack(t) for t in (w_hh, b_ih, b_hh))]
    # Several layers have more weights: planned as for a batch of 1, more lanes share them.
    planned = batch if layers == 1 else 1
    plan = choose_plan(hidden_size, planned, h.dtype, processor(h.device), "pixels")
    launch(
        pixel_kernel, plan, batch, h.device,
        w_ih[0].contiguous(), *stacked, head_weight.contiguous(), head_bias, h, c, logit, pixels,
        thresholds, logits, None if lengths is None else lengths.to(torch.int32), steps, batch,
        hidden_size, layers, plan, cell is contract.LSTM,
    )  # fmt: skip
    return logits

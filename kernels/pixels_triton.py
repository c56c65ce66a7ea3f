"""Binary pixels on a GPU: draw or read one, step all layers, take the next one's logit.

One kernel: a program runs a few sequences from their first pixel to their last, with the weights of
all layers in registers (see `rnn_triton`). The head is one more product with the h that every
thread reads anyway: all know the logit, and so the pixel, without another exchange. Random numbers
come in as thresholds, so that every backend draws the same.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: RUF005 (Triton compiles no starred tuples)
from __future__ import annotations

from collections.abc import Sequence

import torch
import triton.language as tl
from torch import Tensor

from .gru_triton import activate as gru_activate
from .lstm_triton import activate as lstm_activate
from .rnn_launch import launch, plan
from .rnn_triton import DYNAMIC, buffer, gl, gluon, partial, put, total, weights
from .rows_triton import (
    input_bias,
    input_columns,
    places,
    sequences,
    unit,
    units,
)


@gluon.jit
def _products(w, hs, GATES: tl.constexpr, P: tl.constexpr):
    """Each gate's weights times h, as far as a thread can sum it."""
    values = ()
    for g in gl.static_range(GATES):
        values = values + (partial(w[g], hs, P),)
    return values


@gluon.jit
def _pixel(
    x, states, cells, products, w, v, head, columns, bias, b_n, b_head, shared,
    GATES: tl.constexpr, LAYERS: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Read a pixel x; `products` are each layer's W_hh h. Returns the logit and new ones."""
    new_states = ()
    new_cells = ()
    new_products = ()
    hs = None
    for k in gl.static_range(LAYERS):
        mine = products[k]
        if k > 0:
            below = _products(v[k - 1], hs, GATES, P)
        sums = ()
        for g in gl.static_range(GATES):
            if g == 2 and GATES == 3:
                sums = sums + ((columns[g] * x if k == 0 else total(below[g], P)) + bias[k][g],)
                sums = sums + (total(mine[g], P) + b_n[k],)
            else:
                value = total(mine[g] if k == 0 else mine[g] + below[g], P)
                value = (value if g == 2 else value * P.slope) + bias[k][g]
                sums = sums + (value + columns[g] * x if k == 0 else value,)
        if GATES == 4:
            _, _, _, _, c, h = lstm_activate(sums, cells[k], P)
            new_cells = new_cells + (c,)
        else:
            _, _, _, h = gru_activate(sums, states[k], P)
        put(shared[k], h, P)
        hs = shared[k].load(P.operand)
        new_states = new_states + (h,)
        new_products = new_products + (_products(w[k], hs, GATES, P),)
    logit = total(partial(head, hs, P), P) + b_head
    return logit, new_states, new_cells, new_products


@gluon.jit
def _keep(now, new, old):
    """The new ones of the sequences that run, the old ones of the others."""
    values = ()
    for k in gl.static_range(len(new)):
        values = values + (gl.where(now, new[k], old[k]),)
    return values


@gluon.jit(**DYNAMIC)
def kernel(
    w_ih,  # [gates H], of the first layer
    v,  # [layers - 1, gates H, H]: W_ih of the others
    w,  # [layers, gates H, H]: W_hh
    b_ih,  # [layers, gates H]
    b_hh,  # [layers, gates H]
    head,  # [H]
    b_head,  # [1]
    h,  # [layers, B, H]; written
    c,  # [layers, B, H] or None; written
    logit,  # [B]; written
    pixels,  # uint8 [B, T]; written if drawn
    thresholds,  # [B, T]: draws 1 where the logit is above it; None reads
    logits,  # [B, T]
    lengths,  # int32 [B], falling; None: T
    T,
    B,
    H: tl.constexpr,
    LAYERS: tl.constexpr,
    P: tl.constexpr,
):
    """Run `P.rows` sequences a program."""
    GATES: tl.constexpr = 3 if c is None else 4
    DRAW: tl.constexpr = thresholds is not None
    first, both, steps = sequences(lengths, T, B, P)
    length = both[0]
    b = gl.arange(0, P.rows, gl.SliceLayout(0, P.state))[None, :]
    mask = (unit(P) < H) & (b + first < B)
    leader = (unit(P) == 0) & (b + first < B)
    columns = input_columns(w_ih, GATES, 1, H, P)
    layer_head = weights(head, 1, 0, 1, H, P)[0]
    bias_head = gl.load(b_head)
    layer_w = ()
    layer_v = ()
    bias = ()
    bias_n = ()
    states = ()
    cells = ()
    products = ()
    shared0 = ()
    shared1 = ()
    for k in gl.static_range(LAYERS):
        layer_w = layer_w + (weights(w + k * GATES * H * H, GATES, H, 1, H, P),)
        if k > 0:
            layer_v = layer_v + (weights(v + (k - 1) * GATES * H * H, GATES, H, 1, H, P),)
        in_n = b_hh + k * GATES * H
        bias = bias + (input_bias(b_ih + k * GATES * H, in_n, GATES, 2 * GATES - 4, H, P),)
        bias_n = bias_n + (units(in_n + 2 * H, 1, H, P),)
        shared0 = shared0 + (buffer(gl.float32, P),)
        shared1 = shared1 + (buffer(gl.float32, P),)
        at = (k * B.to(gl.int64) + first) * H + places(H, P)
        state = gl.load(h + at, mask=mask, other=0.0)
        states = states + (state,)
        if GATES == 4:
            cells = cells + (gl.load(c + at, mask=mask, other=0.0),)
        put(shared1[k], state, P)
        products = products + (_products(layer_w[k], shared1[k].load(P.operand), GATES, P),)
    odds = gl.load(logit + first + b + unit(P) * 0, mask=b + first < B, other=0.0)
    given = (thresholds if DRAW else pixels) + first * T + b * T
    pixels += first * T + b * T + unit(P) * 0
    logits += first * T + b * T + unit(P) * 0

    # Two pixels a turn, each with its own shared memory: one barrier a layer is then enough.
    x = gl.load(given, mask=length > 0, other=0).to(gl.float32)
    for turn in range(0, steps, 2):
        for half in gl.static_range(2):
            t = turn + half
            now = t < length
            following = gl.load(given + t + 1, mask=t + 1 < length, other=0).to(gl.float32)
            if DRAW:
                pixel = gl.where(odds > x, 1.0, 0.0)
                gl.store(pixels + t, pixel.to(gl.uint8), mask=leader & now)
            else:
                pixel = x
            new, new_states, new_cells, products = _pixel(
                pixel, states, cells, products, layer_w, layer_v, layer_head, columns, bias,
                bias_n, bias_head, shared0 if half == 0 else shared1, GATES, LAYERS, P,
            )  # fmt: skip
            gl.store(logits + t, new, mask=leader & now)
            odds = gl.where(now, new, odds)
            states = _keep(now, new_states, states)
            cells = _keep(now, new_cells, cells)
            x = following
    for k in gl.static_range(LAYERS):
        at = (k * B.to(gl.int64) + first) * H + places(H, P)
        gl.store(h + at, states[k], mask=mask)
        if GATES == 4:
            gl.store(c + at, cells[k], mask=mask)
    gl.store(logit + first + b + unit(P) * 0, odds, mask=leader)


def fits(hidden_size: int, layers: int) -> bool:
    """Whether the registers of a program hold the weights, in float32."""
    return hidden_size <= 64 if layers == 1 else hidden_size <= 32 and layers <= 3


def run(
    cell: str,
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
    """What `native_pixels.run` does, with the same arguments, on their device and stream."""
    (batch, steps), (layers, _, hidden) = pixels.shape, h.shape
    logits = h.new_zeros(batch, steps)
    if batch == 0 or steps == 0:
        return logits
    w_ih, w_hh, b_ih, b_hh = (list(weights[k::4]) for k in range(4))
    v = torch.stack(w_ih[1:]) if layers > 1 else w_ih[0]
    stacked = [v, *(torch.stack(t) for t in (w_hh, b_ih, b_hh))]
    spread = plan(hidden, batch if layers == 1 else 1, h)  # more lanes for more weights
    launch(
        kernel, spread, batch, h.device,
        w_ih[0].contiguous(), *stacked, head_weight.contiguous(), head_bias, h, c, logit, pixels,
        thresholds, logits, None if lengths is None else lengths.to(torch.int32), steps, batch,
        hidden, layers, spread,
    )  # fmt: skip
    return logits

"""The LSTM's arithmetic in the whole-sequence kernels.

With W = W_hh and a = W_ih x + b_ih + b_hh, a step from h, c to h', c' is (torch.nn.LSTM)

    i, f, o = sigmoid(a + W h),  g = tanh(a_g + W_g h)
    c' = f c + i g,  h' = o tanh(c')

and a backward step, from dh' and dc', with gradients of the gates before their activations:

    dc' += dh' o (1 - tanh²(c'))
    di = dc' g i (1-i),  df = dc' c f (1-f),  dg = dc' i (1-g²),  do = dh' tanh(c') o (1-o)
    dh = W^T [di df dg do],  dc = dc' f

`gru` has the same functions for the GRU.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

import triton.language as tl

from .arithmetic import partial, sigmoid, tanh, total
from .language import gluon


@gluon.jit
def activate(sums, states, P: tl.constexpr):
    """The gates i, f, g, o and the new states h, c, from the gates' sums and the states before.

    The sums of all gates but g are multiplied by `P.slope`.
    """
    i = sigmoid(sums[0], P)
    f = sigmoid(sums[1], P)
    g = tanh(sums[2], P)
    o = sigmoid(sums[3], P)
    c = f * states[1] + i * g
    return (i, f, g, o), (o * tanh(c, P), c)


@gluon.jit
def forward_step(a, states, w, h, P: tl.constexpr):
    """One step: what is saved, and the new states.

    `a` is the input's share of the sums, `h` the state h as the product reads it.
    """
    s0 = total(partial(w[0], h, P), P) * P.slope + a[0]
    s1 = total(partial(w[1], h, P), P) * P.slope + a[1]
    s2 = total(partial(w[2], h, P), P) + a[2]
    s3 = total(partial(w[3], h, P), P) * P.slope + a[3]
    return activate((s0, s1, s2, s3), states, P)


@gluon.jit
def factors(gates, c, c_new, P: tl.constexpr):
    """The part of a backward step that does not wait for the gradients of its states.

    Returns dc' per dh'; di, df and dg per dc'; do per dh'; dc per dc'.
    """
    i, f, g, o = gates
    tc = tanh(c_new, P)
    return (
        o * (1.0 - tc * tc),
        g * i * (1.0 - i),
        c * f * (1.0 - f),
        i * (1.0 - g * g),
        tc * o * (1.0 - o),
        f,
    )


@gluon.jit
def gate_gradients(k, dy, d_states):
    """The gates' gradients di, df, dg, do of a step, and its dh' and dc', from its factors k.

    `d_states` are the gradients that come from the next step: dh' still lacks dy, and dc' what
    comes through h'.
    """
    dh = d_states[0] + dy
    dc = d_states[1] + dh * k[0]
    return (dc * k[1], dc * k[2], dc * k[3], dh * k[4]), (dh, dc)


@gluon.jit
def state_gradients(k, d_states, product):
    """The gradients dh and dc of the states before a step.

    They follow from its factors k, dh' and dc', and the product W^T [di df dg do].
    """
    return product, d_states[1] * k[5]

"""The GRU's arithmetic in the whole-sequence kernels.

With W = W_hh and a = W_ih x + b_ih (and + b_hh for r and z), a step from h to h' is (torch.nn.GRU)

    r, z = sigmoid(a + W h),  m = W_n h + b_hn,  n = tanh(a_n + r m)
    h' = n + z (h - n)

and a backward step, from dh', with gradients of r, z and n before their activations:

    dn = dh' (1-z) (1-n²),  dr = dn m r (1-r),  dz = dh' (h - n) z (1-z),  dm = dn r
    dh = dh' z + W^T [dr dz dm]

`lstm` has the same functions for the LSTM.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

import triton.language as tl

from .arithmetic import partial, sigmoid, tanh, total
from .language import gluon


@gluon.jit
def activate(sums, states, P: tl.constexpr):
    """r, z, n, m and the new state h, from sums and the state before.

    The sums are those of r and z, multiplied by `P.slope`; the input's share of n; and m.
    """
    r = sigmoid(sums[0], P)
    z = sigmoid(sums[1], P)
    n = tanh(sums[2] + r * sums[3], P)
    return (r, z, n, sums[3]), (n + z * (states[0] - n),)


@gluon.jit
def forward_step(a, states, w, h, P: tl.constexpr):
    """One step: what is saved, and the new state.

    `a` is the input's share of the sums, and b_hn; `h` is the state as the product reads it.
    """
    s0 = total(partial(w[0], h, P), P) * P.slope + a[0]
    m = total(partial(w[2], h, P), P) + a[3]
    s1 = total(partial(w[1], h, P), P) * P.slope + a[1]
    return activate((s0, s1, a[2], m), states, P)


@gluon.jit
def factors(gates, h):
    """The part of a backward step that does not wait for the gradient of its state.

    Returns dn and dz per dh'; dr and dm per dn; the part of dh that is no product, per dh'.
    """
    r, z, n, m = gates
    return (
        (1.0 - z) * (1.0 - n * n),
        (h - n) * z * (1.0 - z),
        m * r * (1.0 - r),
        r,
        z,
    )


@gluon.jit
def gate_gradients(k, dy, d_states):
    """The gradients dn, dr, dz, dm of a step, and its dh', from its factors k.

    `d_states` is the gradient that comes from the next step: dh' still lacks dy.
    """
    dh = d_states[0] + dy
    dn = dh * k[0]
    return (dn, dn * k[2], dh * k[1], dn * k[3]), (dh,)


@gluon.jit
def state_gradients(k, d_states, product):
    """The gradient dh of the state before a step.

    It follows from its factors k, dh', and the product W^T [dr dz dm].
    """
    return (d_states[0] * k[4] + product,)

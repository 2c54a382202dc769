"""Mamba-3, §3: the generalised trapezoidal rule on a complex state; key channels (i, i + P) form one complex number.

    h_t = e^{dt A + i theta} h_{t-1} + (1 - lambda) dt e^{dt A + i theta} B_{t-1} x_{t-1} + lambda dt B_t x_t,   y = Re(conj(C) h)
"""

import numpy as np


def loop(q, k, v, log_a, dt, m, theta):
    pairs, share = theta.shape[3], v.shape[2] // q.shape[2]

    def joined(x):  # channels after the pairs are real
        return np.concatenate([x[:pairs] + 1j * x[pairs : 2 * pairs], x[2 * pairs :]])

    y = np.zeros(v.shape)
    for n, h in np.ndindex(v.shape[0], v.shape[2]):
        state = last = np.zeros((k.shape[3] - pairs, v.shape[3]), complex)
        for t in range(v.shape[1]):
            turn = np.concatenate([np.exp(1j * theta[n, t, h]), np.ones(k.shape[3] - 2 * pairs)])
            step = (np.exp(log_a[n, t, h]) * turn)[:, None]
            new = np.outer(joined(k[n, t, h // share]), v[n, t, h])
            state = step * state + (1 - m[n, t, h]) * dt[n, t, h] * step * last + m[n, t, h] * dt[n, t, h] * new
            y[n, t, h] = (joined(q[n, t, h // share]).conj() @ state).real
            last = new
    return y

"""The equations of the GRU in torch's documentation (torch.nn.GRU), one sequence and one head at a time."""

import numpy as np
from oracles.lstm import sigmoid


def loop(u, w_HKPJ, b_HPK):
    batch, time, heads, _, size = u.shape
    y = np.zeros((batch, time, heads, size))
    for b, head in np.ndindex(batch, heads):
        h = np.zeros(size)
        for t in range(time):
            w_r, w_z, w_n = (w_HKPJ[head, :, p] for p in range(3))
            b_r, b_z, b_n = b_HPK[head]
            r = sigmoid(u[b, t, head, 0] + h @ w_r + b_r)
            z = sigmoid(u[b, t, head, 1] + h @ w_z + b_z)
            n = np.tanh(u[b, t, head, 2] + r * (h @ w_n + b_n))
            h = (1 - z) * n + z * h
            y[b, t, head] = h
    return y

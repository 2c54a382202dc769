"""The equations of the LSTM in torch's documentation (torch.nn.LSTM), one sequence and one head at a time."""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def loop(u, w_HKPJ, b_HPK):
    batch, time, heads, _, size = u.shape
    y = np.zeros((batch, time, heads, size))
    for n, head in np.ndindex(batch, heads):
        h, c = np.zeros(size), np.zeros(size)
        for t in range(time):
            a = [u[n, t, head, p] + h @ w_HKPJ[head, :, p] + b_HPK[head, p] for p in range(4)]
            i, f, g, o = sigmoid(a[0]), sigmoid(a[1]), np.tanh(a[2]), sigmoid(a[3])
            c = f * c + i * g
            h = o * np.tanh(c)
            y[n, t, head] = h
    return y

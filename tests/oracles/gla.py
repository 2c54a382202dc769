"""Eq. 3 of Yang et al. 2023 (gated linear attention), one token and one head at a time."""

import numpy as np


def loop(q, k, v, log_w):
    y = np.zeros(v.shape)
    for n, h in np.ndindex(v.shape[0], v.shape[2]):
        state = np.zeros((k.shape[3], v.shape[3]))
        for t in range(v.shape[1]):
            state = np.diag(np.exp(log_w[n, t, h])) @ state + np.outer(k[n, t, h], v[n, t, h])
            y[n, t, h] = q[n, t, h] @ state
    return y

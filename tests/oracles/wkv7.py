"""The recurrence of Peng et al. 2025 (RWKV-7), §3, with the state as in the paper, [value, key]."""

import numpy as np


def loop(r, log_w, k, v, a, b):
    y = np.zeros(v.shape)
    for n, h in np.ndindex(v.shape[0], v.shape[2]):
        state = np.zeros((v.shape[3], k.shape[3]))
        for t in range(v.shape[1]):
            transition = np.diag(np.exp(log_w[n, t, h])) + np.outer(a[n, t, h], b[n, t, h])
            state = state @ transition + np.outer(v[n, t, h], k[n, t, h])
            y[n, t, h] = state @ r[n, t, h]
    return y

"""Eq. 10 of Yang et al. 2024 (Gated DeltaNet), with the state as in the paper, [value, key]; log_w is one number per head."""

import numpy as np


def loop(q, k, v, log_w, beta):
    y, share = np.zeros(v.shape), v.shape[2] // q.shape[2]
    for n, h in np.ndindex(v.shape[0], v.shape[2]):
        state = np.zeros((v.shape[3], k.shape[3]))
        for t in range(v.shape[1]):
            key, rate = k[n, t, h // share], beta[n, t, h]
            state = state * np.exp(log_w[n, t, h]) @ (np.eye(key.size) - rate * np.outer(key, key))
            state += rate * np.outer(v[n, t, h], key)
            y[n, t, h] = state @ q[n, t, h // share]
    return y

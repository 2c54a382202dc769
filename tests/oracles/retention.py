"""Eq. 6 of Sun et al. 2023, one token and one head at a time, with q and k of the head's group."""

import numpy as np


def loop(q, k, v, log_a):
    batch, time, heads = log_a.shape
    y, share = np.zeros(v.shape), heads // q.shape[2]
    for b, h in np.ndindex(batch, heads):
        state = np.zeros((q.shape[3], v.shape[3]))
        for t in range(time):
            state = np.exp(log_a[b, t, h]) * state + np.outer(k[b, t, h // share], v[b, t, h])
            y[b, t, h] = q[b, t, h // share] @ state
    return y

"""Eq. 16 to 19 of Peng et al. 2024 (RWKV-5 and -6), one token and one head at a time."""

import numpy as np


def loop(r, k, v, log_w, u_HK):
    y = np.zeros(v.shape)
    for b, h in np.ndindex(v.shape[0], v.shape[2]):
        state = np.zeros((k.shape[3], v.shape[3]))
        for t in range(v.shape[1]):
            now = np.outer(k[b, t, h], v[b, t, h])
            y[b, t, h] = r[b, t, h] @ (state + np.diag(u_HK[h]) @ now)
            state = np.diag(np.exp(log_w[b, t, h])) @ state + now
    return y

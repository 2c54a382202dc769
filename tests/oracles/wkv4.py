"""Eq. 16 of Peng et al. 2023 (RWKV-4) as printed: two sums over the whole past for every token."""

import numpy as np


def loop(k, v, w_D, u_D):
    y = np.zeros(v.shape)
    for b, t in np.ndindex(*v.shape[:2]):
        top, bottom = np.exp(u_D + k[b, t]) * v[b, t], np.exp(u_D + k[b, t])
        for i in range(t):
            weight = np.exp((t - 1 - i) * w_D + k[b, i])
            top, bottom = top + weight * v[b, i], bottom + weight
        y[b, t] = top / bottom
    return y

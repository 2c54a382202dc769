"""Eq. 4 of Guo et al. 2025: the parts of a Fenwick tree, built by peeling off the lowest set bit of the position."""

import numpy as np


def loop(q, k, v, log_a, scale):
    batch, time, heads = log_a.shape
    y, share, last = np.zeros(v.shape), heads // q.shape[2], scale.shape[3] - 1
    for b, h in np.ndindex(batch, heads):
        for t in range(time):
            levels = {t: 0}
            end = t
            while end:  # the part before `end` has as many tokens as the lowest set bit of `end`
                size = end & -end
                levels |= dict.fromkeys(range(end - size, end), min(size.bit_length(), last))
                end -= size
            for s, level in levels.items():
                weight = scale[b, t, h, level] * np.exp(log_a[b, s + 1 : t + 1, h].sum())
                y[b, t, h] += weight * (q[b, t, h // share] @ k[b, s, h // share]) * v[b, s, h]
    return y

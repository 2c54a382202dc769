"""Deformable attention in one dimension (Zhu et al. 2020, arXiv:2010.04159, eq. 2), one token and one point at a time; the value
between two tokens is a sum over all tokens, weighted by their distance from the point."""

import numpy as np


def loop(v, offsets, weights, reach):
    y = np.zeros(v.shape)
    for b, t, h, p in np.ndindex(offsets.shape):
        point = t - min(max(offsets[b, t, h, p], 0), reach)
        for s in range(t + 1):
            y[b, t, h] += weights[b, t, h, p] * max(0, 1 - abs(point - s)) * v[b, s, h]
    return y

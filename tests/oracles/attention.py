"""Eq. 1 of Vaswani et al. 2017 with a causal window, one query and one key at a time."""

import numpy as np


def loop(q, k, v, window=None, sink_H=None):
    batch, time, heads, size = q.shape
    groups = heads // k.shape[2]
    y = np.zeros((batch, time, heads, v.shape[3]))
    for b, t, h in np.ndindex(batch, time, heads):
        first = 0 if window is None else max(0, t - window + 1)
        weights = [np.exp(q[b, t, h] @ k[b, s, h // groups] / np.sqrt(size)) for s in range(first, t + 1)]
        total = sum(weights) + (0 if sink_H is None else np.exp(sink_H[h]))  # the sink: one more key, whose value is 0
        for weight, s in zip(weights, range(first, t + 1), strict=True):
            y[b, t, h] += weight / total * v[b, s, h // groups]
    return y

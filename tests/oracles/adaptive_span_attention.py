"""Attention with a soft mask over the distance (Sukhbaatar et al. 2019, arXiv:1905.07799, §2.2), one query and head at a time."""

import numpy as np


def loop(q, k, v, span_H, window, ramp=32.0):
    batch, time, heads, size = q.shape
    groups = heads // k.shape[2]
    y = np.zeros((batch, time, heads, v.shape[3]))
    for b, t, h in np.ndindex(batch, time, heads):
        seen = range(max(0, t - window + 1), t + 1)
        scores = [q[b, t, h] @ k[b, s, h // groups] / np.sqrt(size) for s in seen]
        mask = [min(max((ramp + span_H[h] - (t - s)) / ramp, 0), 1) for s in seen]
        weights = np.array(mask) * np.exp(scores - np.max(scores))
        y[b, t, h] = weights / weights.sum() @ v[b, seen.start : seen.stop, h // groups]
    return y

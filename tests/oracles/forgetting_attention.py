"""Forgetting attention of Lin et al. 2025 (arXiv:2503.02130, §3) with a causal window, one query and one key at a time."""

import numpy as np


def loop(q, k, v, log_f, window=None):
    batch, time, heads, size = q.shape
    groups = heads // k.shape[2]
    y = np.zeros((batch, time, heads, v.shape[3]))
    for b, t, h in np.ndindex(batch, time, heads):
        first = 0 if window is None else max(0, t - window + 1)
        weights = []
        for s in range(first, t + 1):
            forget = np.prod([np.exp(log_f[b, i, h]) for i in range(s + 1, t + 1)])
            weights.append(forget * np.exp(q[b, t, h] @ k[b, s, h // groups] / np.sqrt(size)))
        for weight, s in zip(weights, range(first, t + 1), strict=True):
            y[b, t, h] += weight / sum(weights) * v[b, s, h // groups]
    return y

"""The compressed branch of Yuan et al. 2025 (arXiv:2502.11089, eq. 7) with means, one query and one block at a time."""

import numpy as np


def loop(q, k, v, block=64):
    batch, time, heads, size = q.shape
    groups = heads // k.shape[2]
    y = np.zeros((batch, time, heads, v.shape[3]))
    for b, t, h in np.ndindex(batch, time, heads):
        parts = [slice(i * block, (i + 1) * block) for i in range((t + 1) // block)]
        weights = [np.exp(q[b, t, h] @ k[b, part, h // groups].mean(axis=0) / np.sqrt(size)) for part in parts]
        for weight, part in zip(weights, parts, strict=True):
            y[b, t, h] += weight / sum(weights) * v[b, part, h // groups].mean(axis=0)
    return y

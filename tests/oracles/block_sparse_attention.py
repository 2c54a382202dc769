"""The selected branch of Yuan et al. 2025 (arXiv:2502.11089, eq. 11 and 12), one query and one key at a time."""

import numpy as np


def loop(q, k, v, index, block=64):
    batch, time, heads, size = q.shape
    groups = heads // k.shape[2]
    y = np.zeros((batch, time, heads, v.shape[3]))
    for b, t, h in np.ndindex(batch, time, heads):
        g = h // groups
        chosen = [s for s in range(t + 1) if s // block in set(index[b, t, g].tolist())]
        weights = [np.exp(q[b, t, h] @ k[b, s, g] / np.sqrt(size)) for s in chosen]
        for weight, s in zip(weights, chosen, strict=True):
            y[b, t, h] += weight / sum(weights) * v[b, s, g]
    return y

"""The compressed branch of Yuan et al. 2025 (arXiv:2502.11089, eq. 7), one query and one block at a time."""

import numpy as np


def compress(x, perceptron=None):
    """[J, K] -> [K]."""
    if perceptron is None:
        return x.mean(axis=0)
    place, first, second = (np.asarray(weight, np.float64) for weight in perceptron)
    hidden = sum((x + place)[j] @ first[j] for j in range(len(x)))
    return hidden / (1 + np.exp(-hidden)) @ second


def blocks(n, block, stride=None):
    """The blocks that end at token n or before it."""
    starts = range(0, n + 2 - block, stride or block)
    return [slice(start, start + block) for start in starts]


def loop(q, k, v, block=64, stride=None, **weights):
    names = ("place_JK", "in_JKF", "out_FK")
    maps = [[weights[f"{kind}_{name}"] for name in names] if weights else None for kind in ("keys", "values")]
    batch, time, heads, size = q.shape
    groups = heads // k.shape[2]
    y = np.zeros((batch, time, heads, v.shape[3]))
    for b, t, h in np.ndindex(batch, time, heads):
        parts, g = blocks(t, block, stride), h // groups
        shares = [np.exp(q[b, t, h] @ compress(k[b, part, g], maps[0]) / np.sqrt(size)) for part in parts]
        for share, part in zip(shares, parts, strict=True):
            y[b, t, h] += share / sum(shares) * compress(v[b, part, g], maps[1])
    return y

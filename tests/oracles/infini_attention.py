"""Munkhdalai et al. 2024 (arXiv:2404.07143, eq. 6 to 10), one segment and one query at a time."""

import numpy as np


def loop(q, k, v, read, write, gate_H, segment, delta=True):
    batch, time, heads, size = q.shape
    groups = heads // k.shape[2]
    feature = lambda x: np.where(x > 0, x, np.expm1(x)) + 1  # noqa: E731
    y = np.zeros((batch, time, heads, v.shape[3]))
    for b, h in np.ndindex(batch, heads):
        g, memory, z = h // groups, np.zeros((write.shape[3], v.shape[3])), np.zeros(write.shape[3])
        share = 1 / (1 + np.exp(-gate_H[h]))
        for start in range(0, time, segment):
            part = slice(start, min(start + segment, time))
            for t in range(part.start, part.stop):
                weights = np.exp(k[b, start : t + 1, g] @ q[b, t, h] / np.sqrt(size))
                near = weights @ v[b, start : t + 1, g] / weights.sum()
                f = feature(read[b, t, h])
                y[b, t, h] = (1 - share) * near + (share * (f @ memory) / (f @ z) if start else 0)
            f, new = feature(write[b, part, g]), v[b, part, g]
            if delta and start:
                new = new - f @ memory / (f @ z)[:, None]
            memory, z = memory + f.T @ new, z + f.sum(axis=0)
    return y

"""S = (I - k^T (b * k)) diag(e^{log_w}) S + k^T (w * v), y = q S: one token and one head at a time."""

import numpy as np


def loop(q, k, v, log_w, b, w):
    y, share = np.zeros(v.shape), v.shape[2] // q.shape[2]
    for n, h in np.ndindex(v.shape[0], v.shape[2]):
        state = np.zeros((k.shape[3], v.shape[3]))
        for t in range(v.shape[1]):
            key = k[n, t, h // share]
            transition = (np.eye(key.size) - np.outer(key, b[n, t, h] * key)) @ np.diag(np.exp(log_w[n, t, h]))
            state = transition @ state + np.outer(key, w[n, t, h] * v[n, t, h])
            y[n, t, h] = q[n, t, h // share] @ state
    return y

"""Eq. 1 to 4 of Lei et al. 2018, one channel at a time."""

import numpy as np
from oracles.lstm import sigmoid


def loop(u, f_in, r_in, x, v_f_D, v_r_D):
    y = np.zeros(u.shape)
    for b, d in np.ndindex(u.shape[0], u.shape[2]):
        c = 0.0
        for t in range(u.shape[1]):
            f, r = sigmoid(f_in[b, t, d] + v_f_D[d] * c), sigmoid(r_in[b, t, d] + v_r_D[d] * c)
            c = f * c + (1 - f) * u[b, t, d]
            y[b, t, d] = r * c + (1 - r) * x[b, t, d]
    return y

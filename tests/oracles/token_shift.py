"""y_t = x_{t-1}, y_0 = 0."""

import numpy as np


def loop(x):
    return np.concatenate([np.zeros_like(x[:, :1]), x[:, :-1]], axis=1)

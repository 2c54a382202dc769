"""The recurrence of a diagonal state space model, one token, one channel and one complex number at a time."""

import numpy as np


def loop(u, p_DM, b_DM, c_DM, d_D):
    p, b, c = (z[:, : z.shape[1] // 2] + 1j * z[:, z.shape[1] // 2 :] for z in (p_DM, b_DM, c_DM))
    y = np.zeros(u.shape)
    for row, channel in np.ndindex(u.shape[0], u.shape[2]):
        x = np.zeros(p.shape[1], complex)
        for t in range(u.shape[1]):
            for n in range(len(x)):
                x[n] = p[channel, n] * x[n] + b[channel, n] * u[row, t, channel]
            y[row, t, channel] = sum((c[channel] * x).real) + d_D[channel] * u[row, t, channel]
    return y

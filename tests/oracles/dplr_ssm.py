"""S4's bilinear step with full complex matrices, including both values of each conjugate pair, one channel and one token at a
time."""

import numpy as np


def loop(u, lam_DM, P_DM, b_DM, c_DM, dt_D, d_D):
    def both(z_DM):
        half = z_DM[:, : z_DM.shape[1] // 2] + 1j * z_DM[:, z_DM.shape[1] // 2 :]
        return np.concatenate([half, half.conj()], axis=1)

    lam, p, b, c = map(both, (lam_DM, P_DM, b_DM, c_DM))
    y = np.zeros(u.shape)
    for row, d in np.ndindex(u.shape[0], u.shape[2]):
        a, unit, x = np.diag(lam[d]) - np.outer(p[d], p[d].conj()), np.eye(lam.shape[1]), np.zeros(lam.shape[1], complex)
        for t in range(u.shape[1]):
            right = (unit + dt_D[d] / 2 * a) @ x + dt_D[d] * b[d] * u[row, t, d]
            x = np.linalg.solve(unit - dt_D[d] / 2 * a, right)
            y[row, t, d] = (c[d] @ x).real + d_D[d] * u[row, t, d]
    return y

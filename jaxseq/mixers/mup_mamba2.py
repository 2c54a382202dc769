"""Mamba-2 with the forward multipliers of Falcon-H1 (Zuo et al. 2025, arXiv:2507.22448), an extension of µP."""

from typing import Any

import jax
import numpy as np

from jaxseq.call import Call, Mixed
from jaxseq.layers import recomputed
from jaxseq.mixers.mamba2 import Mamba2, gated


class MupMamba2(Mamba2):
    """y = out mamba2(in u), and each of (z, x, B, C, dt) = (in u) W_in has a multiplier too. Fields as in `mamba2`.

    Without `normed`, the output is gated but not normalised: ((ssd(x, dt, B, C) + D x) * silu(z)) W_out.
    """

    in_multiplier: float = 1.0
    z_multiplier: float = 1.0
    x_multiplier: float = 1.0
    b_multiplier: float = 1.0
    c_multiplier: float = 1.0
    dt_multiplier: float = 1.0
    out_multiplier: float = 1.0
    normed: bool = False

    def _projected(self, all_BTD):
        inner, _, selected = self._sizes()
        sizes = {"z": inner, "x": inner, "b": selected // 2, "c": selected // 2, "dt": self.heads}
        factors = [getattr(self, f"{name}_multiplier") for name in sizes]
        return all_BTD * np.repeat(factors, list(sizes.values())).astype(all_BTD.dtype)

    def _gated_norm(self, y_BTHV, x_BTHV, d_H, z_BTD):
        gate = super()._gated_norm if self.normed else recomputed(gated)
        return gate(y_BTHV, x_BTHV, d_H, z_BTD)

    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        mixed = super().mix(self.in_multiplier * x_BTD, state, call)
        return mixed._replace(y_BTD=self.out_multiplier * mixed.y_BTD)

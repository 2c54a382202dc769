"""A trained block as the one that is run: batch norms, branches and layer scale folded into kernels (arXiv:2311.15599, §3.1).

Every fold is linear algebra on the running statistics, so that both forms are one function in evaluation.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxseq.mixers import _reparam
from jaxseq.models._unireplknet_blocks import NORM_EPS, PLAIN


def affine(norm: Mapping[str, Any], stats: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
    """A batch norm in evaluation as (factor, summand)."""
    factor_D = norm["scale"] / jnp.sqrt(stats["var"] + NORM_EPS)
    return factor_D, norm["bias"] - stats["mean"] * factor_D


def merge_conv(params: Mapping[str, Any], stats: Mapping[str, Any], kernel: int) -> tuple[jax.Array, jax.Array]:
    """(kernel [W, W, D], bias [D]) of a `LargeKernel`."""
    kernel_WWD = params["kernel"]
    if kernel in PLAIN:
        return kernel_WWD, jnp.zeros_like(kernel_WWD[0, 0])
    factor_D, bias_D = affine(params["norm"], stats["norm"])
    kernel_WWD *= factor_D
    for taps, dilation in _reparam.branches(kernel):
        label = f"_{taps}_{dilation}"
        factor_D, summand_D = affine(params[f"norm{label}"], stats[f"norm{label}"])
        first = _reparam.centre(taps, dilation, kernel)
        kernel_WWD += _reparam.spread(params[f"kernel{label}"] * factor_D, dilation, kernel, 2, first)
        bias_D += summand_D
    return kernel_WWD, bias_D


def merge_block(params: Mapping[str, Any], stats: Mapping[str, Any], kernel: int) -> dict:
    """Parameters of a `UniRepLKNetBlock` with their running statistics -> parameters of one that is merged."""
    kernel_WWD, bias_D = merge_conv(params["conv"], stats.get("conv", {}), kernel)
    factor_D, summand_D = affine(params["norm"], stats["norm"])
    conv = {"kernel": kernel_WWD * factor_D, "bias": bias_D * factor_D + summand_D}

    kernel_FD, gamma_D = params["down"]["kernel"], params["layer_scale"]
    factor_D, summand_D = affine(params["down_norm"], stats["down_norm"])
    bias_D = (params["grn_beta"] @ kernel_FD * factor_D + summand_D) * gamma_D
    down = {"kernel": kernel_FD * (factor_D * gamma_D), "bias": bias_D}
    same = {name: params[name] for name in ("squeeze", "excite", "up", "grn_gamma")}
    return same | {"conv": conv, "down": down}


def merge(model, variables: dict) -> tuple[Any, dict]:
    """The `UniRepLKNet` with one kernel a block and no batch norm, and its {"params"}: the same function as in evaluation."""
    if model.merged:
        return model, variables
    params, stats = dict(variables["params"]), variables["batch_stats"]
    for i, stage in enumerate(model.stages):
        name, blocks = f"stage_{i}", {}
        for j, kernel in enumerate(stage.group):
            own = params[name][f"block_{j}"], stats[name][f"block_{j}"]
            blocks[f"block_{j}"] = jax.vmap(functools.partial(merge_block, kernel=kernel))(*own)
        params[name] = blocks
    return model.clone(merged=True), {"params": params}

"""Merge a trained block for inference: fold batch norms, branches and layer scale into kernels (arXiv:2311.15599, §3.1).

All folds are linear and use the running statistics, so the merged block computes the same function in evaluation.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxseq.mixers import _reparam
from jaxseq.models._unireplknet_blocks import NORM_EPS, PLAIN


def affine(norm: Mapping[str, Any], stats: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
    """A batch norm in evaluation as an affine map, (factor, summand)."""
    factor_D = norm["scale"] / jnp.sqrt(stats["var"] + NORM_EPS)
    return factor_D, norm["bias"] - stats["mean"] * factor_D


def merge_conv(params: Mapping[str, Any], stats: Mapping[str, Any], kernel: int) -> tuple[jax.Array, jax.Array]:
    """(kernel [W, W, D], bias [D]) of the merged `LargeKernel`."""
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
    """Parameters of the merged block, from parameters and running statistics of a `UniRepLKNetBlock`."""
    kernel_WWD, bias_D = merge_conv(params["conv"], stats.get("conv", {}), kernel)
    factor_D, summand_D = affine(params["norm"], stats["norm"])
    conv = {"kernel": kernel_WWD * factor_D, "bias": bias_D * factor_D + summand_D}

    kernel_FD, gamma_D = params["down"]["kernel"], params["layer_scale"]
    factor_D, summand_D = affine(params["down_norm"], stats["down_norm"])
    bias_D = (params["grn_beta"] @ kernel_FD * factor_D + summand_D) * gamma_D
    down = {"kernel": kernel_FD * (factor_D * gamma_D), "bias": bias_D}
    same = {name: params[name] for name in ("squeeze", "excite", "up", "grn_gamma")}
    return same | {"conv": conv, "down": down}


def merge(model: Any, variables: dict) -> tuple[Any, dict]:
    """(merged `UniRepLKNet`, {"params": …}): one kernel per block and no batch norm, the same function in evaluation."""
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

"""Approximates trained Hyena filters by sums of exponentials, which gives a state and a decoding step of constant size.

A filter h of W taps becomes Re sum_n R_n p_n^t, with N modes per channel (Massaroli et al. 2023, "Laughing Hyena
Distillery", arXiv:2310.18780, §3). The paper uses gradient descent from random poles. Here the initial poles come from
balanced truncation of the filter's Hankel matrix (Kung's realisation: the dynamics follow from the left singular vectors
shifted by one row), the residues from least squares, and Adam refines both on ||h - ĥ||² / ||h||². Each channel keeps the
better of the initial and the refined fit. Poles are parametrised as exp(-softplus(a) + i b), inside the unit circle.

The approximation errors of the filters, and of the logits on real tokens, are measured. A Hyena filter ends after its last
tap; the modal filter continues to decay.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from ml_collections import ConfigDict

import jaxseq
from jaxseq.config import from_dict, to_dict
from jaxseq.errors import UserError
from jaxseq.mixers.hyena import Hyena
from jaxseq.models import _stack
from jaxseq.ops import _lti

COLUMNS = 256  # of the Hankel matrix: enough taps to determine the poles
SLOWEST = 1e-4  # minimum decay per token of an initial pole; slower poles have tiny gradients


class Fit(NamedTuple):
    """Filters of D channels as modes, and their errors."""

    poles_DN2: np.ndarray  # (a, b) of exp(-softplus(a) + i b)
    residues_DN2: np.ndarray  # real and imaginary parts
    error_D: np.ndarray  # ||h - ĥ|| / ||h||
    start_error_D: np.ndarray  # before the refinement


def poles(poles_DN2: jax.Array) -> jax.Array:
    """The complex poles for the parameters (a, b)."""
    return jnp.exp(jax.lax.complex(-nn.softplus(poles_DN2[..., 0]), poles_DN2[..., 1]))


def _modes(p_DN: np.ndarray, taps: int) -> np.ndarray:
    """Real and imaginary parts of p^t as columns of a real matrix [D, W, 2N]; its product with (Re R, Im R) is the filter."""
    p_DWN = np.where(p_DN == 0, 1e-300, p_DN)[:, None] ** np.arange(taps)[:, None]
    return np.concatenate([p_DWN.real, -p_DWN.imag], axis=2)


def _solve(h_DW: np.ndarray, p_DN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least-squares residues [D, N] for given poles, and the relative errors."""
    modes_DWM = _modes(p_DN, h_DW.shape[1])
    weights_DM = np.stack([np.linalg.lstsq(m, h, rcond=1e-10)[0] for m, h in zip(modes_DWM, h_DW, strict=True)])
    rest_DW = h_DW - np.einsum("dwm,dm->dw", modes_DWM, weights_DM)
    re, im = np.split(weights_DM, 2, axis=1)
    return re + 1j * im, np.linalg.norm(rest_DW, axis=1) / np.maximum(np.linalg.norm(h_DW, axis=1), 1e-30)


def realise(h_DW: np.ndarray, modes: int) -> np.ndarray:
    """Poles [D, N] by balanced truncation to 2N real states: one of each conjugate pair, and the most important real poles."""
    taps, columns = h_DW.shape[1], min(h_DW.shape[1], max(COLUMNS, 4 * modes))
    padded_DW = np.pad(h_DW, ((0, 0), (0, columns)))  # the filter is zero after its end
    hankel_DWW = np.lib.stride_tricks.sliding_window_view(padded_DW, columns, axis=1)[:, : taps + 1]
    found = []
    for h_W, hankel_WW in zip(h_DW, hankel_DWW, strict=True):
        left_WR, value_R = _left(hankel_WW, 2 * modes)
        rank = max(1, min(2 * modes, int((value_R > 1e-12 * value_R[0]).sum())))
        left_WR = left_WR[:, :rank] * np.sqrt(value_R[:rank])
        p = np.linalg.eigvals(np.linalg.lstsq(left_WR[:-1], left_WR[1:], rcond=None)[0])
        p = p[p.imag >= 0]
        p *= np.minimum(1, np.exp(-SLOWEST) / np.maximum(np.abs(p), 1e-30))
        residue_N, _ = _solve(h_W[None], p[None])
        energy_N = np.abs(residue_N[0]) ** 2 * (1 - np.abs(p) ** (2 * taps)) / (1 - np.abs(p) ** 2)
        p = p[np.argsort(-energy_N)[:modes]]
        spare = modes - len(p)  # unused modes get a fast decay and evenly spaced angles
        found.append(np.concatenate([p, 0.5 * np.exp(1j * np.pi * (np.arange(spare) + 0.5) / max(spare, 1))]))
    return np.stack(found)


def _left(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """At least `rank` leading left singular vectors and singular values, by subspace iteration (Halko et al. 2011, §4.5)."""
    columns = rank + 16
    if columns >= min(matrix.shape):
        return np.linalg.svd(matrix, full_matrices=False)[:2]
    basis = np.linalg.qr(matrix @ np.random.default_rng(0).normal(size=(matrix.shape[1], columns)))[0]
    for _ in range(2):
        basis = np.linalg.qr(matrix @ np.linalg.qr(matrix.T @ basis)[0])[0]
    left, values, _ = np.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ left, values


def _inverse(p_DN: np.ndarray) -> np.ndarray:
    """The parameters (a, b) of poles inside the unit circle."""
    rate = np.maximum(-np.log(np.maximum(np.abs(p_DN), 1e-30)), SLOWEST)
    return np.stack([rate + np.log(-np.expm1(-rate)), np.angle(p_DN)], axis=-1)


@functools.partial(jax.jit, static_argnames="steps")
def _refine(h_DW, poles_DN2, residues_DN2, steps: int, lr: float):
    """Adam on the relative squared error of each channel separately, with a cosine schedule to zero."""
    scale_D = jnp.maximum(jnp.sum(h_DW**2, axis=1), 1e-30)

    def loss(parameters):
        (rate_DN, angle_DN), residues_DN2 = jnp.moveaxis(parameters[0], -1, 0), parameters[1]
        p_DM = jnp.exp(-nn.softplus(rate_DN)[..., None, :]) * jnp.stack([jnp.cos(angle_DN), jnp.sin(angle_DN)], axis=-2)
        start_DM = jnp.moveaxis(residues_DN2, -1, -2)
        modes, size = rate_DN.shape[-1], (len(h_DW), -1)
        rows_WDM, _ = _lti.powers(_lti.DIAGONAL, p_DM.reshape(size), start_DM.reshape(size), h_DW.shape[1])
        return jnp.sum(jnp.sum((h_DW - jnp.sum(rows_WDM[..., :modes], axis=-1).T) ** 2, axis=1) / scale_D)

    adam = optax.adam(optax.cosine_decay_schedule(lr, steps))

    def step(carry, _):
        parameters, state = carry
        updates, state = adam.update(jax.grad(loss)(parameters), state)
        return (optax.apply_updates(parameters, updates), state), None

    start = poles_DN2, residues_DN2
    return jax.lax.scan(step, (start, adam.init(start)), None, length=steps)[0][0]


def fit(h_DW: np.ndarray, modes: int, steps: int = 500, lr: float = 3e-3) -> Fit:
    """Fits filters [D, W] by `modes` complex exponentials per channel. `steps` of Adam; 0: no refinement."""
    if modes < 1:
        raise UserError(f"the number of modes is {modes}; it must be 1 or more")
    h_DW = np.asarray(h_DW, np.float64)
    p_DN = realise(h_DW, modes)
    residue_DN, start_D = _solve(h_DW, p_DN)
    if not steps:
        return _fit(p_DN, residue_DN, start_D, start_D)
    size_D11 = np.linalg.norm(h_DW, axis=1)[:, None, None].clip(1e-30)  # normalised filters, so that one learning rate suits all
    residues_DN2 = np.stack([residue_DN.real, residue_DN.imag], axis=-1) / size_D11
    arguments = (h_DW / size_D11[..., 0], _inverse(p_DN), residues_DN2)
    refined_DN2, _ = _refine(*(jnp.asarray(x, jnp.float32) for x in arguments), steps, lr)
    better_DN = np.asarray(poles(np.asarray(refined_DN2)), np.complex128)
    better_residue_DN, error_D = _solve(h_DW, better_DN)
    better_D1 = (error_D < start_D)[:, None]
    residue_DN = np.where(better_D1, better_residue_DN, residue_DN)
    return _fit(np.where(better_D1, better_DN, p_DN), residue_DN, np.minimum(error_D, start_D), start_D)


def _fit(p_DN, residue_DN, error_D, start_D) -> Fit:
    return Fit(_inverse(p_DN), np.stack([residue_DN.real, residue_DN.imag], axis=-1), error_D, start_D)


class ModalModel(NamedTuple):
    model: nn.Module
    params: Any
    config: ConfigDict
    errors: dict[str, np.ndarray]  # ||h - ĥ|| / ||h|| of each hyena in the stack: [layers, convolutions, D]


def convert(config: ConfigDict, params: Any, modes: int, steps: int = 500) -> ModalModel:
    """The model of `config` with each `hyena` replaced by a `hyena_modal` with `modes` complex modes per channel.

    Raises UserError for a model without Hyena.
    """
    model, ours = jaxseq.build(config), modal_config(config, modes)
    params, errors = dict(params), {}
    for i, segment in enumerate(_stack.parse(config.model.stack)):
        old = _stack.paths(segment.labels)
        new = _stack.paths(tuple(map(_modal, segment.labels)))
        block = dict(params[f"blocks_{i}"])
        for mixer, before, after in zip(model.blocks[i].mixers, old, new, strict=True):
            values, norm = block.pop(before), block.pop(f"norm_{before}", None)
            if isinstance(mixer, Hyena):
                values, errors[f"blocks_{i}/{after}"] = _convert(mixer, values, modes, steps)
            block |= {after: values} | ({} if norm is None else {f"norm_{after}": norm})
        params[f"blocks_{i}"] = block
    return ModalModel(jaxseq.build(ours), params, ours, errors)


def _modal(label: str) -> str:
    return re.sub(r"^hyena(?=$|:)", "hyena_modal", label)


def modal_config(config: ConfigDict, modes: int) -> ConfigDict:
    """The config with each hyena replaced by its modal form."""
    data = to_dict(config)
    labels = [label for label in _stack.labels(config.model.stack) if _modal(label) != label] if "stack" in config.model else []
    if not labels:
        raise UserError("this model has no hyena to convert: its mixers have no such filters, or are already modal")
    data["model"]["stack"] = re.sub(r"(?<!\w)hyena(?!\w)", "hyena_modal", config.model.stack)
    for label in labels:
        section = data["model"].pop(label)
        kept = {name: section[name] for name in ("order", "convention", "taps", "heads")}
        data["model"][_modal(label)] = kept | {"state_size": modes, "polar": True}
    return from_dict(data)


def _convert(mixer: Hyena, values: Mapping, modes: int, steps: int) -> tuple[dict, np.ndarray]:
    """Converts the parameters of `mixer` to those of the modal mixer; both are stacked over the layers."""
    taps = jax.jit(jax.vmap(lambda own: mixer.filter_module(parent=None).apply({"params": own})))
    h_LOWD = np.asarray(taps(values["filter"]), np.float64)
    h_LODW = np.moveaxis(h_LOWD, 2, 3)
    found = fit(h_LODW.reshape(-1, h_LODW.shape[3]), modes, steps)
    shape, dtype = h_LODW.shape[:3], jax.tree.leaves(values["filter"])[0].dtype
    ours = {"poles": found.poles_DN2, "residues": found.residues_DN2}
    ours = {name: jnp.asarray(x.reshape(*shape, modes, 2), dtype) for name, x in ours.items()}
    return {name: x for name, x in values.items() if name != "filter"} | ours, found.error_D.reshape(shape)


def log_probabilities(model: nn.Module, params: Any, tokens_BT: np.ndarray, form: str = "parallel") -> np.ndarray:
    """Log-probabilities [B, T, V] of rows that begin documents."""
    run = jax.jit(lambda params, tokens: jax.nn.log_softmax(model.apply({"params": params}, tokens, form=form)[0]))
    return np.asarray(run(params, tokens_BT), np.float64)


def logit_error(wanted_BTV: np.ndarray, got_BTV: np.ndarray) -> dict[str, float]:
    """The distance between two models' log-probabilities.

    logit_error: ||z - ẑ|| / ||z||, both centred over the vocabulary; divergence: mean KL(p || p̂) in nats per token;
    agreement: share of positions with the same most likely token.
    """
    centred, rest = (x - x.mean(axis=-1, keepdims=True) for x in (wanted_BTV, got_BTV - wanted_BTV))
    return {
        "logit_error": float(np.linalg.norm(rest) / np.linalg.norm(centred)),
        "divergence": float(np.mean(np.sum(np.exp(wanted_BTV) * (wanted_BTV - got_BTV), axis=-1))),
        "agreement": float(np.mean(wanted_BTV.argmax(-1) == got_BTV.argmax(-1))),
    }

"""From trained Hyena filters to sums of exponentials: the same model with a state and a step of constant size.

A filter h of W taps becomes Re sum_n R_n p_n^t, N modes a channel (Massaroli et al. 2023, "Laughing Hyena Distillery",
arXiv:2310.18780, §3). The paper descends the gradient from random poles; here balanced truncation of the filter's Hankel
matrix gives the start (Kung's realisation: the left singular vectors, shifted by a row, show the dynamics), residues are
solved for, and Adam refines both on ||h - ĥ||² / ||h||². Of start and refinement each channel keeps the better one.
Poles are inside the unit circle by their form, exp(-softplus(a) + i b).

What is lost is measured, not promised: the filters' errors, and the logits' on real tokens. Behind its last tap a Hyena
filter ends; the modal one goes on decaying.
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

COLUMNS = 256  # of the Hankel matrix at most: what a filter does over so many taps tells its poles
SLOWEST = 1e-4  # least decay a token of a starting pole; slower ones would barely learn


class Fit(NamedTuple):
    """Filters of C channels as modes, and how far they are from those given."""

    poles_CN2: np.ndarray  # (a, b) of exp(-softplus(a) + i b)
    residues_CN2: np.ndarray  # real and imaginary parts
    error_C: np.ndarray  # ||h - ĥ|| / ||h||
    start_error_C: np.ndarray  # before the refinement


def poles(poles_CN2) -> jax.Array:
    """The complex numbers that (a, b) stand for."""
    return jnp.exp(jax.lax.complex(-nn.softplus(poles_CN2[..., 0]), poles_CN2[..., 1]))


def _modes(p_CN: np.ndarray, taps: int) -> np.ndarray:
    """Real and imaginary parts of p^t as the columns of a real matrix [C, W, 2N]: times (Re R, Im R) it gives the filter."""
    p_CWN = np.where(p_CN == 0, 1e-300, p_CN)[:, None] ** np.arange(taps)[:, None]
    return np.concatenate([p_CWN.real, -p_CWN.imag], axis=2)


def _solve(h_CW: np.ndarray, p_CN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least-squares residues [C, N] of given poles, and the relative errors."""
    modes_CWM = _modes(p_CN, h_CW.shape[1])
    weights_CM = np.stack([np.linalg.lstsq(m, h, rcond=1e-10)[0] for m, h in zip(modes_CWM, h_CW, strict=True)])
    rest_CW = h_CW - np.einsum("cwm,cm->cw", modes_CWM, weights_CM)
    re, im = np.split(weights_CM, 2, axis=1)
    return re + 1j * im, np.linalg.norm(rest_CW, axis=1) / np.maximum(np.linalg.norm(h_CW, axis=1), 1e-30)


def realise(h_CW: np.ndarray, modes: int) -> np.ndarray:
    """Poles [C, N] by balanced truncation to 2N real states: conjugate pairs count once, of real poles those that carry most."""
    taps, columns = h_CW.shape[1], min(h_CW.shape[1], max(COLUMNS, 4 * modes))
    padded_CW = np.pad(h_CW, ((0, 0), (0, columns)))  # the filter is zero behind its end
    hankel_CWK = np.lib.stride_tricks.sliding_window_view(padded_CW, columns, axis=1)[:, : taps + 1]
    found = []
    for h_W, hankel_WK in zip(h_CW, hankel_CWK, strict=True):
        left_WR, value_R = _left(hankel_WK, 2 * modes)
        rank = max(1, min(2 * modes, int((value_R > 1e-12 * value_R[0]).sum())))
        left_WR = left_WR[:, :rank] * np.sqrt(value_R[:rank])
        p = np.linalg.eigvals(np.linalg.lstsq(left_WR[:-1], left_WR[1:], rcond=None)[0])
        p = p[p.imag >= 0]
        p *= np.minimum(1, np.exp(-SLOWEST) / np.maximum(np.abs(p), 1e-30))
        residue_N, _ = _solve(h_W[None], p[None])
        energy_N = np.abs(residue_N[0]) ** 2 * (1 - np.abs(p) ** (2 * taps)) / (1 - np.abs(p) ** 2)
        p = p[np.argsort(-energy_N)[:modes]]
        spare = modes - len(p)  # modes that nobody needs: a fast decay at even angles
        found.append(np.concatenate([p, 0.5 * np.exp(1j * np.pi * (np.arange(spare) + 0.5) / max(spare, 1))]))
    return np.stack(found)


def _left(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """At least `rank` leading left singular vectors and their values, by subspace iteration (Halko et al. 2011, §4.5)."""
    columns = rank + 16
    if columns >= min(matrix.shape):
        return np.linalg.svd(matrix, full_matrices=False)[:2]
    basis = np.linalg.qr(matrix @ np.random.default_rng(0).normal(size=(matrix.shape[1], columns)))[0]
    for _ in range(2):
        basis = np.linalg.qr(matrix @ np.linalg.qr(matrix.T @ basis)[0])[0]
    left, values, _ = np.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ left, values


def _inverse(p_CN: np.ndarray) -> np.ndarray:
    """(a, b) of poles inside the unit circle."""
    rate = np.maximum(-np.log(np.maximum(np.abs(p_CN), 1e-30)), SLOWEST)
    return np.stack([rate + np.log(-np.expm1(-rate)), np.angle(p_CN)], axis=-1)


@functools.partial(jax.jit, static_argnames="steps")
def _refine(h_CW, poles_CN2, residues_CN2, steps: int, lr: float):
    """Adam on the channels' relative squared errors, each on its own; the rate falls to zero along a cosine."""
    scale_C = jnp.maximum(jnp.sum(h_CW**2, axis=1), 1e-30)

    def loss(parameters):
        (rate_CN, angle_CN), residues_CN2 = jnp.moveaxis(parameters[0], -1, 0), parameters[1]
        p_CM = jnp.exp(-nn.softplus(rate_CN)[..., None, :]) * jnp.stack([jnp.cos(angle_CN), jnp.sin(angle_CN)], axis=-2)
        start_CM = jnp.moveaxis(residues_CN2, -1, -2)
        modes, size = rate_CN.shape[-1], (len(h_CW), -1)
        rows_WCM, _ = _lti.powers(_lti.DIAGONAL, p_CM.reshape(size), start_CM.reshape(size), h_CW.shape[1])
        return jnp.sum(jnp.sum((h_CW - jnp.sum(rows_WCM[..., :modes], axis=-1).T) ** 2, axis=1) / scale_C)

    adam = optax.adam(optax.cosine_decay_schedule(lr, steps))

    def step(carry, _):
        parameters, state = carry
        updates, state = adam.update(jax.grad(loss)(parameters), state)
        return (optax.apply_updates(parameters, updates), state), None

    start = poles_CN2, residues_CN2
    return jax.lax.scan(step, (start, adam.init(start)), None, length=steps)[0][0]


def fit(h_CW: np.ndarray, modes: int, steps: int = 500, lr: float = 3e-3) -> Fit:
    """Filters [C, W] as `modes` complex exponentials a channel. `steps` of Adam; 0: the realisation alone."""
    if modes < 1:
        raise UserError(f"a state of {modes} modes holds nothing; take 1 or more")
    h_CW = np.asarray(h_CW, np.float64)
    p_CN = realise(h_CW, modes)
    residue_CN, start_C = _solve(h_CW, p_CN)
    if not steps:
        return _fit(p_CN, residue_CN, start_C, start_C)
    size_C11 = np.linalg.norm(h_CW, axis=1)[:, None, None].clip(1e-30)  # unit filters, so that one rate suits all
    residues_CN2 = np.stack([residue_CN.real, residue_CN.imag], axis=-1) / size_C11
    arguments = (h_CW / size_C11[..., 0], _inverse(p_CN), residues_CN2)
    refined_CN2, _ = _refine(*(jnp.asarray(x, jnp.float32) for x in arguments), steps, lr)
    better_CN = np.asarray(poles(np.asarray(refined_CN2)), np.complex128)
    better_residue_CN, error_C = _solve(h_CW, better_CN)
    better_C1 = (error_C < start_C)[:, None]
    residue_CN = np.where(better_C1, better_residue_CN, residue_CN)
    return _fit(np.where(better_C1, better_CN, p_CN), residue_CN, np.minimum(error_C, start_C), start_C)


def _fit(p_CN, residue_CN, error_C, start_C) -> Fit:
    return Fit(_inverse(p_CN), np.stack([residue_CN.real, residue_CN.imag], axis=-1), error_C, start_C)


class ModalModel(NamedTuple):
    model: nn.Module
    params: Any
    config: ConfigDict
    errors: dict[str, np.ndarray]  # ||h - ĥ|| / ||h|| of each hyena in the stack: [layers, convolutions, D]


def convert(config: ConfigDict, params: Any, modes: int, steps: int = 500) -> ModalModel:
    """The model of `config` with each `hyena` made a `hyena_modal` of `modes` complex numbers a channel.

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
    """The config whose hyenas are modal."""
    data = to_dict(config)
    labels = [label for label in _stack.labels(config.model.stack) if _modal(label) != label] if "stack" in config.model else []
    if not labels:
        raise UserError("this model has no hyena to bring into modal form; its mixers have no such filters, or are modal already")
    data["model"]["stack"] = re.sub(r"(?<!\w)hyena(?!\w)", "hyena_modal", config.model.stack)
    for label in labels:
        section = data["model"].pop(label)
        kept = {name: section[name] for name in ("order", "convention", "taps", "heads")}
        data["model"][_modal(label)] = kept | {"state_size": modes, "polar": True}
    return from_dict(data)


def _convert(mixer: Hyena, values: Mapping, modes: int, steps: int) -> tuple[dict, np.ndarray]:
    """Parameters of the modal mixer from those of `mixer`, all stacked over the layers."""
    taps = jax.jit(jax.vmap(lambda own: mixer.filter_module(parent=None).apply({"params": own})))
    h_LOWD = np.asarray(taps(values["filter"]), np.float64)
    h_LODW = np.moveaxis(h_LOWD, 2, 3)
    found = fit(h_LODW.reshape(-1, h_LODW.shape[3]), modes, steps)
    shape, dtype = h_LODW.shape[:3], jax.tree.leaves(values["filter"])[0].dtype
    ours = {"poles": found.poles_CN2, "residues": found.residues_CN2}
    ours = {name: jnp.asarray(x.reshape(*shape, modes, 2), dtype) for name, x in ours.items()}
    return {name: x for name, x in values.items() if name != "filter"} | ours, found.error_C.reshape(shape)


def log_probabilities(model: nn.Module, params: Any, tokens_BT: np.ndarray, form: str = "parallel") -> np.ndarray:
    """[B, T, V] of rows that begin documents."""
    run = jax.jit(lambda params, tokens: jax.nn.log_softmax(model.apply({"params": params}, tokens, form=form)[0]))
    return np.asarray(run(params, tokens_BT), np.float64)


def logit_error(wanted_BTV: np.ndarray, got_BTV: np.ndarray) -> dict[str, float]:
    """How far one model's log-probabilities are from another's.

    logit_error: ||z - ẑ|| / ||z|| of both less their means over the vocabulary; divergence: mean KL(p || p̂) in nats a token;
    agreement: share of positions with the same likeliest token.
    """
    centred, rest = (x - x.mean(axis=-1, keepdims=True) for x in (wanted_BTV, got_BTV - wanted_BTV))
    return {
        "logit_error": float(np.linalg.norm(rest) / np.linalg.norm(centred)),
        "divergence": float(np.mean(np.sum(np.exp(wanted_BTV) * (wanted_BTV - got_BTV), axis=-1))),
        "agreement": float(np.mean(wanted_BTV.argmax(-1) == got_BTV.argmax(-1))),
    }

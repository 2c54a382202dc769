"""AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with warm-up and decay of the learning rate, as optax transformations.

Weight decay and the learning-rate multiplier of a parameter are part of its metadata (`layers.param`).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from jaxseq import layers
from jaxseq.errors import UserError

# Each returns the learning rate as a fraction of its peak. done: the completed fraction of the steps after warm-up; tail: that of
# the last decay_fraction of the steps; f: the final learning rate as a fraction of the peak.
DECAYS: dict[str, Callable[[jax.Array, jax.Array, float], jax.Array]] = {
    "constant": lambda done, tail, f: jnp.ones_like(done),
    "linear": lambda done, tail, f: 1 - (1 - f) * done,
    "cosine": lambda done, tail, f: f + (1 - f) * 0.5 * (1 + jnp.cos(math.pi * done)),
    "wsd": lambda done, tail, f: 1 - (1 - f) * tail,
}


def check(train: ConfigDict) -> None:
    """Raises UserError for invalid optimiser settings in `config.train`."""
    if train.schedule not in DECAYS:
        raise UserError(f"train.schedule={train.schedule!r} is not a schedule; choose one of {', '.join(DECAYS)}")
    if train.steps < 1:
        raise UserError(f"train.steps={train.steps} leaves nothing to train; give a positive number")
    if not 0 <= train.warmup <= train.steps:
        raise UserError(
            f"train.warmup={train.warmup} is not between 0 and train.steps={train.steps}; lower train.warmup or raise train.steps"
        )
    span = decay_steps(train)
    if span < 1:
        raise UserError(f"train.decay_steps={span} is not positive; leave it empty for train.steps")
    if train.schedule == "wsd" and not 0 <= train.decay_fraction <= 1 - train.warmup / span:
        raise UserError(
            f"train.decay_fraction={train.decay_fraction} and train.warmup={train.warmup} do not both fit in "
            f"{span} steps; lower one of them"
        )
    if not train.lr > 0:
        raise UserError(f"train.lr={train.lr} is not positive; give the peak learning rate, for example 1e-3")
    for name, low, high in (("beta1", 0, 1), ("beta2", 0, 1), ("final_lr", 0, 1 + 1e-9)):
        if not low <= train[name] < high:
            raise UserError(f"train.{name}={train[name]} is outside [{low}, {high:.0f}); give a fraction")
    if not np.float32(train.eps) > 0:
        raise UserError(f"train.eps={train.eps} divides by zero where a gradient is 0; give a small positive number such as 1e-8")
    for name in ("weight_decay", "clip"):
        if not train[name] >= 0:
            raise UserError(f"train.{name}={train[name]} is negative; give 0 or more")


def decay_steps(train: ConfigDict) -> int:
    """The length of the schedule in steps; the learning rate is constant after it."""
    return train.steps if train.get("decay_steps") is None else train.decay_steps


def schedule(train: ConfigDict) -> Callable[[ArrayLike], jax.Array]:
    """Learning rate as a function of `count`, the number of previous updates: lr * min(1, (count + 1) / warmup) * decay.

    'linear' and 'cosine' decay from the end of warm-up to step `decay_steps`, 'wsd' (warm-up, stable, decay: Hu et al. 2024,
    arXiv:2404.06395) linearly over the last `decay_fraction` of all steps. Each ends at final_lr * lr.
    """
    decay = DECAYS[train.schedule]
    steps = decay_steps(train)
    tail_steps = max(train.decay_fraction * steps, 1.0)

    def rate(count: ArrayLike) -> jax.Array:
        step = jnp.asarray(count, jnp.float32) + 1
        warm = jnp.minimum(1.0, step / max(train.warmup, 1))
        done = jnp.clip((step - train.warmup) / max(steps - train.warmup, 1), 0.0, 1.0)
        tail = jnp.clip((step - (steps - tail_steps)) / tail_steps, 0.0, 1.0)
        return train.lr * warm * decay(done, tail, train.final_lr)

    return rate


def _is_box(leaf) -> bool:
    return isinstance(leaf, layers.Parameter)


def optimizer(train: ConfigDict, boxes: Any) -> optax.GradientTransformationExtraArgs:
    """Clip by global norm, Adam, decoupled weight decay, then the learning rate.

    boxes: the tree `model.boxed()["params"]`. The `decay` of a leaf says whether its parameter has weight decay, and its `lr`
    multiplies the learning rate (and so the decay, as with parameter groups in torch). clip = 0: no clipping.

    `update` takes two optional arguments: norm, the global norm of the gradients if known, and ok [] bool; False returns the
    state unchanged, and the update must then not be used.
    """
    decayed = jax.tree.map(lambda box: box.decay, boxes, is_leaf=_is_box)
    multiple = jax.tree.map(lambda box: box.lr, boxes, is_leaf=_is_box)

    def scale(updates, state, params=None):
        return jax.tree.map(lambda update, factor: update * factor, updates, multiple), state

    return optax.chain(
        _clip(train.clip) if train.clip else optax.identity(),
        _adam(train.beta1, train.beta2, train.eps),
        optax.add_decayed_weights(train.weight_decay, decayed),
        optax.GradientTransformation(lambda params: optax.EmptyState(), scale),
        _learning_rate(schedule(train)),
    )


def _clip(limit: float) -> optax.GradientTransformationExtraArgs:
    """g * min(1, limit / norm), as `optax.clip_by_global_norm`, but the norm can be passed in.

    XLA fuses the product with a scalar into the next operation; a `where` between two arrays would create a second set of
    gradients.
    """

    def update(updates, state, params=None, *, norm=None, **_):
        norm = optax.tree.norm(updates) if norm is None else norm
        factor = jnp.where(norm < limit, 1.0, limit / norm)
        return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _adam(beta1: float, beta2: float, eps: float) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_adam` (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1) with the same state; ok = False keeps the state.

    The barrier makes XLA compute the update from the new moments only, so that they can overwrite the old ones in place.
    Without it a step holds both.
    """

    def update(updates, state, params=None, *, ok=True, **_):
        count = jnp.where(ok, optax.safe_increment(state.count), state.count)
        mu = jax.tree.map(lambda g, m: jnp.where(ok, (1 - beta1) * g + beta1 * m, m), updates, state.mu)
        nu = jax.tree.map(lambda g, v: jnp.where(ok, (1 - beta2) * g**2 + beta2 * v, v), updates, state.nu)
        mu, nu = jax.lax.optimization_barrier((mu, nu))
        taken = jnp.maximum(count, 1)  # the count is 0 if the first step is bad: avoid 0 / 0
        first, second = 1 - beta1**taken, 1 - beta2**taken

        def direction(m, v):
            return m / first.astype(m.dtype) / (jnp.sqrt(v / second.astype(v.dtype)) + eps)

        return jax.tree.map(direction, mu, nu), state._replace(count=count, mu=mu, nu=nu)

    return optax.GradientTransformationExtraArgs(optax.scale_by_adam(beta1, beta2, eps).init, update)


def _learning_rate(rate: Callable[[ArrayLike], jax.Array]) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_learning_rate` with the same state, which is unchanged if ok is False."""

    def update(updates, state, params=None, *, ok=True, **_):
        count = jnp.where(ok, optax.safe_increment(state.count), state.count)
        factor = -rate(state.count)
        return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), updates), state._replace(count=count)

    return optax.GradientTransformationExtraArgs(optax.scale_by_schedule(rate).init, update)

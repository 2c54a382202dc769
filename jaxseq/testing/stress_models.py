"""Hard inputs for whole models: one repeated token, and weights far from their initial values.

The tolerance is that of ops (`jaxseq.testing.stress`): in float32 the error of each form against float64 is at most OWN_ERROR
times that of the recurrent form, plus FLOOR. Ops use their default chunk sizes, and T spans several chunks.
"""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxseq
from jaxseq.compat import enable_x64
from jaxseq.testing import compare
from jaxseq.testing.check import Check
from jaxseq.testing.networks import ModelSubject, moved, with_dtype
from jaxseq.testing.stress import FLOOR, LONG, OWN_ERROR, positions
from jaxseq.testing.subjects import quick, split_floats

CASES = ("repeated", "far")
LIMIT = {"float32": 1e-2, "bfloat16": 0.5}  # maximum error of the recurrent form; a case beyond it is rejected as meaningless
SMALL = 1e-3  # fraction of the largest gradient; errors of smaller gradients, which may be only rounding, are relative to it
COMPARED = 0.25  # of the tokens: the least share before a router's choice flips with which a case means something
SEEDS = 5


@functools.cache
def subject(name: str) -> ModelSubject:
    """The architecture as a narrow model with one block per segment, and enough learned positions for every T."""
    stack = re.sub(r"\d+\s*\*", "1*", jaxseq.config(name).model.stack)
    small = {"model.stack": stack, "model.width": 32, "model.vocab": 11, "model.max_positions": LONG + 2}
    found = ModelSubject(jaxseq.build(jaxseq.config(name, **small)))
    found.name = name
    return found


def far(params: Any, key: jax.Array) -> Any:
    """Parameters far from their initial values: each is scaled up or down and perturbed."""
    leaves, structure = jax.tree.flatten(params)
    factors = jnp.exp(jax.random.normal(key, (len(leaves),), leaves[0].dtype))
    return moved(jax.tree.unflatten(structure, [x * f for x, f in zip(leaves, factors, strict=True)]), key)


def inputs(subject: ModelSubject, case: str, time: int, batch: int, seed: int = 0) -> tuple[np.ndarray, Any]:
    """(tokens [B, T], float32 parameters) of a case, on the host."""

    def make(key):
        key_tokens, key_init, key_move = jax.random.split(key, 3)
        tokens = jax.random.randint(key_tokens, (batch, time), 0, subject.module.vocab, jnp.int32)
        params = subject.initial(subject.module, key_init, tokens[:, :2])
        if case == "far":
            return tokens, far(params, key_move)
        return jnp.broadcast_to(tokens[:, :1], tokens.shape), moved(params, key_move)

    return jax.device_get(jax.jit(make, compiler_options=quick())(jax.random.key(seed, impl="unsafe_rbg")))


@functools.cache
def _compiled(subject: ModelSubject, form: str, dtype: str, gradients: bool):
    """Compiled function for ((logits, canonical state), choices of routers, gradients of a weighted sum by the parameters)."""
    module = with_dtype(subject.module, jnp.dtype(dtype))

    def results(params, tokens, pos):
        (logits, state), sown = module.apply({"params": params}, tokens, pos=pos, form=form, mutable=["intermediates"])
        choices = [x for path, x in jax.tree_util.tree_leaves_with_path(sown) if jax.tree_util.DictKey("choice") in path]
        found = logits, subject.canonical(state.segments)
        leaves, _, _ = split_floats(found)
        waves = (jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape) for x in leaves)
        return sum(jnp.sum(x * w, dtype=logits.dtype) for x, w in zip(leaves, waves, strict=True)), (found, choices)

    def run(params, tokens, pos):
        if not gradients:
            return *results(params, tokens, pos)[1], {}
        slopes, (found, choices) = jax.grad(results, has_aux=True)(params, tokens, pos)
        return found, choices, slopes

    return jax.jit(run, compiler_options=quick())


def _run(subject: ModelSubject, form: str, dtype: str, tokens, params, gradients: bool):
    params = compare.cast(params, np.promote_types(dtype, np.float32) if dtype == "float64" else np.float32)
    found = jax.device_get(_compiled(subject, form, dtype, gradients)(params, tokens, positions(tokens.shape[1], len(tokens))))
    return compare.cast(found[0], np.float64), found[1], compare.cast(found[2], np.float64)


def _gradient_error(got: Any, wanted: Any) -> tuple[float, str]:
    """Like `compare.worst`, but errors of small gradients are relative to SMALL times the largest gradient."""
    largest = max((np.abs(x).max(initial=0.0) for x in jax.tree.leaves(wanted)), default=0.0)

    def error(path, got, wanted):
        scale = max(np.abs(wanted).max(initial=0.0), SMALL * largest)
        difference = np.abs(got - wanted).max(initial=0.0) / scale if scale else 0.0
        return (float(difference) if np.isfinite(difference) else np.inf), jax.tree_util.keystr(path)

    errors = jax.tree_util.tree_map_with_path(error, got, wanted)
    return max(jax.tree.leaves(errors, is_leaf=lambda x: isinstance(x, tuple)), default=(0.0, ""))


def _chosen(choices: list[np.ndarray], wanted: list[np.ndarray]) -> np.ndarray | None:
    """[B, T] bool: tokens before the first choice that differs from float64; None for a model without routers."""
    same = [np.all(np.sort(a) == np.sort(b), axis=(*range(a.ndim - 3), -1)) for a, b in zip(choices, wanted, strict=True)]
    return np.logical_and.accumulate(np.all(same, axis=0), axis=1) if same else None


def _errors(found, exact) -> list[tuple[float, str]] | None:
    """Errors of values and gradients. If rounding flips a router's choice, only of the logits before it; None if they are few."""
    same_BT = _chosen(found[1], exact[1])
    if same_BT is None or same_BT.all():
        return [compare.worst(found[0], exact[0]), _gradient_error(found[2], exact[2])]
    if found[2] or same_BT.mean() < COMPARED:
        return None
    logits = [np.where(same_BT[..., None], logits, 0) for logits in (found[0][0], exact[0][0])]
    return [compare.worst(*logits), (0.0, "")]


def hold(subject: ModelSubject, case: str, time: int, dtype: str = "float32", batch: int = 2, gradients: bool = True) -> float:
    """Check one case in all forms. Returns the largest error; raises LawBroken.

    A seed with which rounding flips a router's choice, or with which the model is chaotic, is replaced by the next one, up to
    SEEDS.
    """
    with enable_x64(True), jax.default_matmul_precision("highest"):
        for seed in range(SEEDS):
            tokens, params = inputs(subject, case, time, batch, seed)
            exact = _run(subject, "recurrent", "float64", tokens, params, gradients)
            errors = {form: _errors(_run(subject, form, dtype, tokens, params, gradients), exact) for form in subject.forms}
            if all(errors.values()) and not _chaotic(subject, errors, exact, tokens, params, dtype, gradients):
                return _judged(Check(subject, "stress"), errors, case, time, dtype)
    raise compare.LawBroken(
        f"{subject.name}: for all {SEEDS} seeds routers choose differently in {dtype} and float64, or the model is chaotic "
        f"({case})"
    )


def _chaotic(subject: ModelSubject, errors: dict, exact, tokens, params, dtype: str, gradients: bool) -> bool:
    """Whether in float64 a change of the parameters by the rounding of `dtype` changes the result beyond LIMIT, which happens
    with large recurrent weights (a GRU). Computed only if the recurrent form is beyond LIMIT."""
    limit = LIMIT[dtype]
    if all(own <= limit for own, _ in errors["recurrent"]):
        return False
    epsilon = compare.epsilon(jnp.dtype(dtype))
    waves = lambda x: np.cos(np.arange(x.size)).reshape(x.shape)  # noqa: E731
    near = jax.tree.map(lambda x: np.float64(x) * (1 + epsilon * waves(x)), params)
    found = _errors(_run(subject, "recurrent", "float64", tokens, near, gradients), exact)
    return found is None or any(not error <= limit for error, _ in found)


def _judged(check: Check, errors: dict, case: str, time: int, dtype: str) -> float:
    for kind, name in enumerate(("values", "gradients")):
        own, where = errors["recurrent"][kind]
        if not own <= LIMIT[dtype]:
            check.fail("recurrent", time, f"{case}: {name} and float64's differ by {own:.2e} in {where}: too hard", dtype)
        epsilon = compare.epsilon(jnp.dtype(dtype))
        allowed = OWN_ERROR * own + FLOOR if dtype == "float32" else compare.OWN_ERROR * max(own, epsilon)
        for form, found in errors.items():
            check.close(found[kind], form, time, f"{case}: {name} and float64's", allowed, dtype)
    return check.largest

"""One training step, jitted with donated state: gradients, optimiser, guard against non-finite numbers."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxseq
from jaxseq import layers, registry
from jaxseq.train import flops, optimizer
from jaxseq.train import mesh as meshes

BATCH_DTYPES = {"tokens": jnp.int32, "targets": jnp.int32, "pos": jnp.int32, "weights": jnp.float32}


class TrainState(NamedTuple):
    """What a step takes and returns. `ok` is False from the first non-finite step on; all else then stays as it was."""

    step: jax.Array  # [] int32, updates done
    ok: jax.Array  # [] bool
    params: Any
    optimizer: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Trainer:
    """Everything that is fixed before a run's first step. Make it with `prepare`."""

    config: Any
    model: nn.Module
    mesh: Mesh
    objective: Callable
    optimizer: optax.GradientTransformation
    schedule: Callable[[jax.Array], jax.Array]
    abstract: TrainState  # ShapeDtypeStructs with shardings

    @property
    def key(self) -> jax.Array:
        return jax.random.key(self.config.train.seed)

    @contextlib.contextmanager
    def scope(self):
        """The mesh, the logical rules and the matmul precision under which everything of this run is traced."""
        precision = self.config.train.precision
        with (
            jax.set_mesh(self.mesh),
            nn.logical_axis_rules(meshes.activation_rules(self.mesh, {"vocab": self.model.vocab})),
            jax.default_matmul_precision(None if precision == "default" else precision),
        ):
            yield

    def init(self, params: Any = None) -> TrainState:
        """The state before the first step, each device making only its part; `params` replaces the random weights."""

        def fresh() -> Any:
            return self.model.init(jax.random.fold_in(self.key, 0), _example_tokens())["params"]

        def start(params: Any) -> TrainState:
            return TrainState(jnp.zeros((), jnp.int32), jnp.ones((), bool), params, self.optimizer.init(params))

        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
        if params is None:  # outside of `scope`: two example tokens do not split over a mesh
            params = jax.jit(fresh, out_shardings=shardings.params)()
        return jax.jit(start, out_shardings=shardings)(params)

    def sums(self, params: Any, batch: dict[str, jax.Array], rng: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        """Gradient of the total loss, and the objective's sums with `total` among them, over one micro-batch."""

        def total(params):
            loss, sums = self.objective(self.model, params, batch, rng, form=self.config.train.form, train=True)
            return loss, sums | {"total": loss}

        grads, sums = jax.grad(total, has_aux=True)(params)
        return grads, sums

    def gradients(self, params: Any, batch: dict[str, jax.Array], step: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        """Mean gradient over the batch's tokens and the objective's means, micro-batch by micro-batch.

        The randomness of a step is a function of (train.seed, step, micro-batch) alone, so that a resumed run repeats
        it.
        """
        rng = jax.random.fold_in(jax.random.fold_in(self.key, 1), step)
        count = self.config.train.accumulate
        if count == 1:
            grads, sums = self.sums(params, batch, rng)
        else:
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), params)

            def body(carry, index_and_batch):
                index, micro = index_and_batch
                grads, sums = self.sums(params, micro, jax.random.fold_in(rng, index))
                return jax.tree.map(jnp.add, carry, grads), sums

            micro_batches = jax.tree.map(functools.partial(_split_rows, count=count, mesh=self.mesh), batch)
            grads, sums = jax.lax.scan(body, zeros, (jnp.arange(count), micro_batches))
            sums = jax.tree.map(lambda parts: parts.sum(0), sums)
        tokens = sums.pop("tokens")
        divisor = jnp.maximum(tokens, 1.0)
        grads = jax.tree.map(lambda leaf: leaf / divisor, grads)
        means = {name: value / divisor for name, value in sums.items()}
        return grads, {"loss": means.pop("total"), "tokens": tokens, **means}

    def step(self, state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update. Where anything is not finite, the state is returned as it came, with ok = False."""
        grads, metrics = self.gradients(state.params, batch, state.step)
        grad_norm = optax.tree.norm(grads)
        updates, moments = self.optimizer.update(grads, state.optimizer, state.params)
        update_norm = optax.tree.norm(updates)
        ok = state.ok & jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm) & jnp.isfinite(update_norm)
        params = optax.apply_updates(state.params, updates)
        new = (state.step + 1, params, moments)
        old = (state.step, state.params, state.optimizer)
        step, params, moments = jax.tree.map(functools.partial(jnp.where, ok), new, old)
        metrics |= {
            "grad_norm": grad_norm,
            "update_norm": update_norm,
            "learning_rate": self.schedule(state.step),
            "ok": ok,
        }
        return TrainState(step, ok, params, moments), metrics

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        shape = (self.config.train.batch, self.config.train.length)
        sharding = meshes.batch_sharding(self.mesh)
        return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for name, dtype in BATCH_DTYPES.items()}

    def compile(self) -> jax.stages.Compiled:
        """The step compiled ahead of time; its `input_shardings` say where every array lies. It donates the state."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
        jitted = jax.jit(self.step, donate_argnums=0, out_shardings=(shardings, None))
        with self.scope():
            return jitted.lower(self.abstract, self.abstract_batch()).compile()

    def flops_per_token(self) -> float:
        """Operations of the forward and backward pass, without recomputation, for each token of the batch.

        Counted on one micro-batch of a twin model with model.remat = 'none' (what recomputes does no more learning),
        so the utilisation is of model FLOPs in the sense of PaLM (Chowdhery et al. 2022, arXiv:2204.02311, appendix
        B).
        """
        config = self.config.copy_and_resolve_references()
        with config.unlocked():
            config.model.remat = "none"
        twin = dataclasses.replace(self, model=jaxseq.build(config))
        rows = self.config.train.batch // self.config.train.accumulate
        batch = {name: jax.ShapeDtypeStruct((rows, leaf.shape[1]), leaf.dtype) for name, leaf in self.abstract_batch().items()}
        with self.scope():
            operations = flops.count(twin.sums, self.abstract.params, batch, self.key)
        return operations / (rows * self.config.train.length)


def _example_tokens() -> jax.Array:
    return jnp.zeros((1, 2), jnp.int32)


def _split_rows(array: jax.Array, count: int, mesh: Mesh) -> jax.Array:
    """[B, T, ...] as [count, B/count, T, ...]; a micro-batch takes every count-th row: no row changes device."""
    array = array.reshape(array.shape[0] // count, count, *array.shape[1:]).swapaxes(0, 1)
    sharding = NamedSharding(mesh, PartitionSpec(None, *meshes.batch_sharding(mesh).spec))
    return jax.lax.with_sharding_constraint(array, sharding)


def prepare(config, devices: Sequence[jax.Device] | None = None) -> Trainer:
    """Checks `config` and lays the run out over `devices` (default: all). Touches no data and allocates no weights."""
    optimizer.check(config.train)
    objective = registry.load("train.objectives", config.train.objective).loss
    mesh = meshes.make_mesh(config.mesh, devices)
    meshes.check_batch(mesh, config.train.batch, config.train.length, config.train.accumulate)
    model = jaxseq.build(config)
    boxes = model.boxed()["params"]
    transform = optimizer.optimizer(config.train, boxes)
    params = abstract_params(boxes, mesh)
    whole = meshes.replicated(mesh)
    moments = optax.tree.map_params(
        transform,
        lambda leaf, param: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=param.sharding),
        jax.eval_shape(transform.init, params),
        params,
        transform_non_params=lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
    )
    abstract = TrainState(
        jax.ShapeDtypeStruct((), jnp.int32, sharding=whole),
        jax.ShapeDtypeStruct((), bool, sharding=whole),
        params,
        moments,
    )
    return Trainer(config, model, mesh, objective, transform, optimizer.schedule(config.train), abstract)


def abstract_params(boxes: Any, mesh: Mesh) -> Any:
    """The parameters as ShapeDtypeStructs with the shardings that their logical axes have on `mesh`.

    boxes: tree of `jaxseq.layers.Parameter` round ShapeDtypeStructs, as `model.boxed()["params"]` gives it.
    """

    def place(box: layers.Parameter) -> jax.ShapeDtypeStruct:
        spec = meshes.partition(box.names, box.value.shape, mesh)
        return jax.ShapeDtypeStruct(box.value.shape, box.value.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, boxes, is_leaf=lambda leaf: isinstance(leaf, layers.Parameter))

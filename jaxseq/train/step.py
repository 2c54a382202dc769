"""One training step, jitted with donated state: gradients, optimiser update, check for non-finite numbers."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

import jaxseq
from jaxseq import forms, layers, registry, weights
from jaxseq.models._network import unscanned
from jaxseq.train import flops, optimizer, structure
from jaxseq.train import mesh as meshes


class TrainState(NamedTuple):
    """The state that a step takes and returns. `ok` is False after a bad step, and the rest is then unchanged. Without train.skip
    all later steps are bad too; with it `ok` is about the last step only."""

    step: jax.Array  # [] int32, number of updates
    ok: jax.Array  # [] bool
    params: Any
    optimizer: Any
    collections: dict  # by name: other mutable collections of the model ("batch_stats")
    frozen: Any  # parameters that are not trained, with None in place of those that are; see `weights.parted`
    constants: dict  # by name: what else the objective reads, such as a teacher; see jaxseq.train.objectives

    @property
    def variables(self) -> dict:
        """What the objective's loss takes."""
        return {"params": weights.joined(self.params, self.frozen), **self.collections, **self.constants}


@dataclasses.dataclass(frozen=True, eq=False)
class Trainer:
    """Everything that is fixed before the first step of a run. Made by `prepare`."""

    config: Any
    model: nn.Module
    mesh: Mesh
    objective: ModuleType  # see jaxseq.train.objectives
    optimizer: optax.GradientTransformationExtraArgs
    schedule: Callable[[jax.Array], jax.Array]
    abstract: TrainState  # ShapeDtypeStructs with shardings
    debug: bool = False  # layers are traced one after another, not in a scan

    @property
    def key(self) -> jax.Array:
        return jax.random.key(self.config.train.seed)

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """The context for tracing this run: mesh, logical axis rules, matmul precision and, in debug mode, unrolled layers."""
        precision = self.config.train.precision
        with (
            jax.set_mesh(self.mesh),
            nn.logical_axis_rules(meshes.activation_rules(self.mesh, {"vocab": getattr(self.model, "vocab", 0)})),
            jax.default_matmul_precision(None if precision == "default" else precision),
            unscanned() if self.debug else contextlib.nullcontext(),
        ):
            yield

    def init(self, variables: dict | None = None) -> TrainState:
        """The state before the first step; each device makes only its shards. variables: used instead of random weights."""

        def start(variables: dict, constants: dict) -> TrainState:
            params, collections = _parted(variables)
            params, frozen = weights.parted(params)
            return TrainState(*_unstepped(), params, self.optimizer.init(params), collections, frozen, constants)

        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
        if variables is None:
            variables = self.adapted(self.fresh())
        return jax.jit(start, out_shardings=shardings)(variables, self.constants())

    def constants(self) -> dict:
        """The state's `constants`, read from the paths in the config."""
        wanted = self.abstract.constants
        return self.objective.restored(self.config, wanted) if wanted else {}

    def fresh(self) -> dict:
        """Random weights, all of them arrays, and initial values of the other collections."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_params(self.model.boxed(), self.mesh))
        make = lambda: self.model.init(jax.random.fold_in(self.key, 0), *self.model.example())  # noqa: E731
        return jax.jit(make, out_shardings=shardings)()  # outside of `scope`: the two example tokens cannot be sharded

    def adapted(self, variables: dict) -> dict:
        """The variables with the types that training adds (train.lora_rank, train.rounding), if any."""
        if not self.config.train.lora_rank and not self.config.train.rounding:
            return variables
        boxes = structure.boxed(self.config, self.model)["params"]
        key = jax.random.fold_in(self.key, 2)
        start = jax.jit(lambda params: structure.adapt(params, boxes, key))
        return variables | {"params": start(variables["params"])}

    @functools.cached_property
    def plan(self) -> forms.Plan:
        """How the ops of the step run, on the platform of the mesh."""
        return forms.plan(self.config.train.form, "train", self.mesh.devices.flat[0].platform)

    def sums(self, state: TrainState, batch: dict[str, jax.Array], rng: jax.Array) -> tuple[Any, dict[str, jax.Array], dict]:
        """For one micro-batch: gradient of the total loss; the objective's sums, with `total`; collections."""

        def total(params):
            variables = state._replace(params=params).variables
            loss, sums, changed = self.objective.loss(self.model, variables, batch, rng, form=self.plan, train=True)
            return loss, (sums | {"total": loss}, state.collections | changed)

        grads, (sums, after) = jax.grad(total, has_aux=True)(state.params)
        return grads, sums, after

    def gradients(self, state: TrainState, batch: dict[str, jax.Array]) -> tuple[Any, dict[str, jax.Array], dict]:
        """Over all micro-batches: mean gradient per token, the objective's means, and the collections.

        Random numbers depend only on (train.seed, step, micro-batch), so that a resumed run repeats them. Micro-batches update a
        collection one after another: batch norm uses the statistics of each micro-batch.
        """
        rng = jax.random.fold_in(jax.random.fold_in(self.key, 1), state.step)
        count = self.config.train.accumulate
        if count == 1:
            grads, sums, collections = self.sums(state, batch, rng)
        else:
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), state.params)

            def body(carry, index_and_batch):
                (index, micro), (before, collections) = index_and_batch, carry
                now = state._replace(collections=collections)
                grads, sums, collections = self.sums(now, micro, jax.random.fold_in(rng, index))
                return (jax.tree.map(jnp.add, before, grads), collections), sums

            micro_batches = jax.tree.map(functools.partial(_split_rows, count=count, mesh=self.mesh), batch)
            carry = zeros, state.collections
            (grads, collections), sums = jax.lax.scan(body, carry, (jnp.arange(count), micro_batches))
            sums = jax.tree.map(lambda parts: parts.sum(0), sums)
        tokens = sums.pop("tokens")
        divisor = jnp.maximum(tokens, 1.0)
        grads = jax.tree.map(lambda leaf: leaf / divisor, grads)
        means = {name: value / divisor for name, value in sums.items()}
        return grads, {"loss": means.pop("total"), "tokens": tokens, **means}, collections

    def step(self, state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update. If the loss or a gradient is not finite, or the gradient norm exceeds train.skip_norm, the returned state
        differs only in ok = False and, with train.skip, in the step count.

        Donated arrays are overwritten in place: besides the state, a step holds one set of gradients. If the gradients are finite
        and the update is not (the learning rate overflows), the moments are already updated, and only the parameters are kept.
        """
        grads, metrics, collections = self.gradients(state, batch)
        grad_norm = optax.tree.norm(grads)
        learning_rate = self.schedule(state.optimizer[-1].count)  # counts updates, not skipped steps
        ok = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm) & jnp.isfinite(learning_rate)
        if limit := self.config.train.skip_norm:
            ok &= grad_norm <= limit
        passes = self.config.train.skip > 0
        if not passes:
            ok &= state.ok
        updates, moments = self.optimizer.update(grads, state.optimizer, state.params, ok=ok, norm=grad_norm)
        update_norm = jnp.where(ok, optax.tree.norm(updates), 0.0)  # a bad step has no update
        ok &= jnp.isfinite(update_norm)
        new = (state.step + 1, optax.apply_updates(state.params, updates), collections)
        old = (state.step + passes, state.params, state.collections)
        step, params, collections = jax.tree.map(functools.partial(jnp.where, ok), new, old)
        metrics |= {"grad_norm": grad_norm, "update_norm": update_norm, "learning_rate": learning_rate, "ok": ok}
        return TrainState(step, ok, params, moments, collections, state.frozen, state.constants), metrics

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The objective's batch over all processes, with shardings."""
        shapes = self.objective.shapes(self.config)
        shardings = {name: meshes.batch_sharding(self.mesh, leaf.shape) for name, leaf in shapes.items()}
        return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[name]) for name, x in shapes.items()}

    @functools.cached_property
    def traced(self) -> jax.stages.Traced:
        """The traced step, which is compiled and whose FLOPs are counted. It donates the state."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
        jitted = jax.jit(self.step, donate_argnums=0, out_shardings=(shardings, None))
        with self.scope():
            return jitted.trace(self.abstract, self.abstract_batch())

    def compile(self) -> jax.stages.Compiled:
        """The step, compiled ahead of time; its `input_shardings` are those of every array."""
        with self.scope():
            return self.traced.lower().compile()

    def flops_per_token(self) -> float:
        """Model FLOPs per token: three times the forward pass in the chunkwise form, independent of train.form and model.remat.
        The forward pass of a teacher counts once, because it has no backward pass.

        The backward pass of a matrix product is two products. Recomputation and the extra work of other forms are not counted:
        model FLOPs as in PaLM (Chowdhery et al. 2022, arXiv:2204.02311, appendix B). Masked attention scores are counted.
        """

        def forward(variables, batch):
            return self.objective.loss(self.model, variables, batch, self.key, form="chunkwise", train=True)[0]

        rows = self.config.train.batch // self.config.train.accumulate
        batch = {name: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype) for name, leaf in self.abstract_batch().items()}
        with self.scope():
            whole = trained = flops.count(forward, self.abstract.variables, batch)
            if self.abstract.constants:
                trained = flops.count(forward, self.abstract._replace(constants={}).variables, batch)
        return (whole + 2 * trained) * self.config.train.accumulate / self.objective.tokens(self.config)

    def hardware_flops_per_token(self) -> float:
        """FLOPs per token of the whole step as executed: in train.form, with recomputation and the optimiser's update."""
        return flops.count_jaxpr(self.traced.jaxpr) / self.objective.tokens(self.config)


def _unstepped() -> tuple[jax.Array, jax.Array]:
    """`step` and `ok` of the state before the first step."""
    return jnp.zeros((), jnp.int32), jnp.ones((), bool)


def _parted(variables: dict) -> tuple[Any, dict]:
    """(params, the other collections)."""
    return variables["params"], {name: value for name, value in variables.items() if name != "params"}


def _split_rows(array: jax.Array, count: int, mesh: Mesh) -> jax.Array:
    """[B, T, ...] as [count, B/count, T, ...]. A micro-batch takes every count-th row, so that rows stay on their devices."""
    spec = meshes.batch_sharding(mesh, array.shape).spec
    array = array.reshape(array.shape[0] // count, count, *array.shape[1:]).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, PartitionSpec(None, *spec)))


def prepare(config: ConfigDict, devices: Sequence[meshes.Device] | None = None, debug: bool = False) -> Trainer:
    """Checks `config` and plans shardings over `devices` (default: all). Reads no data and allocates no weights.

    debug: see Trainer.
    """
    optimizer.check(config.train)
    objective = registry.load("train.objectives", config.train.objective)
    mesh = meshes.make_mesh(config.mesh, devices)
    meshes.check_batch(mesh, config.train.batch, config.train.length, config.train.accumulate)
    model = jaxseq.build(config)
    if (pos := objective.shapes(config).get("pos")) is not None:
        model.check_length(pos.shape[1])
    boxes, others = _parted(structure.boxed(config, model))
    boxes, frozen = weights.parted(boxes)
    transform = optimizer.optimizer(config.train, boxes)
    params = abstract_params(boxes, mesh)
    on_all = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=meshes.replicated(mesh))  # noqa: E731
    moments = optax.tree.map_params(
        transform,
        lambda leaf, param: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=param.sharding),
        jax.eval_shape(transform.init, params),
        params,
        transform_non_params=on_all,
    )
    step, ok = jax.tree.map(on_all, jax.eval_shape(_unstepped))
    constants = getattr(objective, "constants", lambda config, mesh: {})(config, mesh)
    collections, frozen = abstract_params(others, mesh), abstract_params(frozen, mesh)
    abstract = TrainState(step, ok, params, moments, collections, frozen, constants)
    return Trainer(config, model, mesh, objective, transform, optimizer.schedule(config.train), abstract, debug)


def abstract_params(boxes: Any, mesh: Mesh) -> Any:
    """The parameters as ShapeDtypeStructs, with the shardings that their logical axes have on `mesh`.

    boxes: tree of `jaxseq.layers.Parameter` of ShapeDtypeStructs, as in `model.boxed()["params"]`. A plain ShapeDtypeStruct (a
    leaf of a collection without logical axes) is replicated.
    """

    def place(box: layers.Parameter | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        if not isinstance(box, layers.Parameter):
            return jax.ShapeDtypeStruct(box.shape, box.dtype, sharding=meshes.replicated(mesh))
        spec = meshes.partition(box.names, box.value.shape, mesh)
        return jax.ShapeDtypeStruct(box.value.shape, box.value.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, boxes, is_leaf=lambda leaf: isinstance(leaf, layers.Parameter))

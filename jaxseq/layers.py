"""Linear maps, norms, rotary positions and the base class of all mixers; the only module that attaches partitioning metadata.

Every parameter is created by `param`, which records its metadata: the logical name of each axis (mapped to mesh axes in
train/mesh.py), whether weight decay applies, its learning-rate multiplier, and which of its axes are contracted with an
activation, if any. Only parameters with contracted axes may be something other than an array, see `weights`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from flax.linen.spmd import with_logical_constraint

from jaxseq import weights
from jaxseq.call import Call, Mixed
from jaxseq.ops import _time

Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]


class Parameter(nn.LogicallyPartitioned):
    """A value with the logical names of its axes (`names`) and its optimiser group (weight decay, learning-rate multiplier).

    contracts: the axes that are contracted with an activation, counted from the end.
    """

    decay: bool = struct.field(default=True, pytree_node=False)
    lr: float = struct.field(default=1.0, pytree_node=False)
    contracts: tuple[int, ...] = struct.field(default=(), pytree_node=False)


def param(
    module: nn.Module, name: str, init: Initializer, shape: tuple[int, ...], axes: tuple[str | None, ...],
    decay: bool = True, lr: float = 1.0, contracts: tuple[int, ...] = (),
) -> Any:  # fmt: skip
    """Create a parameter of `module` in float32 (float64 if the module computes in float64). `axes` names each axis of `shape`.

    contracts: axes that are contracted with an activation, counted from the end. Such a parameter may be a `weights.Weight`, so
    use it only through `weights.contract`, `weights.dense` or `lookup`.

    Raises ValueError if `axes` and `shape` differ in length.
    """
    if len(shape) != len(axes):
        raise ValueError(f"{name}: shape {shape} and axes {axes} differ in length")
    if contracts and weights.is_weight(own := module.get_variable("params", name)):
        return own  # Linen would compare its parts with the shape of the array
    dtype = jnp.promote_types(module.dtype, jnp.float32)
    boxed = lambda key: Parameter(init(key, shape, dtype), axes, decay=decay, lr=lr, contracts=contracts)  # noqa: E731
    return module.param(name, boxed, unbox=True)


def lookup(table_VD: Any, ids: jax.Array) -> jax.Array:
    """Rows of a table sharded by ("vocab", "embed")."""
    if weights.is_weight(table_VD):
        return table_VD.rows(ids)
    # Gather the table along embed first. If it stayed sharded, the lookup would gather rows sharded over the same devices.
    return constrain(table_VD, ("vocab", None))[ids]


def metadata(boxed: Any) -> Any:
    """The tree with each value replaced by its ShapeDtypeStruct; leaves stay boxed in their `Parameter` if they were."""

    def strip(leaf: Any) -> Any:
        value = leaf.value if isinstance(leaf, Parameter) else leaf
        shape = jax.ShapeDtypeStruct(value.shape, value.dtype)
        return leaf.replace(value=shape) if isinstance(leaf, Parameter) else shape

    return jax.tree.map(strip, boxed, is_leaf=lambda leaf: isinstance(leaf, Parameter))


def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """Constrain x to the sharding that the mesh's rules define for these logical axes; a no-op without a mesh."""
    return with_logical_constraint(x, axes)


def fan_in(scale: float = 1.0) -> Initializer:
    """Normal with standard deviation scale / sqrt(number of inputs); the last axis holds the outputs."""
    return lambda key, shape, dtype: scale * math.prod(shape[:-1]) ** -0.5 * jax.random.normal(key, shape, dtype)


def normal(std: float) -> Initializer:
    """Normal with standard deviation `std`."""
    return jax.nn.initializers.normal(std)


def uniform(bound: float) -> Initializer:
    """U(-bound, bound)."""
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def scaled_uniform(scale: float = 1.0) -> Initializer:
    """U(-b, b), b = scale / sqrt(number of inputs); the last axis holds the outputs. torch's linear layers have scale 1."""
    return lambda key, shape, dtype: uniform(scale * math.prod(shape[:-1]) ** -0.5)(key, shape, dtype)


def _orthogonal(std: float) -> Initializer:
    return lambda key, shape, dtype: jax.nn.initializers.orthogonal(std * max(shape) ** 0.5)(key, shape, dtype)


FORMS = {"normal": normal, "uniform": lambda std: uniform(3**0.5 * std), "orthogonal": _orthogonal}


def of_std(form: str, std: float) -> Initializer:
    """Initialiser of a matrix with the standard deviation `std`; `form` is the distribution, a key of FORMS."""
    return FORMS[form](std)


def xavier_uniform(gain: float = 1.0) -> Initializer:
    """Uniform with variance gain^2 * 2 / (inputs + outputs) (Glorot & Bengio 2010); the gain is defined as in torch."""
    return jax.nn.initializers.variance_scaling(gain**2, "fan_avg", "uniform")


def on_matrix(init: Initializer, inputs: int) -> Initializer:
    """Initialise a kernel of several axes as a matrix: its first `inputs` axes are merged into one, and so are the others."""

    def initialise(key, shape, dtype):
        matrix = (math.prod(shape[:inputs]), math.prod(shape[inputs:]))
        return init(key, matrix, dtype).reshape(shape)

    return initialise


class Linear(nn.Module):
    """y = x W (+ b), contracting the last `inputs` axes of x with the first of W.

    `axes` names the axes of the kernel, inputs first; the bias has the names of the outputs and no weight decay. Products are
    computed in `dtype`; parameters are float32.
    """

    features: tuple[int, ...]
    axes: tuple[str | None, ...]
    inputs: int = 1
    bias: bool = False
    init_fn: Initializer | None = None  # for the kernel as a matrix; default: fan_in()
    dtype: Any = jnp.float32
    bias_init: Initializer = jax.nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*x.shape[x.ndim - self.inputs :], *self.features)
        init = on_matrix(self.init_fn or fan_in(), self.inputs)
        contracts = tuple(range(-len(shape), self.inputs - len(shape)))
        kernel = param(self, "kernel", init, shape, self.axes, contracts=contracts)
        x = x.astype(self.dtype)
        self._calibrate(x)
        y = weights.contract(x, kernel, self.inputs)
        if self.bias:
            y += param(self, "bias", self.bias_init, self.features, self.axes[self.inputs :], decay=False).astype(self.dtype)
        return y

    def _calibrate(self, x: jax.Array) -> None:
        """Adds x^T x, [I, I] over all I inputs, to the collection "calibration" if that is mutable; see jaxseq.compress."""
        if self.is_mutable_collection("calibration") and not self.is_initializing():
            x_NI = x.reshape(-1, math.prod(x.shape[x.ndim - self.inputs :])).astype(jnp.float32)
            self.sow("calibration", "gram", x_NI.T @ x_NI, reduce_fn=jnp.add, init_fn=lambda: 0.0)


def recomputed(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with rematerialisation: the backward pass stores only its arguments. For elementwise functions and norms, where
    recomputing takes less time and memory than storing and reading intermediate results."""
    return jax.checkpoint(function, prevent_cse=False)  # in a scan over layers nothing can be merged with the forward pass


def rms_normalize(x: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) over the last axis, in the accumulation dtype (Zhang & Sennrich 2019, arXiv:1910.07467)."""
    y = x.astype(_time.accumulation_dtype(x))
    return y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)


class RMSNorm(nn.Module):
    """scale * rms_normalize(x); the scale is initially 1 and has no weight decay."""

    eps: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale_D = param(self, "scale", jax.nn.initializers.ones, x.shape[-1:], ("norm",), decay=False)
        return recomputed(lambda x, scale_D: (rms_normalize(x, self.eps) * scale_D).astype(self.dtype))(x, scale_D)


class RMSNormOffset(nn.Module):
    """(1 + scale) * rms_normalize(x), the scale initially 0 (Gemma)."""

    eps: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale_D = param(self, "scale", jax.nn.initializers.zeros, x.shape[-1:], ("norm",), decay=False)
        return recomputed(lambda x, scale_D: (rms_normalize(x, self.eps) * (1 + scale_D)).astype(self.dtype))(x, scale_D)


class LayerNorm(nn.Module):
    """scale * (x - mean) / sqrt(variance + eps) + bias (Ba et al. 2016, arXiv:1607.06450); neither has weight decay."""

    eps: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale_D = param(self, "scale", jax.nn.initializers.ones, x.shape[-1:], ("norm",), decay=False)
        bias_D = param(self, "bias", jax.nn.initializers.zeros, x.shape[-1:], ("norm",), decay=False)

        def normed(x, scale_D, bias_D):
            y = x.astype(_time.accumulation_dtype(x))
            y -= jnp.mean(y, axis=-1, keepdims=True)
            y *= jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
            return (y * scale_D + bias_D).astype(self.dtype)

        return recomputed(normed)(x, scale_D, bias_D)


class RMSNormOuter(nn.Module):
    """scale * x / (sqrt(mean(x^2)) + eps): RMSNorm with eps outside the square root (StripedHyena)."""

    eps: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale_D = param(self, "scale", jax.nn.initializers.ones, x.shape[-1:], ("norm",), decay=False)
        y = x.astype(_time.accumulation_dtype(x))
        square = jnp.mean(jnp.square(y), axis=-1, keepdims=True)
        root = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)  # the gradient at 0 is 0, not NaN
        return (y / (root + self.eps) * scale_D).astype(self.dtype)


NORMS = {"rmsnorm": RMSNorm, "rmsnorm_offset": RMSNormOffset, "rmsnorm_outer": RMSNormOuter, "layernorm": LayerNorm}


def rotate(x_BTHK: jax.Array, pos_BT: jax.Array, frequency_F: jax.Array, interleaved: bool = False) -> jax.Array:
    """Rotate pairs of channels by pos * frequency (Su et al. 2021, arXiv:2104.09864, eq. 34).

    Pairs are (i, i + F) for F frequencies, or (2i, 2i + 1) if `interleaved`; channels from 2F on are unchanged. Angles are in
    the accumulation dtype; the result has the dtype of x.
    """
    dtype = _time.accumulation_dtype(x_BTHK)
    angle_BT1F = (pos_BT[..., None].astype(dtype) * frequency_F.astype(dtype))[:, :, None]
    cos, sin = jnp.cos(angle_BT1F), jnp.sin(angle_BT1F)
    half = frequency_F.shape[0]
    turned, rest = x_BTHK[..., : 2 * half].astype(dtype), x_BTHK[..., 2 * half :]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        y = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(turned.shape)
    else:
        a, b = turned[..., :half], turned[..., half:]
        y = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return jnp.concatenate([y.astype(x_BTHK.dtype), rest], axis=-1)


class Units(NamedTuple):
    """Parts of a mixer that can be removed without changing the others.

    axes: names of the parameters' axes over these units. In "heads" axes the elements of a unit are consecutive; in "mlp" axes
    every `count`-th element belongs to the same unit. fields: the mixer's fields with n units instead of `count`.
    """

    count: int
    axes: tuple[str, ...]
    fields: Callable[[int], dict[str, int]]


class Mixer(nn.Module):
    """Base of all mixers: `y, state, streams = mixer(x, state, call)`. A subclass must define `mix`.

    The fields of a subclass are its hyper-parameters, set by `config.model.<label>`. The fields below are set by the model.
    """

    width: int = 0  # D
    layers: int = 1  # blocks in the whole network, for depth-scaled initialisation
    additions: int | None = None  # residual additions in the whole network; default: two per block
    dtype: Any = jnp.float32  # of the computation; parameters and states are at least float32
    # (n, m, count) if the class is `numbered`: this is mixer number n + m * layer of the `count` mixers with a state
    number: tuple[int, int, int] | None = None

    preserve_adopted_names: ClassVar[bool] = True  # the parameter path is the label in the stack
    # meaning of the field `hidden` when a model is fitted to a parameter count: "channels" scale with the width and may be
    # adjusted a little, "recurrence" scales with the width, "other" is not changed
    hidden_role: ClassVar[str] = "channels"
    numbered: ClassVar[bool] = False  # the model sets `number`
    in_place: ClassVar[bool] = False  # for T = 1 in the recurrent form `mix` takes and returns a `Layered` state

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> Any:
        """The empty state; () for a mixer without memory. `context`: the number of tokens that full attention must hold."""
        return ()

    @nn.nowrap
    def boxed(self, form: Any = "recurrent") -> dict:
        """{"params": tree of Parameter boxes with ShapeDtypeStruct values}; traced in `form`, nothing is computed."""

        def init():
            x_BTD, pos_BT = jnp.zeros((1, 2, self.width), self.dtype), jnp.arange(2, dtype=jnp.int32)[None]
            return self.init(jax.random.key(0), x_BTD, None, Call.of(pos_BT, form), mutable="params")

        return metadata(jax.eval_shape(init))

    @nn.nowrap
    def remaining_capacity(self, state: Any) -> jax.Array | None:
        """Number of tokens [B] that each row of the state can still take without overwriting visible ones; None: no limit."""
        return None

    @nn.nowrap
    def place(self, call: Call) -> tuple[Any, int]:
        """(number of this mixer, how many there are) among the network's mixers with a state; for a class with `numbered`."""
        first, step, count = self.number or (0, 1, self.layers)
        return first + step * call.layer, count

    @nn.nowrap
    def units(self, kind: str) -> "Units | str":
        """The units of `kind`, "heads" or "channels", of this mixer; or a sentence that says why none can be removed."""
        return f"{type(self).__name__} has no {kind} that can be removed one by one"

    def __call__(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        """The output, zero at padding, the next state, and values for later layers. `state=None`: the empty state."""
        (x_BTD,) = _time.clean(call.pos_BT, x_BTD)
        mixed = self.mix(x_BTD, state, dataclasses.replace(call, label=self.name))
        return mixed._replace(y_BTD=_time.select(_time.valid(call.pos_BT), mixed.y_BTD))

    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        """The output, the next state, and values for later layers, defined by each subclass. x_BTD is zero at padding."""
        raise NotImplementedError

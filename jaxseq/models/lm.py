"""The causal language model: embedding, scanned segments of blocks, final norm, head."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict, config_dict

from jaxseq import compat, forms, registry, weights
from jaxseq.call import Call
from jaxseq.errors import UserError
from jaxseq.layers import FORMS, NORMS, Linear, Mixer, constrain, lookup, of_std, param
from jaxseq.models import _positions, _repeats, _stack
from jaxseq.models._network import BYTE_VOCAB, DTYPES, REMAT, Network, check, scan
from jaxseq.ops import _time
from jaxseq.ops._layered import Layered


class LMState(NamedTuple):
    """State of a language model: the states of all mixers and the next position [B]."""

    segments: tuple  # one entry per segment: a tuple of the states of its mixers, each leaf [repeats, B, ...]
    next_pos_B: jax.Array  # int32: position of the next token in its document


def _gather(x: jax.Array, order_BT: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, _time.expand(order_BT, x), axis=1)


def _in_place(block: nn.Module, call: Call) -> dict[int, bool]:
    """{index of each mixer whose states are updated in place: whether the mixer does that itself, with a `Layered`}.

    A scan holds states twice if they are its inputs and outputs. These states are part of its carry instead. Not in training,
    where the backward pass would store the carry of every layer.
    """
    time = call.pos_BT.shape[1]
    if call.train or not time:
        return {}
    chosen = {j: forms.of_label(call.plan.form, mixer.name) for j, mixer in enumerate(block.mixers) if mixer.in_place}
    return {j: time == 1 and own in ("recurrent", "auto") for j, own in chosen.items()}


def _layer(stack: Any, i: jax.Array, needed: jax.Array) -> Any:
    """The state of layer i, zeros (attention's empty state) if it is not needed.

    The condition also keeps XLA from reading the layer from the stack several times, in which case it would copy the stack before
    writing.
    """
    own = lambda: jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), stack)  # noqa: E731
    return jax.lax.cond(needed, own, lambda: jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), stack))


def _with_layer(stack: Any, i: jax.Array, own: Any) -> Any:
    return jax.tree.map(lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, i, 0), stack, own)


class LM(Network):
    """logits, state = model.apply({"params": params}, tokens, state=None, pos=None, form="chunkwise", train=False)

    tokens [B, T] int32 -> logits [B, T, V] in the accumulation dtype, and the LMState after the tokens. In place of tokens,
    vectors [B, T, D] can be given, such as those of an image: they replace rows of the embedding table. pos [B, T]: see
    `jaxseq.ops`, but here padding (-1) may be anywhere. Without `pos` the sequence continues at `next_pos_B` of the state, or at
    0. `form`: see `jaxseq.forms`; a name, a choice per mixer label, or a Plan. Outputs at padding are zero.

    Outside jit, raises UserError if a state of full attention has too few slots left for the tokens. Inside jit this cannot be
    checked; the caller must ensure it.
    """

    vocab: int
    width: int
    repeats: tuple[int, ...]  # number of times the block of each segment is repeated
    blocks: tuple[nn.Module, ...]  # one per segment
    distinct: tuple[int, ...] | None = None  # copies of each segment's block with weights of their own, see `scan`; None: all
    repeat_scale: bool = False  # blocks that share weights have a scale in each repetition, see `_repeats`
    repeat_rank: int = 0  # … and a change of this rank of each matrix; 0: none
    tied: bool = True  # the head is the embedding's transpose
    norm: str = "rmsnorm"
    norm_eps: float = 1e-5
    embedding_std: float = 0.02  # of its initial values, and of those of learned positions
    embedding_init: str = "normal"  # or uniform, orthogonal
    embedding_scale: float = 1.0  # of the embedding's output (Vaswani et al. 2017, §3.4: sqrt(width))
    embedding_norm: bool = False  # a norm before the first block (RWKV)
    positions: str = "none"  # added to the embedding: none, learned (GPT-2), sinusoidal (Vaswani et al. 2017)
    max_positions: int = 2048  # of the learned table
    position_offset: int = 0  # row of the learned table for position 0 (OPT: 2)
    embedding_width: int = 0  # of the embedding and the head, with linear maps to the width and back; 0: the width (OPT-350m)
    last_norm: bool = True  # a norm after the last block
    head_scale: float = 1.0  # initial standard deviation of the untied head, times sqrt(width)
    head_init: str = "normal"  # or uniform, orthogonal
    logit_scale: float = 1.0  # of the logits, before they are capped
    logit_cap: float = 0.0  # logits are cap tanh(logits / cap) (Gemma 2); 0: none
    logit_penalty: float = 0.0  # RWKV's L2Wrap: adds logit_penalty / 2 * mean over positions of (largest logit)^2 to the loss
    remat: str = "none"
    dtype: Any = jnp.float32  # of the computation
    residual_dtype: Any = jnp.float32  # of the residual stream

    @property
    def capacity(self) -> int | None:
        return self.max_positions if self.positions == "learned" else None

    @property
    def layers(self) -> int:
        return sum(self.repeats)

    @nn.nowrap
    def example(self) -> tuple[jax.Array]:
        """Example inputs for `init`."""
        return (jnp.zeros((1, 2), jnp.int32),)

    @nn.nowrap
    def init_state(self, batch: int, context: int | None = None) -> LMState:
        """The empty state. `context`: the number of tokens that full attention must hold."""

        def stacked(repeats, block):
            state = block.init_state(batch, context)
            return jax.tree.map(lambda x: jnp.broadcast_to(x, (repeats, *x.shape)), state)

        segments = tuple(stacked(n, block) for n, block in zip(self.repeats, self.blocks, strict=True))
        return LMState(segments, jnp.zeros((batch,), jnp.int32))

    @nn.nowrap
    def remaining_capacity(self, state: LMState) -> jax.Array | None:
        """Number of tokens [B] that each row can still take; None: no limit."""
        capacities = [
            jnp.min(capacity, axis=0)
            for block, block_state in zip(self.blocks, state.segments, strict=True)
            for mixer, mixer_state in zip(block.mixers, block_state, strict=True)
            if (capacity := mixer.remaining_capacity(mixer_state)) is not None
        ]
        if self.positions == "learned":
            capacities.append(self.max_positions - state.next_pos_B)
        return jnp.min(jnp.stack(capacities), axis=0) if capacities else None

    def setup(self) -> None:
        shape, axes = (self.vocab, self.embedding_width or self.width), ("vocab", "embed")
        init = of_std(self.embedding_init, self.embedding_std)
        self.embedding_VD = param(self, "embedding", init, shape, axes, contracts=(-1,))
        rows = self.max_positions + self.position_offset
        self.position_SD = _positions.table(self, self.positions, rows, self.width, init)
        if self.embedding_width:
            self.project_in = Linear((self.width,), (None, "embed"), dtype=self.dtype)
            self.project_out = Linear((self.embedding_width,), ("embed", None), dtype=self.dtype)
        if not self.tied:
            init = of_std(self.head_init, self.head_scale * self.width**-0.5)
            self.head_VD = param(self, "head", init, shape, axes, contracts=(-1,))
        self.changes = [self._changes(n) for n in range(len(self.blocks))]
        if self.embedding_norm:
            self.first_norm = NORMS[self.norm](self.norm_eps, self.dtype)
        if self.last_norm:
            self.final_norm = NORMS[self.norm](self.norm_eps, self.dtype)

    @nn.nowrap
    def _changes(self, n: int) -> nn.Module | None:
        """The parameters of each repetition of the blocks of segment n; None if they share no weights."""
        if not (self.repeat_rank or self.repeat_scale) or not self.distinct or self.distinct[n] == self.repeats[n]:
            return None
        own = self.repeats[n], self.width, self.repeat_rank, self.repeat_scale, self.dtype
        return _repeats.Changes(self.blocks[n], *own)

    def __call__(
        self, tokens: jax.Array, state: LMState | None = None, pos: jax.Array | None = None, form: Any = "chunkwise",
        train: bool = False,
    ) -> tuple[jax.Array, LMState]:  # fmt: skip
        x_BTD, state = self.hidden(tokens, state, pos, form, train)
        logits_BTV = self.logits(x_BTD)
        if self.logit_penalty:
            self.sow("losses", "logit_penalty", self.penalty(logits_BTV))
        return logits_BTV, state

    @nn.nowrap
    def penalty(self, logits_BTV: jax.Array) -> jax.Array:
        """RWKV's L2Wrap, see `logit_penalty`."""
        return 0.5 * self.logit_penalty * jnp.mean(jnp.square(jnp.max(logits_BTV, axis=-1)))

    def embed(self, tokens_BT: jax.Array, pos_BT: jax.Array) -> jax.Array:
        """x_BTD before the first block."""
        x_BTD = (tokens_BT if tokens_BT.ndim == 3 else lookup(self.embedding_VD, tokens_BT)) * self.embedding_scale
        x_BTD = self.project_in(x_BTD) if self.embedding_width else x_BTD
        x_BTD = _positions.add(x_BTD, pos_BT + self.position_offset, self.positions, self.position_SD)
        x_BTD = self.first_norm(x_BTD) if self.embedding_norm else x_BTD
        return constrain(x_BTD.astype(self.residual_dtype), ("batch", "time", None))

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, V] from the hidden activations."""
        head_VD = weights.dense(self.embedding_VD if self.tied else self.head_VD, self.dtype)
        acc = _time.accumulation_dtype(x_BTD)
        x_BTD = self.project_out(x_BTD) if self.embedding_width else x_BTD
        logits_BTV = compat.einsum("btd,vd->btv", x_BTD, head_VD, dtype=acc)
        if self.logit_scale != 1:
            logits_BTV = self.logit_scale * logits_BTV
        if self.logit_cap:
            logits_BTV = self.logit_cap * jnp.tanh(logits_BTV / self.logit_cap)
        return constrain(logits_BTV, ("batch", "time", "vocab"))

    def hidden(
        self, tokens: jax.Array, state: LMState | None = None, pos: jax.Array | None = None, form: Any = "chunkwise",
        train: bool = False,
    ) -> tuple[jax.Array, LMState]:  # fmt: skip
        """x_BTD after the final norm (zero under padding), and the next state."""
        chex.assert_rank(tokens, {2, 3})
        next_pos_B = jnp.zeros(tokens.shape[:1], jnp.int32) if state is None else state.next_pos_B
        self._check_capacity(state, tokens, pos)
        if pos is None:
            pos_BT = next_pos_B[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)
            return self._run(tokens, state, Call.of(pos_BT, form, train=train))
        chex.assert_equal_shape_prefix([tokens, pos], 2)
        order_BT = jnp.argsort(~_time.valid(pos), axis=1, stable=True)  # padding to the end
        x_BTD, state = self._run(_gather(tokens, order_BT), state, Call.of(_gather(pos, order_BT), form, train=train))
        return _gather(x_BTD, jnp.argsort(order_BT, axis=1)), state

    def _run(self, tokens_BT, state, call):
        pos_BT = call.pos_BT
        valid_BT = _time.valid(pos_BT)
        x_BTD = self.embed(_time.select(valid_BT, tokens_BT), pos_BT)
        after = []
        for n, (repeats, block) in enumerate(zip(self.repeats, self.blocks, strict=True)):
            before = None if state is None else state.segments[n]
            distinct = self.distinct[n] if self.distinct else None
            own = self.changes[n]() if self.changes[n] else _repeats.Own()
            x_BTD, states, streams = self._segment(block, repeats, distinct, own, x_BTD, before, call)
            after.append(states)
            call = call.replace(layer=call.layer + repeats, streams=call.streams | streams)
        x_BTD = _time.select(valid_BT, self.final_norm(x_BTD) if self.last_norm else x_BTD.astype(self.dtype))
        next_pos_B = jnp.zeros(tokens_BT.shape[:1], jnp.int32) if state is None else state.next_pos_B
        if tokens_BT.shape[1]:
            last_B1 = jnp.maximum(jnp.sum(valid_BT, axis=1, keepdims=True) - 1, 0)
            last_pos_B = jnp.take_along_axis(pos_BT, last_B1, axis=1)[:, 0]
            next_pos_B = jnp.where(valid_BT[:, 0], last_pos_B + 1, next_pos_B)
        return x_BTD, LMState(tuple(after), next_pos_B)

    def _segment(self, block, repeats, distinct, own, x_BTD, before, call):
        """(x_BTD, states with a leading layer axis, streams) after `repeats` copies of a block, by a scan. own: an `Own`."""
        in_place = {} if before is None else _in_place(block, call)
        needed = jnp.any(call.pos_BT[:, :1] != _time.START)  # in some row a document continues, or there is no token

        def layer(block, carry, xs):
            (x_BTD, stacks), (before, i, own) = carry, xs
            given = {j: Layered(stacks[j], i) if itself else _layer(stacks[j], i, needed) for j, itself in in_place.items()}
            before = before and tuple(given.get(j, s) for j, s in enumerate(before))
            x_BTD, states, streams = _repeats.run(block, own, x_BTD, before, call.replace(layer=call.layer + i))
            stacks = {j: states[j].stack if itself else _with_layer(stacks[j], i, states[j]) for j, itself in in_place.items()}
            return (x_BTD, stacks), (tuple(() if j in stacks else s for j, s in enumerate(states)), streams)

        stacks = {j: before[j] for j in in_place}
        scanned = before and tuple(() if j in stacks else s for j, s in enumerate(before))
        xs = scanned, jnp.arange(repeats), own
        (x_BTD, stacks), (states, streams) = scan(block, repeats, (x_BTD, stacks), xs, layer, self.remat, distinct)
        if streams and repeats > 1:
            raise ValueError(f"a block that is repeated {repeats} times cannot write the streams {sorted(streams)}; put it first")
        streams = {name: value_LBTD[0] for name, value_LBTD in streams.items()}
        return x_BTD, tuple(stacks.get(j, own) for j, own in enumerate(states)), streams

    def _check_capacity(self, state, tokens, pos):
        self.check_positions(tokens, pos)
        if state is None or any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((state, pos))):
            return
        capacity_B = self.remaining_capacity(state)
        if capacity_B is None:
            return
        pos = np.ones(tokens.shape[:2], np.int32) if pos is None else np.asarray(pos)
        starts = (pos == _time.START).any(axis=1)
        need_B = np.where(starts, 0, (pos >= 0).sum(axis=1))
        short = int((need_B - np.asarray(capacity_B)).max(initial=0))
        if short > 0:
            raise UserError(
                f"the state of full attention, or the table of learned positions, has {short} slots too few for these tokens; "
                "make it larger: model.init_state(batch, context=N), or model.max_positions"
            )


def build(config: ConfigDict) -> LM:
    """The model that `config.model` describes. Raises UserError for an unknown mixer, norm, dtype or remat policy."""
    model = config.model
    check(model, embedding_init=FORMS, head_init=FORMS)
    check(model, norm=NORMS, remat=REMAT, dtype=DTYPES, residual_dtype=DTYPES, positions=_positions.KINDS)
    segments, dtype = _stack.parse(model.stack), DTYPES[model.dtype]
    block_class = registry.load_class("blocks", model.block)
    own = model.get(model.block, ConfigDict()).to_dict()  # fields of this kind of block
    layers = sum(segment.repeats for segment in segments)
    additions = sum(segment.repeats * len(segment.labels) for segment in segments)

    def mixer(label: str, path: str):
        fields: Mapping = model.get(label, ConfigDict()).to_dict()
        known = dict(width=model.width, layers=layers, additions=additions, dtype=dtype, name=path, parent=None)
        return registry.load_class("mixers", label.split(":")[0])(**fields, **known)

    repeats = tuple(s.repeats for s in segments)
    distinct = tuple(s.own for s in segments) if any(s.distinct for s in segments) else None
    if (model.repeat_scale or model.repeat_rank) and not distinct:
        raise UserError("model.repeat_scale and repeat_rank are for blocks that share weights, such as 12/4*(…) in model.stack")
    mixers = _numbered(repeats, [tuple(map(mixer, s.labels, _stack.paths(s.labels))) for s in segments])
    blocks = tuple(
        block_class(
            mixers=each,
            norm=model.norm, norm_eps=model.norm_eps, dropout=model.dropout, dtype=dtype, parent=None, **own,
        )  # fmt: skip
        for each in mixers
    )
    root = float(model.width) ** 0.5
    fields = {field: model[field] for field in OPTIONS} | {
        "vocab": model.vocab or BYTE_VOCAB,
        "width": model.width,
        "embedding_std": model.embedding_gain / root if model.embedding_std is None else model.embedding_std,
        "embedding_scale": model.embedding_scale * (root if model.scaled_embedding else 1.0),
        "dtype": dtype,
        "residual_dtype": jnp.promote_types(DTYPES[model.residual_dtype], dtype),
    }
    return LM(repeats=repeats, blocks=blocks, distinct=distinct, **fields)


def _numbered(repeats: tuple[int, ...], segments: list[tuple[Mixer, ...]]) -> list[tuple[Mixer, ...]]:
    """The mixers of each segment, with their `number` if their class has `numbered`."""
    if not any(mixer.numbered for mixers in segments for mixer in mixers):
        return segments
    stateful = [[mixer.init_state(1, 1) != () for mixer in mixers] for mixers in segments]
    total = sum(n * sum(own) for n, own in zip(repeats, stateful, strict=True))
    found, first, blocks = [], 0, 0  # numbers of mixers with a state, and of blocks, before the segment
    for n, mixers, own in zip(repeats, segments, stateful, strict=True):
        before = [first - blocks * sum(own) + sum(own[:j]) for j in range(len(own))]
        numbers = [(start, sum(own), total) for start in before]
        found.append(tuple(m.clone(number=k, parent=None) if m.numbered else m for m, k in zip(mixers, numbers, strict=True)))
        first, blocks = first + n * sum(own), blocks + n
    return found


# Fields of LM that have the same name and default in config.model.
OPTIONS = {field.name: field.default for field in dataclasses.fields(LM) if isinstance(field.default, bool | int | float | str)}
DEFAULTS = {
    "stack": "4*(attention swiglu)",
    "block": "residual",
    "width": 128,
    "vocab": config_dict.placeholder(int),  # empty: the tokenizer's, 257 for bytes
    **OPTIONS,
    "embedding_std": config_dict.placeholder(float),  # empty: embedding_gain / sqrt(width), like the 1 / sqrt(inputs) of blocks
    "embedding_gain": 1.0,
    "scaled_embedding": False,  # multiply the embedding's output by sqrt(width)
    "dtype": "float32",  # of the computation; parameters are float32
    "residual_dtype": "float32",
    "dropout": 0.0,
}

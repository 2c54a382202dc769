"""Causal attention to global, near and random blocks: BigBird (Zaheer et al. 2020, arXiv:2007.14062, §2) for language models."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.errors import UserError
from jaxseq.layers import Units
from jaxseq.mixers import _random_blocks
from jaxseq.mixers.attention import Attention
from jaxseq.ops import attention


class BigBird(Attention):
    """`attention` in which a token of block i sees, of the tokens of its document up to itself, those of these blocks of `block`:

    - near: its own block and the `near` - 1 before it
    - global: the first `global_blocks` blocks
    - random: `random_blocks` others, different from each other, or all of them if there are fewer

    The random blocks of a key head depend only on i and the numbers of the layer and of the head, so that they are the same in
    every form and at every place of a document in a row; the query heads that share the key head share them. In the paper, which
    has encoders only, tokens see blocks after their own as well, and global tokens see all tokens. `sparse_encoder` is that.

    A token reads at most (near + global_blocks + random_blocks) block keys; the state keeps all keys of the document. Fields as
    in `attention`, without window, sinks and `cap`.
    """

    in_place: ClassVar[bool] = False
    quantizes: ClassVar[bool] = False
    numbered: ClassVar[bool] = True
    block: int = 64
    near: int = 2
    global_blocks: int = 1
    random_blocks: int = 2

    @nn.nowrap
    def _sizes(self) -> tuple[int, int]:
        if self.window or self.sink or self.cap is not None:
            raise UserError("big_bird attends to blocks and has no window, sinks or cap; leave them out")
        for name, least in {"block": 1, "near": 1, "global_blocks": 0, "random_blocks": 0}.items():
            if getattr(self, name) < least:
                raise UserError(f"{name} of big_bird is {getattr(self, name)}; set it to a number of at least {least}")
        return super()._sizes()

    @nn.nowrap
    def units(self, kind: str) -> Units | str:
        return "the random blocks depend on the number of the head" if kind == "heads" else super().units(kind)

    @nn.nowrap
    def choose(self, number_BT: jax.Array, layer: jax.Array | int) -> jax.Array:
        """[B, T, G, A] int32: the blocks that token `number` of a document sees, -1 for none."""
        own_BT1 = number_BT[..., None] // self.block
        near_BT = jnp.maximum(own_BT1 - jnp.arange(self.near), -1)
        first_BT = jnp.broadcast_to(jnp.arange(self.global_blocks), (*number_BT.shape, self.global_blocks))
        kv_heads, _ = self._sizes()
        free_BT1 = jnp.maximum(own_BT1 - (self.near - 1) - self.global_blocks, 0)
        random_BTG = _random_blocks.draw(free_BT1, self.random_blocks, layer, jnp.arange(kv_heads), own_BT1)
        random_BTG = jnp.where(random_BTG < 0, -1, random_BTG + self.global_blocks)
        same = jnp.concatenate([near_BT, first_BT], axis=2)[:, :, None]
        same = jnp.broadcast_to(same, (*random_BTG.shape[:3], same.shape[3]))
        return jnp.concatenate([same, random_BTG], axis=3).astype(jnp.int32)

    def _attend(self, q_BTHK, k_BTGK, v_BTGV, state, call, limits):
        count_B = jnp.zeros(q_BTHK.shape[:1], jnp.int32) if state is None else state.count_B
        number_BT, _ = attention.indices(count_B, call.pos_BT)
        layer, _ = self.place(call)
        index_BTGA = self.choose(jnp.maximum(number_BT, 0), layer)
        fields = {"block": self.block, "scale": limits["scale"]}
        return call.op("block_sparse_attention")(q_BTHK, k_BTGK, v_BTGV, index_BTGA, state=state, **fields)

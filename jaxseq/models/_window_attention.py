"""Attention to a window on both sides and to global tokens (Longformer, Beltagy et al. 2020, arXiv:2004.05150, §3)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxseq.layers import Linear
from jaxseq.models import _sparse_attention, _transformer
from jaxseq.models._sparse_attention import Subset
from jaxseq.ops import _attend


class Window(NamedTuple):
    """What the tokens of all layers see. Padding is at the end of a row."""

    segment_BT: jax.Array  # document of each token, 0 is padding
    globals: Subset | None  # the global tokens; None: there are none


def layout(segment_BT: jax.Array, global_BT: jax.Array | None, most: int | None) -> Window:
    """global_BT bool: the global tokens, at most `most` in a row (None: any number)."""
    return Window(segment_BT, None if global_BT is None else Subset.of(global_BT & (segment_BT > 0), most))


class WindowAttention(_transformer.MultiHeadAttention):
    """Multi-head attention in which a token sees the tokens of its document at a distance of at most `window` / 2, and all global
    tokens of its document. A global token sees all tokens of its document, with q, k and v from projections of its own.

        y_t = attend(W_q x_t, W_k x_s, W_v x_s),     |t - s| <= window / 2 or s global     if t is not global
        y_t = attend(W_q' x_t, W_k' x_s, W_v' x_s),  all s                                 if t is global

    Blocks of about `window` / 8 tokens attend to the blocks that their windows overlap: T (window + window / 8) scores are
    computed. There is no dropout of the attention weights.
    """

    window: int = 512

    def setup(self) -> None:
        super().setup()
        shape, axes = (self.heads, self.head_size), ("embed", "heads", None)
        fields = dict(bias=self.bias, init_fn=self.init_fn, dtype=self.dtype)
        self.global_q, self.global_k, self.global_v = (Linear(shape, axes, **fields) for _ in range(3))

    def __call__(self, x_BTD: jax.Array, sight: Window) -> jax.Array:
        """y_BTD."""
        segment_BT, subset, scale = sight.segment_BT, sight.globals, self.head_size**-0.5
        q_BTHK, k_BTHK, v_BTHK = self.q(x_BTD), *self.keys_values(x_BTD)
        if subset is None and self.is_initializing():  # the parameters of global tokens exist even if a call has none
            subset = Subset.of(jnp.zeros(segment_BT.shape, bool), 1)
        y_BTHV, lse_BTH = self._near(q_BTHK, k_BTHK, v_BTHK, segment_BT, None if subset is None else subset.mask_BT)
        if subset is not None:
            documents_BN = subset.segments(segment_BT)
            keys = subset.take(k_BTHK), subset.take(v_BTHK)
            seen = _sparse_attention.attend(q_BTHK, *keys, segment_BT, documents_BN, scale, subset.chunk)
            y_BTHV, _ = _attend.merge((y_BTHV, lse_BTH), seen)
            q_BNHK, k_BTHK, v_BTHK = self.global_q(subset.take(x_BTD)), self.global_k(x_BTD), self.global_v(x_BTD)
            y_BNHV, _ = _sparse_attention.attend(q_BNHK, k_BTHK, v_BTHK, documents_BN, segment_BT, scale, subset.chunk)
            y_BTHV = subset.put(y_BNHV, y_BTHV)
        return self.o(y_BTHV.astype(v_BTHK.dtype))

    def _near(self, q_BTHK, k_BTHK, v_BTHK, segment_BT, global_BT) -> tuple[jax.Array, jax.Array]:
        """(y, lse) over the tokens of the window that are not global."""
        time = segment_BT.shape[1]
        half = min(self.window // 2, time)
        chunk = -(-half // 4)
        sides, blocks = -(-half // chunk), -(-time // chunk)
        chosen = min(2 * sides + 1, blocks)
        index_ZA = jnp.clip(jnp.arange(blocks) - sides, 0, blocks - chosen)[:, None] + jnp.arange(chosen)
        query_ZC1 = jnp.arange(blocks * chunk).reshape(blocks, chunk, 1)
        key_ZS = (index_ZA[..., None] * chunk + jnp.arange(chunk)).reshape(blocks, -1)
        near_ZCS = (jnp.abs(query_ZC1 - key_ZS[:, None]) <= half) & (key_ZS < time)[:, None]
        key_BT = segment_BT if global_BT is None else jnp.where(global_BT, 0, segment_BT)
        query_BZC = jnp.pad(segment_BT, ((0, 0), (0, blocks * chunk - time))).reshape(-1, blocks, chunk)
        query_BZC1, key_BZ1S = query_BZC[..., None], jnp.take(key_BT, key_ZS, axis=1, mode="clip")[:, :, None]
        same_BZCS = (query_BZC1 > 0) & (query_BZC1 == key_BZ1S)
        seen_B1ZCS = (near_ZCS & same_BZCS)[:, None]
        arrays = (_sparse_attention.to_blocks(x, chunk) for x in (q_BTHK, k_BTHK, v_BTHK))
        found = _sparse_attention.attend_blocks(*arrays, index_ZA[None, None], seen_B1ZCS, self.head_size**-0.5)
        y_BTHV, lse_BTH = (_sparse_attention.from_blocks(x, time) for x in found)
        return y_BTHV, lse_BTH

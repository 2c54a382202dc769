"""Next-token prediction: cross entropy in nats under each row's token weights."""

import jax
import jax.numpy as jnp

from jaxseq.evaluation.bits_per_byte import token_nats


def loss(model, params, batch, rng, *, form, train) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Sum over tokens of weight * nats, and the sums `tokens`, `nats`, `accuracy`, `log_z_squared`.

    batch: tokens, targets, pos int32 [B, T] and weights float32 [B, T]. What the model sows into 'losses' (already
    scaled means over tokens: router losses, logit penalties) is added, times the tokens of this batch.
    """
    logits_BTV, sown = model.apply(
        {"params": params},
        batch["tokens"],
        pos=batch["pos"],
        form=form,
        train=train,
        rngs={"dropout": rng},
        mutable=["losses"],
    )
    logits_BTV = logits_BTV[0]
    weights_BT = batch["weights"]
    nats_BT, log_z_BT = token_nats(logits_BTV, batch["targets"])
    right_BT = jnp.argmax(logits_BTV, axis=-1) == batch["targets"]
    # where(), not a product alone: a padded position may hold anything, and 0 * inf is nan.
    masked = lambda x_BT: jnp.sum(jnp.where(weights_BT > 0, weights_BT * x_BT, 0))  # noqa: E731
    tokens = jnp.sum(weights_BT)
    sums = {
        "tokens": tokens,
        "nats": masked(nats_BT),
        "accuracy": masked(right_BT.astype(jnp.float32)),
        "log_z_squared": masked(log_z_BT**2),
    }
    extra = sum((jnp.sum(leaf) for leaf in jax.tree.leaves(sown)), start=jnp.zeros((), jnp.float32))
    return sums["nats"] + extra * tokens, sums

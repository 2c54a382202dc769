"""Training objectives, one file each; the file's name is what `train.objective` says.

An objective is `loss(model, params, batch, rng, *, form, train) -> (total, sums)`: the total loss of the batch as a
*sum* over its tokens, and a dict of further sums. `sums["tokens"]` is the divisor of them all. Sums, not means, make
gradient accumulation over micro-batches with different numbers of tokens exact.
"""

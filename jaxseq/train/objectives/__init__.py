"""Training objectives, one file each; `train.objective` names the file.

An objective is a module that defines everything that depends on what is learnt:

- `loss(model, variables, batch, rng, *, form, train) -> (total, sums, changed)`: the total loss of the batch as a *sum*
  over its tokens, a dict of further sums, and the collections of the model that it changed ({"batch_stats": …} or {}).
  `sums["tokens"]` is the divisor of them all. Sums, not means, make gradient accumulation over micro-batches with
  different numbers of tokens exact. `variables` is {"params": …} and the model's collections.
- `shapes(config) -> {name: ShapeDtypeStruct}`: the arrays [B, …] of a batch of all processes.
- `tokens(config) -> int`: the number of tokens of a batch, for speed and FLOPs per token.
- `constants(config, mesh) -> {name: tree of ShapeDtypeStructs}` and `restored(config, constants) -> {name: the same of arrays}`,
  optional: further entries of `variables` that `loss` needs, such as a teacher. Steps do not change them, and checkpoints do not
  contain them.
- `task(config) -> Task`: opens the data; see `jaxseq.train.objectives._task`.
"""

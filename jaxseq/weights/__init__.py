"""A weight is an array, or a `Weight`: a pytree of arrays that stands for one.

The leaves of a Weight have the layer axis first, like every parameter, so scans over layers slice them, and checkpoints,
sharding and donation see plain arrays. Models use a kernel by `contract`, a table by `layers.lookup` and anything else by
`dense`; these ask the Weight. Which parameter has which type is said by `config.model.weights`, a list of rules
"TYPE = PATH PATH …; TYPE = …" that are applied in order to the parameters of the dense model (`typed`). TYPE is a key of TYPES,
with an argument after a colon: "int8", "factored:16". Later rules may name parts of a Weight: "int8 = blocks_0/mlp/up/kernel/a".

Only parameters that multiply an activation have other types, those created with `contracts`. The arithmetic of a recurrence
(decays, steps, convolution taps) and norms are always arrays.
"""

from jaxseq.weights._base import Weight, box_like, contract, dense, is_weight, leading, matrices, norms
from jaxseq.weights._quantized import CODES, QuantizedWeight, Rounded, fits, group
from jaxseq.weights._ranks import Adapted, Factored, Sparse, factors
from jaxseq.weights._rules import TYPES, at, is_node, joined, leaves, merged, parted, path_of, replaced, rules, typed

__all__ = [
    "CODES", "TYPES", "Adapted", "Factored", "QuantizedWeight", "Rounded", "Sparse", "Weight", "at", "box_like", "contract",
    "dense", "factors", "fits", "group", "is_node", "is_weight", "joined", "leading", "leaves", "matrices", "merged", "norms",
    "parted", "path_of", "replaced", "rules", "typed",
]  # fmt: skip

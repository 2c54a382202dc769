"""A weight is an array, or a `Weight`: a pytree of arrays that stands for one.

The leaves of a Weight have the layer axis first, like every parameter, so scans over layers slice them, and checkpoints,
sharding and donation see plain arrays. Models use a kernel through `contract`, a table through `layers.lookup` and anything else
through `dense`; these call methods of the Weight. `config.model.weights` assigns the types by a list of rules
"TYPE = PATH PATH …; TYPE = …", applied in order to the parameters of the dense model (`typed`). TYPE is a key of TYPES, with an
argument after a colon: "int8", "factored:16". Later rules may name fields of a Weight: "int8 = blocks_0/mlp/up/kernel/a".

Only parameters that multiply an activation can be Weights: those created with `contracts`. The parameters of recurrences (decays,
step sizes, convolution taps) and of norms are always arrays.
"""

from jaxseq.weights._base import Weight, box_like, contract, dense, is_weight, leading, matrices, norms
from jaxseq.weights._quantized import CODES, QuantizedWeight, Rounded, fits, group, int8_rows
from jaxseq.weights._ranks import Adapted, Factored, Sparse, factors
from jaxseq.weights._rules import TYPES, at, is_node, joined, leaves, merged, parted, path_of, replaced, rules, typed

__all__ = [
    "Adapted", "CODES", "Factored", "QuantizedWeight", "Rounded", "Sparse", "TYPES", "Weight", "at", "box_like", "contract",
    "dense", "factors", "fits", "group", "int8_rows", "is_node", "is_weight", "joined", "leading", "leaves", "matrices", "merged",
    "norms", "parted", "path_of", "replaced", "rules", "typed",
]  # fmt: skip

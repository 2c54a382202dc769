"""jaxseq: what should replace the Transformer? Sequence models in JAX, each one function in three forms.

One dimension key for the whole project; arrays carry it as a suffix (`q_BTHK`), einsum uses the same letters:

    B batch    T time (of queries)    S time of keys, slots of a state    C tokens of a chunk    X chunks
    H heads    G key/value heads      R query heads a key head            K key size    V value size (of a model: vocabulary)
    D width    N state size           F hidden width, frequencies         W taps        L layers
"""

from jaxseq.config import config, names
from jaxseq.convert import from_pretrained, save_pretrained
from jaxseq.errors import UserError
from jaxseq.generation import generate
from jaxseq.models import build

__all__ = ["UserError", "build", "config", "from_pretrained", "generate", "names", "save_pretrained"]
__version__ = "0.1.0"

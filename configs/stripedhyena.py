"""StripedHyena: Hyena with filters in modal form, alternating with attention (arXiv:2302.10866, arXiv:2310.18780).

Claim: half of the attention layers can be replaced by gated convolutions with a constant state, without loss of quality.
Expected: ahead of the Transformer on the quick comparison, with half of its state.
Initial values: the Transformer's, because the training code was not published; the released code initialises poles near 0.
Command: jaxseq train --config=stripedhyena --workdir=runs/stripedhyena
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick
from jaxseq.configs._rates import swept

# name: pairs of layers, width, heads, kv_heads, hidden, modes, lr; the released model's sizes
SIZES = {"7b": (16, 4096, 32, 8, 14336, 2, 3e-4)}


def get_config(size: str = "") -> ConfigDict:
    config = base()
    pairs, width, heads, kv_heads, hidden, modes, lr = pick(SIZES, size, (2, 128, 4, 4, None, 8, None))
    config.model.stack = f"{pairs}*(hyena_modal swiglu attention swiglu)"
    config.model.width = width
    config.model.tied = False
    config.model.norm = "rmsnorm_outer"
    config.model.attention = {"heads": heads, "kv_heads": kv_heads}
    config.model.hyena_modal = {"state_size": modes, "heads": heads, "polar": not size}
    if size:
        config.model.vocab = 32000
        config.model.swiglu = {"hidden": hidden}
        config.model.attention.theta = 500000.0
    config.train.update({"lr": lr, "lr_source": "Llama's at 7B: the recipe was not published"} if size else swept("stripedhyena"))
    return config

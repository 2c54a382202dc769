"""UniRepLKNet as a language model: large-kernel convolutions in causal blocks (Ding et al. 2023, arXiv:2311.15599).

Claim: a few large kernels give a long context without depth; one architecture works for images, audio, time series and more.
Expected: ahead of the Transformer on the quick comparison, behind models with data-dependent state updates.
Initial values: the Transformer's; for the layer itself see `jaxseq.mixers.unireplk`.
Command: jaxseq train --config=unireplknet --workdir=runs/unireplknet

For the image models of the paper see the config unireplknet_image.
"""

from ml_collections import ConfigDict

from jaxseq.config import base
from jaxseq.configs._rates import swept
from jaxseq.errors import UserError


def get_config(size: str = "") -> ConfigDict:
    config = base()
    if size:
        raise UserError(f"there is no size {size!r}: no language model was published; set model.stack and model.width")
    config.model.stack = "6*(unireplk)"
    config.model.width = 128
    config.train.update(swept("unireplknet"))
    return config

"""UniRepLKNet: as a language model, large-kernel convolutions in causal blocks (Ding et al. 2023, arXiv:2311.15599).

Claim: a few large kernels see far without depth, and one architecture serves images, sound, time series and more.
Expected: ahead of the Transformer on the quick comparison, behind what selects: no kernel depends on the data.
Initial values: the Transformer's; inside the layer see `jaxseq.mixers.unireplk`.
Command: jaxseq train --config=unireplknet --workdir=runs/unireplknet

The paper's own models read images: config unireplknet_image.
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

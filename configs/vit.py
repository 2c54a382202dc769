"""ViT: a Transformer on image patches (Dosovitskiy et al. 2021, arXiv:2010.11929).

Claim: with enough images it does not need the inductive biases of convolutions; with few images it is worse.
Expected: behind UniRepLKNet on a small image data set at equal time.
Command: jaxseq train --config=vit --config.data.path=IMAGES --workdir=runs/vit

IMAGES is a folder with one folder of images per class, or an .npz file with `images` [N, side, side, channels] and `labels` [N].
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick

# name: layers, width, heads, hidden, patch, lr; table 1 and appendix B.1; ti and s: Steiner et al. 2021, arXiv:2106.10270
SIZES = {
    "ti16": (12, 192, 3, 768, 16, 1e-3),
    "s16": (12, 384, 6, 1536, 16, 1e-3),
    "b16": (12, 768, 12, 3072, 16, 8e-4),
    "b32": (12, 768, 12, 3072, 32, 8e-4),
    "l16": (24, 1024, 16, 4096, 16, 4e-4),
    "h14": (32, 1280, 16, 5120, 14, 3e-4),
}


def get_config(size: str = "") -> ConfigDict:
    config = base("vit")
    layers, width, heads, hidden, patch, lr = pick(SIZES, size, (4, 128, 4, 512, 4, 1e-3))
    config.model.update(layers=layers, width=width, heads=heads, hidden=hidden, patch=patch)
    if size:
        config.model.size = 224
        config.train.update(batch=4096, schedule="linear", warmup=10_000, steps=300_000, final_lr=0.0, beta2=0.999)
    config.train.objective = "classification"
    config.train.lr = lr
    config.train.lr_source = "the papers'" if size else "the smallest published size's"
    return config

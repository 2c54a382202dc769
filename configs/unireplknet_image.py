"""UniRepLKNet for images: a few large kernels, trained as branches, merged for inference (Ding et al. 2023, arXiv:2311.15599).

Claim: 83.2 % on ImageNet-1K at size T (31 M parameters), better and faster than other networks of its size.
Expected: ahead of ViT on a small image data set at equal time; after merging, one convolution replaces six.
Command: jaxseq train --config=unireplknet_image --config.data.path=IMAGES --workdir=runs/unireplknet_image

IMAGES is a folder with one folder of images per class, or an .npz file with `images` [N, side, side, channels] and `labels` [N].
"""

from ml_collections import ConfigDict

from jaxseq.config import base, pick

LARGE = "3*{}:3 3*{}:13 27*{}:13,3,3 3*{}:13"
IMAGENET_1K = (1000, 93_840, 6_256)  # classes, steps of 4096 images, warm-up steps: 300 and 20 epochs
IMAGENET_22K = (21_841, 311_947, 17_330)  # 90 and 5 epochs
# name: stages, drop path, lr, data; the paper's table of variants, and the released code's commands
SIZES = {
    "a": ("2*40:3 2*80:13 6*160:13 2*320:13", 0.0, 4e-3, IMAGENET_1K),
    "f": ("2*48:3 2*96:13 6*192:13 2*384:13", 0.0, 4e-3, IMAGENET_1K),
    "p": ("2*64:3 2*128:13 6*256:13 2*512:13", 0.1, 4e-3, IMAGENET_1K),
    "n": ("2*80:3 2*160:13 8*320:13 2*640:13", 0.1, 4e-3, IMAGENET_1K),
    "t": ("3*80:3 3*160:13 18*320:13,3 3*640:13", 0.2, 4e-3, IMAGENET_1K),
    "s": (LARGE.format(96, 192, 384, 768), 0.4, 4e-3, IMAGENET_1K),
    "b": (LARGE.format(128, 256, 512, 1024), 0.1, 4e-3, IMAGENET_22K),
    "l": (LARGE.format(192, 384, 768, 1536), 0.1, 1e-3, IMAGENET_22K),
    "xl": (LARGE.format(256, 512, 1024, 2048), 0.2, 1e-3, IMAGENET_22K),
}


def get_config(size: str = "") -> ConfigDict:
    config = base("unireplknet")
    stages, drop_path, lr, data = pick(SIZES, size, ("2*16:3 2*32:7 2*64:13,3", 0.0, 4e-3, None))
    config.model.update(stages=stages, drop_path=drop_path)
    if data:
        config.data.side = 192 if size in ("l", "xl") else 224
        config.model.classes, steps, warmup = data
        config.train.update(batch=4096, steps=steps, warmup=warmup, smoothing=0.1, final_lr=0.0, clip=0.0)
    config.train.objective = "classification"
    config.train.update(lr=lr, beta2=0.999, weight_decay=0.05)
    config.train.lr_source = "the released code's" if size else "the smallest published size's"
    return config

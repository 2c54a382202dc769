"""Initial values of attention and the feed-forwards, by the name of the model whose code or paper has them.

Most published figures are one standard deviation, 0.02, for widths of some thousand channels: there 1 / sqrt(inputs) is about
as large. So that a recipe holds at every width, `gpt2` and `llama` are relative to the inputs unless a mixer's `init_std` gives
the figure itself; the others are relative in the source too.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from jaxseq.errors import UserError
from jaxseq.layers import Initializer, Mixer, fan_in, normal, scaled_uniform, uniform


def gated_hidden(width: int) -> int:
    """Hidden size of a gated feed-forward: its three matrices have as many parameters as two of size 4 width; multiple of 8."""
    return -(-8 * width // 24) * 8


class Recipe(NamedTuple):
    """Initialisers of the maps from the residual stream and of the maps back to it, made for a mixer."""

    inward: Callable[[Mixer], Initializer]
    outward: Callable[[Mixer], Initializer]
    paired: Callable[[Mixer], Initializer] | None = None  # of gate and up, where they differ from `inward`


def additions(mixer: Mixer) -> int:
    """How often the whole network adds to the residual stream."""
    return mixer.additions or 2 * mixer.layers


def _fixed(mixer: Mixer, scale: float = 1.0) -> Initializer:
    return fan_in(scale) if mixer.init_std is None else normal(scale * mixer.init_std)


RECIPES = {
    # normal; maps back smaller by the root of the number of additions (Radford et al. 2019, §2.3)
    "gpt2": Recipe(_fixed, lambda m: _fixed(m, additions(m) ** -0.5)),
    # normal, all maps alike: the initializer_range of transformers' Llama, Mixtral and Jamba
    "llama": Recipe(_fixed, _fixed),
    # Black et al. 2022 (arXiv:2204.06745, §2.1.3): "small init" (Nguyen & Salazar 2019), and Wang's for the maps back
    "neox": Recipe(lambda m: normal((2 / (5 * m.width)) ** 0.5), lambda m: normal(2 / (m.layers * m.width**0.5))),
    # recurrentgemma: variance 2 / residual blocks on the way back, two additions each; gate and up count as one kernel
    "griffin": Recipe(lambda m: fan_in(), lambda m: fan_in(2 * additions(m) ** -0.5), lambda m: fan_in(2**-0.5)),
    # mamba_ssm, Samba: torch's default, maps back smaller by the root of the number of additions
    "mamba": Recipe(lambda m: scaled_uniform(), lambda m: scaled_uniform(additions(m) ** -0.5)),
    # torch's default, biases too: torchscale's feed-forward, state-spaces/s4
    "torch": Recipe(lambda m: scaled_uniform(), lambda m: scaled_uniform()),
    # Fedus et al. 2022 (arXiv:2101.03961, §2.4): a tenth of the usual variance, cut at two standard deviations
    "switch": Recipe(*[lambda m: jax.nn.initializers.variance_scaling(0.1, "fan_in", "truncated_normal")] * 2),
}


def _find(mixer: Mixer) -> Recipe:
    """Raises UserError for a recipe that there is not, and for a figure that it does not use."""
    if mixer.initial not in RECIPES:
        raise UserError(f"there are no initial values {mixer.initial!r}; choose one of: {', '.join(RECIPES)}")
    if mixer.init_std is not None and mixer.initial not in ("gpt2", "llama"):
        raise UserError(
            f"init_std={mixer.init_std} has no meaning with initial={mixer.initial!r}; leave it empty, or take gpt2 or llama"
        )
    return RECIPES[mixer.initial]


def inward(mixer: Mixer) -> Initializer:
    """Of the maps from the residual stream."""
    return _find(mixer).inward(mixer)


def paired(mixer: Mixer) -> Initializer:
    """Of the two maps from the residual stream, gate and up, of a gated feed-forward."""
    recipe = _find(mixer)
    return (recipe.paired or recipe.inward)(mixer)


def outward(mixer: Mixer) -> Initializer:
    """Of the map back; a mixer's `output_std` goes before its recipe."""
    own = getattr(mixer, "output_std", None)
    return _find(mixer).outward(mixer) if own is None else normal(own)


def bias(mixer: Mixer, inputs: int) -> Initializer:
    return uniform(inputs**-0.5) if mixer.initial == "torch" else jax.nn.initializers.zeros


def by_expert(init: Initializer) -> Initializer:
    """`init` for each of the matrices [experts, inputs, outputs]."""

    def initialise(key, shape, dtype):
        return jax.vmap(lambda key: init(key, shape[1:], dtype))(jax.random.split(key, shape[0]))

    return initialise

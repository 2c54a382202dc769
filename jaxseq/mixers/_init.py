"""Initialisation recipes of attention and the feed-forwards, by the name of the model whose code or paper defines them.

Most published models use a standard deviation of 0.02 at widths of a few thousand channels, which is about 1 / sqrt(inputs). To
be usable at any width, `gpt2` and `llama` use 1 / sqrt(inputs) unless a mixer's `init_std` sets the value; the other recipes
depend on the number of inputs in their sources too.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from jaxseq.errors import UserError
from jaxseq.layers import Initializer, Mixer, fan_in, normal, scaled_uniform, uniform


def gated_hidden(width: int) -> int:
    """8/3 width, rounded up to a multiple of 8: three matrices of this size match two of hidden size 4 width in parameters."""
    return -(-8 * width // 24) * 8


class Recipe(NamedTuple):
    """Functions mixer -> initialiser for the maps from the residual stream (inward) and back to it (outward)."""

    inward: Callable[[Mixer], Initializer]
    outward: Callable[[Mixer], Initializer]
    paired: Callable[[Mixer], Initializer] | None = None  # for gate and up; default: inward


def additions(mixer: Mixer) -> int:
    """Number of residual additions in the whole network."""
    return mixer.additions or 2 * mixer.layers


def _fixed(mixer: Mixer, scale: float = 1.0) -> Initializer:
    return fan_in(scale) if mixer.init_std is None else normal(scale * mixer.init_std)


RECIPES = {
    # normal; outward maps divided by the square root of the number of residual additions (Radford et al. 2019, §2.3)
    "gpt2": Recipe(_fixed, lambda m: _fixed(m, additions(m) ** -0.5)),
    # normal, the same for all maps: the initializer_range of transformers' Llama, Mixtral and Jamba
    "llama": Recipe(_fixed, _fixed),
    # Black et al. 2022 (arXiv:2204.06745, §2.1.3): "small init" (Nguyen & Salazar 2019), and Wang's for outward maps
    "neox": Recipe(lambda m: normal((2 / (5 * m.width)) ** 0.5), lambda m: normal(2 / (m.layers * m.width**0.5))),
    # recurrentgemma: outward variance 2 / residual blocks, two additions each; gate and up count as one kernel
    "griffin": Recipe(lambda m: fan_in(), lambda m: fan_in(2 * additions(m) ** -0.5), lambda m: fan_in(2**-0.5)),
    # mamba_ssm, Samba: torch's default; outward maps divided by the square root of the number of residual additions
    "mamba": Recipe(lambda m: scaled_uniform(), lambda m: scaled_uniform(additions(m) ** -0.5)),
    # torch's default, also for biases: torchscale's feed-forward, state-spaces/s4
    "torch": Recipe(lambda m: scaled_uniform(), lambda m: scaled_uniform()),
    # Fedus et al. 2022 (arXiv:2101.03961, §2.4): a tenth of the usual variance, truncated at two standard deviations
    "switch": Recipe(*[lambda m: jax.nn.initializers.variance_scaling(0.1, "fan_in", "truncated_normal")] * 2),
}


def _find(mixer: Mixer) -> Recipe:
    """The mixer's recipe. Raises UserError if its name is unknown, or if it does not use the given `init_std`."""
    if mixer.initial not in RECIPES:
        raise UserError(f"there is no initialisation {mixer.initial!r}; choose one of: {', '.join(RECIPES)}")
    if mixer.init_std is not None and mixer.initial not in ("gpt2", "llama"):
        raise UserError(
            f"initial={mixer.initial!r} does not use init_std={mixer.init_std}; leave it empty, or set initial to gpt2 or llama"
        )
    return RECIPES[mixer.initial]


def inward(mixer: Mixer) -> Initializer:
    """Initialiser of the maps from the residual stream."""
    return _find(mixer).inward(mixer)


def paired(mixer: Mixer) -> Initializer:
    """Initialiser of gate and up, the two maps from the residual stream of a gated feed-forward."""
    recipe = _find(mixer)
    return (recipe.paired or recipe.inward)(mixer)


def outward(mixer: Mixer) -> Initializer:
    """Initialiser of the map back to the residual stream; a mixer's `output_std` overrides its recipe."""
    own = getattr(mixer, "output_std", None)
    return _find(mixer).outward(mixer) if own is None else normal(own)


def bias(mixer: Mixer, inputs: int) -> Initializer:
    return uniform(inputs**-0.5) if mixer.initial == "torch" else jax.nn.initializers.zeros


def by_expert(init: Initializer) -> Initializer:
    """`init` for each of the matrices [experts, inputs, outputs]."""

    def initialise(key, shape, dtype):
        return jax.vmap(lambda key: init(key, shape[1:], dtype))(jax.random.split(key, shape[0]))

    return initialise

"""Where the parameters of each mixer hold its state channels."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxseq.layers import Mixer
from jaxseq.mixers import _rwkv, _ssm
from jaxseq.mixers._delta import DeltaMixer
from jaxseq.mixers.gla import GatedLinearAttention
from jaxseq.mixers.h3 import H3
from jaxseq.mixers.hyena_modal import HyenaModal
from jaxseq.mixers.lightning import LightningAttention
from jaxseq.mixers.mamba import Mamba
from jaxseq.mixers.mamba2 import Mamba2
from jaxseq.mixers.retention import Retention
from jaxseq.mixers.rwkv6 import RWKV6
from jaxseq.mixers.s4 import S4
from jaxseq.mixers.s4d import S4D


class States(NamedTuple):
    """State channels that can be removed: `count` in each of `groups` groups, of which as many are kept.

    labels: {path of a parameter in the mixer: the number group * count + channel of each of its elements, -1 for elements that
    belong to none}, of a shape that broadcasts to that of the parameter in one layer. A channel whose elements are all zero adds
    nothing to the output. fields: the mixer's fields if these channels of the first group are kept.
    """

    count: int
    labels: Mapping[str, np.ndarray]
    fields: Callable[[np.ndarray], dict[str, Any]]
    groups: int = 1
    shared: bool = False  # the kept ones are named by `fields`, so they are the same in all layers
    scaled: tuple[str, ...] = ()  # parameters to multiply by sqrt(kept / count), because the mixer divides by its root


@functools.singledispatch
def states(mixer: Mixer) -> States | str:
    """The state channels of a mixer, or a sentence that says why none can be removed."""
    return f"{type(mixer).__name__} has no state channels that can be removed one by one"


@states.register
def _(mixer: Mamba) -> States | str:
    if mixer.selected_norm != "none":
        return "selected_norm normalises over all state channels"
    size, rank = mixer.state_size, mixer.dt_rank or -(-mixer.width // 16)
    own_N = np.arange(size)
    labels = {"x/kernel": np.concatenate([np.full(rank, -1), own_N, own_N]), "A_log": own_N}
    return States(size, labels, lambda kept: {"state_size": len(kept)})


@states.register
def _(mixer: Mamba2) -> States:
    own_N, inner = np.arange(mixer.groups * mixer.state_size), mixer.inner_size
    conv = np.concatenate([np.full(inner, -1), own_N, own_N])
    labels = {
        "in/kernel": np.concatenate([np.full(inner, -1), conv, np.full(mixer.heads, -1)]),
        "conv_kernel": conv,
        "conv_bias": conv,
    }
    return States(mixer.state_size, labels, lambda kept: {"state_size": len(kept)}, mixer.groups)


@states.register
def _(mixer: Retention) -> States:
    """Pairs of key channels, which are rotated together. Each pair has its own frequency, the same in all heads and layers."""
    pairs = mixer.kept_pairs()
    own_K = np.repeat(np.arange(len(pairs)), 2)
    labels = {"q/kernel": own_K, "k/kernel": own_K}
    return States(len(pairs), labels, lambda kept: {"pairs": " ".join(str(pairs[i]) for i in kept)}, shared=True)


@states.register
def _(mixer: GatedLinearAttention) -> States:
    size = mixer.sizes()[0]
    own_HK = np.arange(mixer.heads * size).reshape(mixer.heads, size)
    labels = dict.fromkeys(("q/kernel", "k/kernel", "w_b/kernel", "w_b/bias"), own_HK)
    return States(size, labels, lambda kept: {"key_size": len(kept)}, mixer.heads, scaled=("q/kernel",))


@states.register
def _(mixer: RWKV6) -> States:
    size = mixer.keys()
    own_HK = np.arange(mixer.heads * size).reshape(mixer.heads, size)
    labels = dict.fromkeys(("r/kernel", "k/kernel", "time_first"), own_HK)
    labels |= dict.fromkeys(("time_decay", "decay_b"), own_HK.reshape(-1))
    return States(size, labels, lambda kept: {"key_size": len(kept)}, mixer.heads)


@states.register
def _(mixer: S4D) -> States:
    """Modes, the same in all channels of a layer: they start with the same frequencies there."""
    own_N = np.arange(_ssm.check(mixer.state_size, mixer.frequencies, mixer.discretisation))
    labels = {"A_log": own_N, "A_imag": own_N, "B": own_N[:, None], "C": own_N[:, None]}
    return States(len(own_N), labels, lambda kept: {"state_size": 2 * len(kept)})


@states.register
def _(mixer: HyenaModal) -> States:
    own_ODN1 = np.arange(mixer.convolutions() * mixer.state_size).reshape(-1, 1, mixer.state_size, 1)
    labels = {"poles": own_ODN1, "residues": own_ODN1}
    return States(mixer.state_size, labels, lambda kept: {"state_size": len(kept)}, mixer.convolutions())


@states.register(_rwkv.HeadMixer)
@states.register(LightningAttention)
def _(mixer: Mixer) -> str:
    return f"the keys and values of {type(mixer).__name__} have one size"


@states.register
def _(mixer: DeltaMixer) -> str:
    return "its keys have unit length, which each of their channels changes"


@states.register
def _(mixer: S4) -> str:
    return "the rank-one term of S4 couples its modes"


@states.register
def _(mixer: H3) -> str:
    return "state_size is also the number of taps of H3's shift"

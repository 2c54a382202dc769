"""Initial values that attention and the feed-forwards share: normal, and smaller where a map adds to the residual stream."""

from jaxseq.layers import Initializer, fan_in, normal


def gated_hidden(width: int) -> int:
    """Hidden size of a gated feed-forward: its three matrices have as many parameters as two of size 4 width; multiple of 8."""
    return -(-8 * width // 24) * 8


def inward(std: float | None) -> Initializer:
    """Of the maps from the residual stream; default: 1 / sqrt(inputs)."""
    return fan_in() if std is None else normal(std)


def outward(std: float | None, own: float | None, layers: int) -> Initializer:
    """Of the map back: standard deviation `own`; default: that of `inward(std)`, smaller by sqrt(2 layers).

    The default is GPT-2's (Radford et al. 2019, §2.3): two maps a layer add to the stream.
    """
    if own is not None:
        return normal(own)
    shrink = (2 * layers) ** -0.5
    return fan_in(shrink) if std is None else normal(std * shrink)

"""Rotary positions in configs: `rope_parameters`, or in older ones `rope_theta` and `rope_scaling`."""

import math
from typing import Any

from jaxseq.convert import _fields
from jaxseq.convert.sources import _decoders
from jaxseq.errors import UserError

CONTEXT = "original_max_position_embeddings"
NUMBERS: dict[str, dict[str, str]] = {  # for each kind of scaling: {ours: theirs}
    "default": {},
    "linear": {"rope_factor": "factor"},
    "llama3": {"rope_factor": "factor", "rope_context": CONTEXT, "rope_slow": "low_freq_factor", "rope_fast": "high_freq_factor"},
    "yarn": {"rope_factor": "factor", "rope_context": CONTEXT, "rope_slow": "beta_slow", "rope_fast": "beta_fast"},
}
DEFAULTS = {"yarn": {"beta_slow": 1.0, "beta_fast": 32.0}}
KNOWN = {"rope_theta", "rope_type", "type", "partial_rotary_factor"}
KNOWN_YARN = {"attention_factor", "mscale", "mscale_all_dim", "truncate"}


def settings(source: str, theirs: dict) -> dict:
    """The config's fields for rotary positions. Raises UserError for a kind or a field that is not supported."""
    field = "rope_scaling" if theirs.get("rope_scaling") else "rope_parameters"
    given = {name: value for name, value in (theirs.get(field) or {}).items() if value is not None}
    kind = given.get("rope_type", given.get("type", "default"))
    known = KNOWN | set(NUMBERS.get(kind, {}).values()) | (KNOWN_YARN if kind == "yarn" else set())
    if kind not in NUMBERS:
        raise UserError(f"{source} has no {kind} rotary positions, and this config has {field}={_fields.shown(given)}")
    if unknown := sorted(set(given) - known):
        raise UserError(f"{source} has no {kind} rotary positions with {unknown[0]}={_fields.shown(given[unknown[0]])}")
    return given | {"rope_type": kind}


def fields(source: str, theirs: dict, theta: float = 10000.0) -> dict[str, Any]:
    """`theta` and `rope_…` of a mixer; theta: the default."""
    given = settings(source, theirs)
    kind, found = given["rope_type"], {"theta": _decoders.theta(theirs, theta)}
    if kind == "default":
        return found
    given = {CONTEXT: theirs.get("max_position_embeddings")} | DEFAULTS.get(kind, {}) | given
    exact = kind == "yarn" and not given.get("truncate", True)
    found["rope_scaling"] = "yarn_exact" if exact else kind
    for ours, name in NUMBERS[kind].items():
        found[ours] = _fields.number(given, name, _fields.SIZE if name == CONTEXT else _fields.POSITIVE)
    return found


def temperature(factor: float, weight: float = 1.0) -> float:
    """0.1 weight ln(factor) + 1, by which YaRN multiplies q and k (Peng et al. 2023, arXiv:2309.00071, eq. 22)."""
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0


def amplitude(given: dict) -> float:
    """The factor of q and k; given: `settings`."""
    if given["rope_type"] != "yarn":
        return 1.0
    if given.get("attention_factor") is not None:
        return float(given["attention_factor"])
    weights = [given.get(name) for name in ("mscale", "mscale_all_dim")]
    up, down = weights if all(weights) else (1.0, 0.0)
    return temperature(given["factor"], up) / temperature(given["factor"], down)


def scale(given: dict, size: int) -> float | None:
    """`scale` of a mixer whose heads have `size` channels, all of which are rotated; given: `settings`."""
    own = amplitude(given)
    return None if own == 1 else own * own * size**-0.5


def attention(source: str, theirs: dict, size: int, theta: float, part: float | None) -> dict[str, Any]:
    """`theta`, `rope_…`, `rotary_fraction` and `scale` of attention whose heads have `size` channels.

    theta: the default base. part: the default fraction of a head that is rotated; None: the source always rotates whole heads.
    """
    given = settings(source, theirs)
    own = given.get("partial_rotary_factor", theirs.get("partial_rotary_factor") or part or 1.0)
    fraction = float(_fields.number({"partial_rotary_factor": own}, "partial_rotary_factor", _fields.FRACTION))
    if part is None or amplitude(given) != 1:
        _fields.wanted(source, {"partial_rotary_factor": fraction}, partial_rotary_factor=1.0)
    return fields(source, theirs, theta) | {"rotary_fraction": fraction, "scale": scale(given, size)}


def parameters(mixer: Any) -> dict[str, Any]:
    """Their `rope_parameters`, without the amplitude and the fraction of a head that is rotated."""
    kind = {"none": "default", "yarn_exact": "yarn"}.get(mixer.rope_scaling, mixer.rope_scaling)
    found = {"rope_theta": mixer.theta, "rope_type": kind}
    found |= {name: getattr(mixer, ours) for ours, name in NUMBERS[kind].items()}
    return found | ({"truncate": mixer.rope_scaling == "yarn"} if kind == "yarn" else {})


def described(mixer: Any, size: int, part: bool = False) -> dict[str, Any] | None:
    """The fields of their config for a mixer whose heads have `size` channels; None if it has none for this mixer. part: whether
    it has a field for the fraction of a head that is rotated."""
    found = parameters(mixer)
    yarn = found["rope_type"] == "yarn"
    if (mixer.scale is not None and not yarn) or (mixer.rotary_fraction != 1 and (mixer.scale or not part)):
        return None
    if yarn and mixer.scale != scale(found, size):
        found["attention_factor"] = 1.0 if mixer.scale is None else math.sqrt(mixer.scale * size**0.5)
    if part:
        found["partial_rotary_factor"] = mixer.rotary_fraction
    return {"rope_theta": mixer.theta, "rope_parameters": found}

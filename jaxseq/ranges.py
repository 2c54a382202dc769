"""The allowed values of config fields. Types are those of the defaults; ranges are listed here by field name.

A field that is not listed takes any number of its type (integers from 0 to LARGEST, finite floats). A mixer or block can declare
the range of its own field: `ranges: ClassVar = {"field": Range(1, 9)}`. Conditions on several fields are checked where they are
used.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxseq.errors import UserError

LARGEST = 2**24  # largest size in a model; a larger value is probably a typo
COUNT = 2**40  # largest number of steps, tokens, documents


class Range(NamedTuple):
    low: float
    high: float
    open: str = ""  # ends excluded from the range: "(" the lower, ")" the upper

    def __contains__(self, value: float) -> bool:
        above = value > self.low if "(" in self.open else value >= self.low
        return above and (value < self.high if ")" in self.open else value <= self.high)  # false for NaN

    def __str__(self) -> str:
        low = f"above {self.low:g}" if "(" in self.open else f"at least {self.low:,}"
        high = f"below {self.high:g}" if ")" in self.open else f"at most {self.high:,}"
        return f"{low} and {high}"


SIZE = Range(1, LARGEST)
WIDE = Range(1, 2**20)
SEED = Range(0, 2**32 - 1)
AT_LEAST_ONE, FROM_ZERO = Range(1, COUNT), Range(0, COUNT)
FRACTION = Range(0, 1, ")")  # for dropout and the like: 1 would leave nothing
SHARE = Range(0, 1)
POSITIVE = Range(0, 1e30, "(")
NOT_NEGATIVE = Range(0, 1e30)
BY_TYPE = {int: Range(0, LARGEST), float: Range(-1e30, 1e30)}

RANGES: dict[str, Range] = {
    # sizes of networks
    **dict.fromkeys(("width", "hidden", "inner", "head_size", "key_size", "value_size", "state_size", "size", "side"), WIDE),
    **dict.fromkeys(("heads", "kv_heads", "groups", "layers", "encoder_layers", "decoder_layers", "vocab", "experts"), SIZE),
    **dict.fromkeys(("top_k", "order", "expand", "factor", "value_factor", "kernel", "patch", "channels", "reduction"), SIZE),
    "rope_context": SIZE,
    **dict.fromkeys(("window", "max_positions", "l_max", "buckets", "max_distance", "residuals", "share", "terms"), SIZE),
    **dict.fromkeys(("dt_rank", "mix_rank", "decay_rank", "value_rank", "rate_rank", "gate_rank", "features"), SIZE),
    # other fields of networks
    **dict.fromkeys(("norm_eps", "eps", "selected_eps", "theta", "dt_min", "dt_max", "dt_high", "power"), POSITIVE),
    **dict.fromkeys(("capacity_factor", "expert_capacity_factor", "fast", "slow", "target", "sine", "embedding_scale"), POSITIVE),
    **dict.fromkeys(("rope_factor", "rope_slow", "rope_fast"), POSITIVE),
    **dict.fromkeys(("embedding_std", "init_std", "output_std", "head_scale", "dt_floor", "dt_low"), NOT_NEGATIVE),
    **dict.fromkeys(("logit_penalty", "balance_loss", "expert_balance_loss", "z_loss", "expert_z_loss"), NOT_NEGATIVE),
    **dict.fromkeys(("filter_lr", "position_lr", "kernel_lr", "layer_scale", "logit_cap"), NOT_NEGATIVE),
    **dict.fromkeys(("dropout", "drop_path", "jitter", "expert_jitter"), FRACTION),
    **dict.fromkeys(("low", "high"), Range(0, 1, "()")),
    "rotary_fraction": Range(0, 1, "("),
    "momentum": SHARE,
    # training, evaluation, data
    **dict.fromkeys(("steps", "batch", "length", "accumulate", "log_every", "keep"), AT_LEAST_ONE),
    **dict.fromkeys(("decay_steps", "warmup", "eval_every", "checkpoint_every"), FROM_ZERO),
    **dict.fromkeys(("skip", "rewind", "skip_records"), FROM_ZERO),
    **dict.fromkeys(("documents", "tokens", "context", "prefetch"), FROM_ZERO),
    **dict.fromkeys(("data", "fsdp", "sequence", "tensor", "expert"), SIZE),  # of the mesh
    **dict.fromkeys(("beta1", "beta2", "smoothing"), FRACTION),
    **dict.fromkeys(("decay_fraction", "final_lr", "distill_alpha"), SHARE),
    **dict.fromkeys(("lr", "lora_alpha", "distill_temperature"), POSITIVE),
    "lora_rank": Range(0, 2**16),
    **dict.fromkeys(("clip", "weight_decay", "skip_norm", "spike"), NOT_NEGATIVE),  # 0: none
    "corruption": Range(0, 1, "()"),
    "mean_span": Range(1, 1e6),
    "seed": SEED,
    "lr_width": SIZE,
}


def check(name: str, value: Any, kind: type, optional: bool, own: Mapping[str, Range] | None = None) -> Any:
    """Checks `value` of the field `name` (dotted): a number, text or bool of this type. An integer for a float is converted.

    Raises UserError with the field, its value and the allowed values.
    """
    if value is None:
        if optional:
            return None
        raise UserError(f"config.{name} is empty; it must be {kind.__name__}")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1e300 else math.inf
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise UserError(f"config.{name} must be {kind.__name__}, not {str(value)[:40]!r}")
    last = name.rpartition(".")[2]
    allowed = ({} if own is None else own).get(last, RANGES.get(last, BY_TYPE.get(kind)))
    if kind in BY_TYPE and value not in allowed:
        raise UserError(f"config.{name}={value} is out of range; it must be {allowed}")
    return value

"""The values that fields of published configs may have, and the errors for values that a source does not support."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxseq.errors import UserError


class Number(NamedTuple):
    """A number from `low` to `high`; whole: an integer."""

    low: float
    high: float
    whole: bool = True

    def __str__(self):
        return f"{'an integer' if self.whole else 'a number'} from {self.low:g} to {self.high:g}"

    def holds(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        return self.low <= value <= self.high  # False for NaN


class OrAuto(NamedTuple):
    """A number, or the word that derives it from other fields."""

    number: Number

    def __str__(self):
        return f"{self.number}, or 'auto'"

    def holds(self, value: Any) -> bool:
        return value == "auto" or self.number.holds(value)


class Kind(NamedTuple):
    """A value of one of these types."""

    types: type | tuple[type, ...]
    name: str

    def __str__(self):
        return self.name

    def holds(self, value: Any) -> bool:
        return isinstance(value, self.types)


SIZE, LAYERS, STATE = Number(1, 1 << 24), Number(1, 10_000), Number(1, 1 << 16)
EPS, POSITIVE, FRACTION = Number(1e-30, 1, False), Number(1e-30, 1e15, False), Number(0, 1, False)
FLAG, TEXT, MAP, LIST = Kind(bool, "true or false"), Kind(str, "text"), Kind(dict, "an object"), Kind((list, tuple), "a list")

FIELDS: dict[str, Number | OrAuto | Kind] = {
    "time_step_rank": OrAuto(STATE),
    **dict.fromkeys((
        "vocab_size", "hidden_size", "intermediate_size", "n_embd", "n_inner", "d_model", "d_kv", "d_ff", "head_dim", "width",
        "hidden", "n_positions", "max_position_embeddings", "type_vocab_size", "image_size", "patch_size", "num_channels",
        "source_vocab", "decoder_embed_dim", "decoder_value_embed_dim", "decoder_ffn_embed_dim", "input_size", "vocab",
        "dim_ffn", "sliding_window", "inner_mlp_size", "relative_attention_max_distance", "shared_intermediate_size",
        "mamba_d_ssm",
    ), SIZE),
    **dict.fromkeys((
        "num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers", "decoder_layers", "encoder_sparse_step",
        "decoder_sparse_step",
    ), LAYERS),
    **dict.fromkeys((
        "num_attention_heads", "num_key_value_heads", "n_head", "num_heads", "decoder_retention_heads", "state_size",
        "conv_kernel", "expand", "n_groups", "num_experts_per_tok", "num_experts", "relative_attention_num_buckets",
        "mamba_num_heads", "mamba_head_dim", "ssm_state_size", "mamba_n_heads", "mamba_n_groups", "mamba_d_state",
        "mamba_d_conv", "mamba_expand",
    ), STATE),
    "num_local_experts": Number(0, 1 << 16),  # 0: the layers are dense
    **dict.fromkeys((
        "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layernorm_eps", "mixer_rms_eps", "time_step_min",
        "time_step_max", "time_step_floor",
    ), EPS),
    **dict.fromkeys((
        "rope_theta", "rotary_emb_base", "embedding_multiplier", "lm_head_multiplier", "key_multiplier",
        "attention_in_multiplier", "attention_out_multiplier", "ssm_in_multiplier", "ssm_out_multiplier",
    ), POSITIVE),
    **dict.fromkeys((
        "rotary_pct", "router_aux_loss_coef", "router_z_loss_coef", "router_jitter_noise", "hidden_dropout_prob",
        "dropout_rate", "drop_path_rate",
    ), FRACTION),
    **dict.fromkeys((
        "tie_word_embeddings", "attention_bias", "mlp_bias", "qkv_bias", "use_bias", "use_conv_bias", "use_parallel_residual",
        "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "add_cross_attention", "is_decoder", "router_bias",
        "scale_decoder_outputs", "add_pooling_layer", "share_decoder_input_output_embed", "no_scale_embedding", "bidirectional",
        "mamba_rms_norm", "mamba_norm_before_gate",
    ), FLAG),
    **dict.fromkeys((
        "hidden_act", "activation_function", "feed_forward_proj", "dense_act_fn", "activation_fn", "position_embedding_type",
        "pooler_act",
    ), TEXT),
    **dict.fromkeys(("rope_parameters", "rope_scaling", "quantization_config", "id2label", "ssm_cfg"), MAP),
    **dict.fromkeys(("architectures", "time_step_limit", "attn_layer_idxs", "mlp_multipliers", "ssm_multipliers"), LIST),
}  # fmt: skip
EMPTY = {  # fields that may be null, which means that they are absent
    "n_inner", "head_dim", "num_key_value_heads", "sliding_window", "num_decoder_layers", "rope_parameters", "rope_scaling",
    "id2label", "quantization_config", "architectures", "dense_act_fn", "feed_forward_proj", "attention_bias", "pooler_act",
    "rope_theta", "intermediate_size", "mamba_d_ssm", "position_embedding_type", "mlp_multipliers",
    "ssm_multipliers",
}  # fmt: skip


def check(theirs: Mapping[str, Any]) -> None:
    """Raises UserError for a field of the wrong type or with an impossible value, before anything is built from it."""
    for name, wanted in FIELDS.items():
        value = theirs.get(name)
        if name in theirs and not (value is None and name in EMPTY) and not wanted.holds(value):
            raise UserError(f"{name} of the config is {shown(value)}; it must be {wanted}; give the checkpoint's own config.json")


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def wanted(source: str, theirs: Mapping[str, Any], **values: Any) -> None:
    """Raises UserError if a field is present and does not have the only value that the source supports."""
    for name, value in values.items():
        if theirs.get(name) is not None and theirs[name] != value:
            raise UserError(f"{source} reads models with {name}={value!r}, and this config has {name}={shown(theirs[name])}")


def choice(source: str, theirs: Mapping[str, Any], name: str, choices: Mapping[str, Any], default: str | None = None) -> Any:
    """The entry of `choices` for the field. Raises UserError, listing the choices, for another value."""
    value = theirs[name] if default is None else theirs.get(name, default)
    if value not in choices:
        raise UserError(f"{source} has no {name}={shown(value)}; it reads: {', '.join(choices)}")
    return choices[value]


def number(theirs: Mapping[str, Any], name: str, wanted: Number) -> float:
    """Checks and returns a number from a nested part of a config."""
    if not wanted.holds(value := theirs[name]):
        raise UserError(f"{name} of the config is {shown(value)}; it must be {wanted}; give the checkpoint's own config.json")
    return value


def finite(value: float) -> float | None:
    """The value, with infinity as None, the convention of our fields."""
    return None if math.isinf(value) else float(value)

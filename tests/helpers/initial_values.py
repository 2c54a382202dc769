"""Initial values of every tensor of the laptop configs: distribution, standard deviation and mean, with their published
source. Figures are for width 128 and four layers, as in the configs. "The recipe" is the project's own, where nothing is
published for this size: see docs/initial_values.md. Each table is a list of (source, {pattern of the path: Start})."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

D, V, L = 128, 257, 4


class Start(NamedTuple):
    form: str  # normal, uniform, truncated, orthogonal, fixed
    std: float | None = None
    mean: float = 0.0
    values: Callable[[int], np.ndarray] | float | None = None  # for fixed: a number, or for each layer an array that broadcasts


def normal(std, mean=0.0):
    return Start("normal", std, mean)


def uniform(bound, mean=0.0):
    return Start("uniform", bound / 3**0.5, mean)


def between(low, high):
    return uniform((high - low) / 2, (high + low) / 2)


def fixed(values):
    return Start("fixed", values=values)


def orthogonal(gain, rows):
    return Start("orthogonal", gain * rows**-0.5)


ZERO, ONE = fixed(0.0), fixed(1.0)
NORMS = ("every source", {r"(norm_[^/]*|final_norm|first_norm)/scale": ONE, r"(norm_[^/]*|final_norm|first_norm)/bias": ZERO})
TIED = ("the recipe", {"embedding": normal(D**-0.5)})
UNTIED = ("the recipe", {"embedding": normal(D**-0.5), "head": normal(D**-0.5)})
OUT = (2 * L) ** -0.5  # two additions per layer


def attention(inward, outward, biases=False):
    found = {r"attention(_1)?/[qkv]/kernel": inward, r"attention(_1)?/o/kernel": outward}
    return found | ({r"attention/[qkvo]/bias": ZERO} if biases else {})


def gated(name, hidden, out):
    """A gated feed-forward with the recipe."""
    return {rf"{name}(_\d)?/(gate|up)/kernel": normal(D**-0.5), rf"{name}(_\d)?/down/kernel": normal(out * hidden**-0.5)}


def mlp(up, down, bias=ZERO, bias_down=ZERO):
    return {"mlp/up/kernel": up, "mlp/down/kernel": down, "mlp/up/bias": bias, "mlp/down/bias": bias_down}


RECIPE = (
    "the recipe; transformers, GPT2PreTrainedModel: 0.02 for 1 / sqrt(inputs)",
    attention(normal(D**-0.5), normal(OUT * D**-0.5), True)
    | gated("swiglu", 344, OUT) | mlp(normal(D**-0.5), normal(OUT * 512**-0.5)),
)  # fmt: skip
FLAT = (
    "transformers, LlamaPreTrainedModel, MixtralPreTrainedModel: initializer_range for 1 / sqrt(inputs)",
    attention(normal(D**-0.5), normal(D**-0.5)) | gated("swiglu", 344, 1.0)
    | {"moe/(gate|up)": normal(D**-0.5), "moe/down": normal(176**-0.5), "moe/router/kernel": normal(D**-0.5)},
)  # fmt: skip


FLA = "flash-linear-attention, models/modeling_*.py, _init_weights: initializer_range for 1 / sqrt(inputs); layers/*.py for steps"


def delta(name):
    """The tensors that gdn and kda share."""
    return {
        rf"{name}(_\d)?/(q|k|v|beta)/kernel": normal(D**-0.5), rf"{name}(_\d)?/conv_kernel": normal(4**-0.5),
        rf"{name}(_\d)?/norm_scale": ONE,
    }  # fmt: skip


KDA = ("transformers, KimiLinearPreTrainedModel: initializer_range for 1 / sqrt(inputs)", delta("kda") | {
    r"kda(_\d)?/(f_a|g_a|o)/kernel": normal(D**-0.5), r"kda(_\d)?/(f_b|g_b)/kernel": normal(32**-0.5),
    r"kda(_\d)?/dt_bias": Start("step"), r"kda(_\d)?/A_log": Start("exp_uniform", mean=8.5, std=15 / 12**0.5),
})  # fmt: skip
NORMED = ("transformers, Lfm2PreTrainedModel, Qwen3NextPreTrainedModel: initializer_range for 1 / sqrt(inputs)", {
    "normed_attention/[qkvog]/kernel": normal(D**-0.5), "normed_attention/[qk]_norm/scale": ONE,
})  # fmt: skip


def mamba(shrink):
    """state-spaces/mamba, mamba_ssm/modules/mamba_simple.py, Mamba, and models/mixer_seq_simple.py, _init_weights."""
    return "state-spaces/mamba, mamba_simple.py, Mamba; mixer_seq_simple.py, _init_weights", {
        r"mamba(_1)?/in/kernel": uniform(D**-0.5),
        r"mamba(_1)?/conv_(kernel|bias)": uniform(4**-0.5),
        r"mamba(_1)?/x/kernel": uniform(256**-0.5),
        r"mamba(_1)?/dt/kernel": uniform(8**-0.5),
        r"mamba(_1)?/dt_bias": Start("step"),  # softplus of it is log-uniform in [0.001, 0.1]
        r"mamba(_1)?/A_log": fixed(lambda layer: np.log(np.arange(1, 17))),
        r"mamba(_1)?/D": ONE,
        r"mamba(_1)?/out/kernel": uniform(shrink * 256**-0.5),
        r"mamba(_1)?/(dt|b|c)_norm/scale": ONE,
    }


RAMP = np.arange(D) / D
LINE = np.arange(D) / (D - 1)
ZIGZAG = (np.arange(D) + 1) % 3 - 1


def done(layer):
    return layer / (L - 1)


def left(layer):
    return 1 - layer / L


SCALE_X = fixed(lambda layer: ((1 + layer) / L) ** 0.7)
RWKV_5 = {
    "embedding": uniform(1e-4),
    "head": orthogonal(0.5 * (V / D) ** 0.5, V),
    r"rwkv\d/[rv]/kernel": orthogonal(1.0, D),
    r"rwkv\d/[kg]/kernel": orthogonal(0.1, D),
    r"rwkv\d/o/kernel": ZERO,
    r"rwkv\d/ln_x_scale": SCALE_X,
    r"rwkv\d/ln_x_bias": ZERO,
    r"rwkv\d/time_decay": fixed(lambda layer: (-6 + 5 * LINE ** (0.7 + 1.3 * done(layer))).reshape(8, 16)),
    r"rwkv\d/time_first": fixed(lambda layer: (done(layer) * (1 - LINE) + 0.1 * ZIGZAG).reshape(8, 16)),
    "rwkv_channel/k/kernel": orthogonal(1.0, 512),
    "rwkv_channel/[rv]/kernel": ZERO,
}
MIXES = {
    "[xwk]": lambda layer: RAMP ** left(layer),
    "v": lambda layer: RAMP ** left(layer) + 0.3 * done(layer),
    "[rg]": lambda layer: RAMP ** (0.5 * left(layer)),
}
RWKV_7 = {
    "decay": lambda layer: -5.5 + 6 * LINE ** (1 + done(layer) ** 0.3) + 2.5 * WAVE,
    "rate": lambda layer: -0.19 + 0.3 * WAVE + 0.4 * (LINE - 0.5),
    "value": lambda layer: 0.73 - 0.4 * (LINE - 0.5),
    "removal": lambda layer: 0.71 - 0.1 * (LINE - 0.5),
}
WAVE = np.tile(np.linspace(-1, 1, 16), 8)
WAVE = WAVE * abs(WAVE)
SHARES = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}

S4D = {
    "A_log": fixed(float(np.log(0.5))),
    "A_imag": fixed(lambda layer: np.pi * np.arange(16)),
    "B": fixed(lambda layer: np.array([1.0, 0.0])),
    "C": normal(0.5**0.5),
    "D": normal(1.0),
    "log_dt": between(np.log(0.001), np.log(0.1)),
}
MODAL = np.geomspace(0.5, 0.002, 8)
HYENA = {
    r"hyena(_modal)?/in/kernel": normal(D**-0.5),
    r"hyena(_modal)?/out/kernel": normal(OUT * D**-0.5),
    r"hyena(_modal)?/(in|out)/bias": ZERO,
    r"hyena(_modal)?/conv_(kernel|bias)": uniform(3**-0.5),
    r"hyena(_modal)?/skip": normal(1.0),
}

TABLE = {
    "transformer": [TIED, RECIPE],
    "gpt2": [TIED, RECIPE, ("the recipe; transformers, GPT2PreTrainedModel: 0.02", {"position": normal(D**-0.5)})],
    "llama": [UNTIED, FLAT],
    "mixtral": [UNTIED, FLAT],
    "pangu": [
        UNTIED,
        RECIPE,
        ("the recipe: the papers are silent", {
            r"series_swiglu/(gate|up)/kernel": normal(D**-0.5),
            "series_swiglu/down/kernel": normal(OUT * 344**-0.5 / 2),
            "series_swiglu/scale": ONE,
            "series_swiglu/shift": fixed(lambda layer: np.array([[-1.0], [1.0]])),
            "shortcut_attention_0_down/kernel": normal(D**-0.5),
            "shortcut_attention_0_up/kernel": normal(OUT * 16**-0.5),
        }),
    ],
    "neox": [
        ("EleutherAI/gpt-neox, megatron/model/init_functions.py, small_init_init_method and wang_init_method", {
            "embedding|head": normal((2 / (5 * D)) ** 0.5),
            **attention(normal((2 / (5 * D)) ** 0.5), normal(2 / (L * D**0.5)), True),
            **mlp(normal((2 / (5 * D)) ** 0.5), normal(2 / (L * D**0.5))),
        }),
    ],
    "switch": [
        ("Fedus et al. 2022, §2.4: truncated, variance 0.1 / inputs; transformers, SwitchTransformersPreTrainedModel", {
            "embedding": normal(D**-0.5),  # multiplied by sqrt(width) in the model: theirs is 1
            **attention(Start("truncated", (0.1 / D) ** 0.5), Start("truncated", (0.1 / D) ** 0.5)),
            r"mlp/up/kernel|moe/up|moe/router/kernel": Start("truncated", (0.1 / D) ** 0.5),
            r"mlp/down/kernel|moe/down": Start("truncated", (0.1 / 512) ** 0.5),
        }),
    ],
    "griffin": [
        ("google-deepmind/recurrentgemma, jax/modules.py, RecurrentBlock, LocalAttentionBlock, MLPBlock, Embedder; "
         "jax/layers.py, RGLRU, BlockDiagonalLinear, Conv1D; six residual blocks", {
            "embedding": normal(D**-0.5),
            **attention(normal(D**-0.5), normal((2 / 6) ** 0.5 * D**-0.5)),
            r"geglu(_\d)?/(gate|up)/kernel": normal((2 * D) ** -0.5),
            r"geglu(_\d)?/down/kernel": normal((2 / 6) ** 0.5 * 384**-0.5),
            r"rglru(_1)?/[xy]/kernel": normal(D**-0.5),
            r"rglru(_1)?/o/kernel": normal((2 / 6) ** 0.5 * D**-0.5),
            r"rglru(_1)?/[ai]_kernel": normal(D**-0.5),
            r"rglru(_1)?/conv_kernel": normal((0.01 / 4) ** 0.5),
            r"rglru(_1)?/([xyo]/bias|[ai]_bias|conv_bias)": ZERO,
            r"rglru(_1)?/Lambda": Start("ring"),  # e^-2softplus of it is uniform in [0.9^2, 0.999^2]
        }),
    ],
    "jamba": [
        UNTIED,
        FLAT,
        mamba(16**-0.5),
    ],
    "samba": [
        TIED,
        mamba(8**-0.5),
        ("microsoft/Samba, lit_gpt/model.py, GPT._init_weights with mamba_init; eight additions", {
            **attention(uniform(D**-0.5), uniform((8 * D) ** -0.5)),
            r"swiglu(_1)?/(gate|up)/kernel": uniform(D**-0.5),
            r"swiglu(_1)?/down/kernel": uniform((8 * 344) ** -0.5),
        }),
    ],
    "mamba": [TIED, mamba(8**-0.5)],
    "mamba2": [
        TIED,
        ("state-spaces/mamba, mamba_ssm/modules/mamba2.py, Mamba2; mixer_seq_simple.py, _init_weights", {
            "mamba2/in/kernel": uniform(D**-0.5),
            "mamba2/conv_(kernel|bias)": uniform(4**-0.5),
            "mamba2/dt_bias": Start("step"),
            "mamba2/A_log": Start("exp_uniform", mean=8.5, std=15 / 12**0.5),  # exp of it is uniform in [1, 16]
            "mamba2/(D|norm_scale)": ONE,
            "mamba2/out/kernel": uniform((8 * 256) ** -0.5),
        }),
    ],
    "retnet": [
        ("microsoft/torchscale, examples/fairseq/models/retnet.py, Embedding; architecture/retnet.py, build_output_projection",
         UNTIED[1]),
        ("microsoft/torchscale, component/multiscale_retention.py, MultiScaleRetention; component/gate_linear_unit.py, GLU", {
            "retention/[qk]/kernel": uniform(2**-2.5 * (6 / (D + D)) ** 0.5),
            "retention/[vg]/kernel": uniform(2**-2.5 * (6 / (D + 2 * D)) ** 0.5),
            "retention/o/kernel": uniform(2**-1.0 * (6 / (D + 2 * D)) ** 0.5),
            "mlp/up/kernel": uniform(D**-0.5),
            "mlp/down/kernel": uniform(256**-0.5),
        }),
    ],
    "rwkv4": [
        ("BlinkDL/RWKV-LM, RWKV-v4neo/src/model.py, RWKV_TimeMix, RWKV_ChannelMix, generate_init_weight", {
            "embedding": uniform(3e-3),  # the learning rate
            "head": orthogonal(0.5 * (V / D) ** 0.5, V),
            "rwkv4/v/kernel": orthogonal(1.0, D),
            "rwkv4/[rko]/kernel": ZERO,
            "rwkv4/mix_k": fixed(MIXES["[xwk]"]),
            "rwkv4/mix_v": fixed(MIXES["v"]),
            "rwkv4/mix_r": fixed(MIXES["[rg]"]),
            "rwkv4/time_decay": fixed(lambda layer: -5 + 8 * LINE ** (0.7 + 1.3 * done(layer))),
            "rwkv4/time_first": fixed(lambda layer: np.log(0.3) + 0.5 * ZIGZAG),
            "rwkv_channel/k/kernel": orthogonal(2.0, 512),
            "rwkv_channel/[rv]/kernel": ZERO,
            "rwkv_channel/mix_[kr]": fixed(MIXES["[xwk]"]),
        }),
    ],
    "rwkv5": [
        ("BlinkDL/RWKV-LM, RWKV-v5/src/model.py, generate_init_weight, and of its history RWKV_TimeMix_RWKV5", {
            **RWKV_5,
            **{f"rwkv5/mix_{kind}": fixed(share) for kind, share in MIXES.items()},
            "rwkv_channel/mix_[kr]": fixed(MIXES["[xwk]"]),
        }),
    ],
    "rwkv6": [
        ("BlinkDL/RWKV-LM, RWKV-v5/src/model.py, RWKV_Tmix_x060, RWKV_CMix_x060, generate_init_weight", {
            **{"rwkv6/time_decay": fixed(lambda layer: -6 + 5 * LINE ** (0.7 + 1.3 * done(layer)))},
            **RWKV_5,
            **{f"rwkv6/mix_{kind}": fixed(lambda layer, share=share: 1 - share(layer)) for kind, share in MIXES.items()},
            "rwkv6/(mix|decay)_a": ZERO,
            "rwkv6/(mix|decay)_b": uniform(0.01),
            "rwkv_channel/mix_[kr]": fixed(lambda layer: 1 - RAMP ** (left(layer) ** 3)),
        }),
    ],
    "rwkv7": [
        ("BlinkDL/RWKV-LM, RWKV-v7/train_temp/src/model.py, RWKV_Tmix_x070, RWKV_CMix_x070, generate_init_weight", {
            **RWKV_5,
            **{f"rwkv7(:first)?/{name}": fixed(value) for name, value in RWKV_7.items()},
            **{
                f"rwkv7(:first)?/mix_{kind}": fixed(lambda layer, power=power: 1 - RAMP ** (power * left(layer)))
                for kind, power in SHARES.items()
            },
            "rwkv7(:first)?/[rv]/kernel": orthogonal(1.0, D),
            "rwkv7(:first)?/k/kernel": orthogonal(0.1, D),
            "rwkv7(:first)?/o/kernel": ZERO,
            "rwkv7(:first)?/bonus": fixed(-0.04),
            "rwkv7(:first)?/mix_rate": fixed(1.02),
            "rwkv7(:first)?/(decay|rate|value|gate)_a": ZERO,
            "rwkv7(:first)?/(decay|rate|value|gate)_b": orthogonal(0.1, D),
            "rwkv7(:first)?/ln_x_scale": SCALE_X,
            "rwkv7(:first)?/ln_x_bias": ZERO,
            "rwkv_channel/mix_k": fixed(lambda layer: 1 - RAMP ** (left(layer) ** 4)),
        }),
    ],
    "hyena": [
        TIED,
        ("HazyResearch/safari, src/models/sequence/hyena.py, HyenaOperator; simple_lm.py, _init_weights: 0.02",
         HYENA | mlp(normal(D**-0.5), normal(OUT * 256**-0.5))),
        ("HazyResearch/safari, src/models/sequence/hyena.py, HyenaFilter, without a language model's 0.02: see the config card", {
            "hyena/filter/(kernel|bias)_0": uniform(5**-0.5),
            "hyena/filter/((kernel|bias)_[12]|kernel_out)": uniform(16**-0.5),
            "hyena/filter/freq": fixed(4.0),
            "hyena/filter/position": Start("position"),
        }),
    ],
    "stripedhyena": [
        UNTIED,
        RECIPE,
        ("the recipe: the training is not published", HYENA | {
            "hyena_modal/poles": Start("poles"),
            "hyena_modal/residues": Start("residues"),
        }),
    ],
    "h3": [
        TIED,
        ("HazyResearch/safari, src/models/sequence/h3.py, H3; simple_lm.py, _init_weights: 0.02 for 1 / sqrt(inputs)", {
            "h3/[qkvo]/kernel": normal(D**-0.5),
            "h3/[qkvo]/bias": ZERO,
            **mlp(normal(D**-0.5), normal(OUT * 512**-0.5)),
        }),
        ("HazyResearch/safari, src/models/sequence/ssm/ss_kernel.py, SSKernel", {
            **{f"h3/{name}": start for name, start in S4D.items()},
            "h3/shift_B": fixed(lambda layer: np.eye(1, 32)[0]),
            "h3/shift_C": uniform(32**-0.5),
            "h3/shift_D": normal(1.0),
        }),
    ],
    "s4d": [
        ("state-spaces/s4, src/models/nn/adaptive_softmax.py, AdaptiveEmbedding", TIED[1]),
        ("state-spaces/s4, src/models/sequence/kernels/ssm.py, SSMKernelDiag; kernels/fftconv.py, FFTConv",
         {f"s4d/{name}": start for name, start in S4D.items()}),
        ("state-spaces/s4, src/models/nn/linear.py, LinearActivation, in s4block.py and ffn.py", {
            "s4d/out/(kernel|bias)": uniform(D**-0.5),
            **mlp(uniform(D**-0.5), uniform(512**-0.5), uniform(D**-0.5), uniform(512**-0.5)),
        }),
    ],
    "gru": [TIED, RECIPE, ("the recipe", {
        "gru/in/kernel": normal(D**-0.5), "gru/recurrent": normal(16**-0.5), "gru/o/kernel": normal(OUT * D**-0.5),
        "gru/bias|gru/in/bias": ZERO,
    })],
    "lstm": [TIED, RECIPE, ("the recipe; Jozefowicz et al. 2015, §5: the forget gate's bias is 1", {
        "lstm/in/kernel": normal(D**-0.5), "lstm/recurrent": normal(16**-0.5), "lstm/o/kernel": normal(OUT * D**-0.5),
        "lstm/bias": fixed(lambda layer: np.array([[0.0], [1.0], [0.0], [0.0]])),
    })],
    "minlstm": [TIED, RECIPE, ("the recipe; Jozefowicz et al. 2015, §5", {
        "minlstm/[fiv]/kernel": normal(D**-0.5), "minlstm/o/kernel": normal(OUT * D**-0.5), "minlstm/forget_bias": ONE,
        "minlstm/conv_kernel": uniform(4**-0.5), "minlstm/conv_bias": ZERO,
    })],
    "sru": [TIED, RECIPE, ("asappresearch/sru, sru/modules.py, SRUCell.reset_parameters", {
        "sru/[ufr]/kernel": uniform((3 / D) ** 0.5), "sru/v_[fr]": uniform(1.5**0.5), "sru/f_bias": ZERO,
        "sru/r_bias": fixed(-2.0),
    })],
    "unireplknet": [TIED, ("the recipe: no language model is published", {
        "unireplk/conv": normal(13**-0.5), r"unireplk/conv_3_\d": normal(3**-0.5), "unireplk/conv_5_1": normal(5**-0.5),
        "unireplk/conv_7_2": normal(7**-0.5), r"unireplk/scale(_\d_\d)?": fixed(6**-0.5), "unireplk/layer_scale": ONE,
        "unireplk/(conv_bias|grn_beta|grn_gamma|(squeeze|excite|up|down)/bias)": ZERO,
        "unireplk/(squeeze|up)/kernel": normal(D**-0.5), "unireplk/excite/kernel": normal(32**-0.5),
        "unireplk/down/kernel": normal((6 * 512) ** -0.5),
    })],
    "gdn": [UNTIED, FLAT, (FLA, delta("gdn") | {
        "gdn/a/kernel": normal(D**-0.5), "gdn/dt_bias": Start("step"),
        "gdn/A_log": Start("exp_uniform", mean=8.0, std=16 / 12**0.5), "gdn/g/kernel": normal(D**-0.5),
        "gdn/o/kernel": normal(192**-0.5),
    })],
    "kda": [UNTIED, FLAT, KDA],
    "gla": [UNTIED, FLAT, (FLA, {
        "gla/(q|k|v|g|w_a)/kernel": normal(D**-0.5), "gla/w_b/kernel": normal(16**-0.5), "gla/w_b/bias": ZERO,
        "gla/o/kernel": normal(D**-0.5), "gla/norm_scale": ONE,
    })],
    "lfm2": [TIED, FLAT, NORMED, ("transformers, Lfm2PreTrainedModel: initializer_range for 1 / sqrt(inputs)", {
        r"lfm_conv(_1)?/(in|out)/kernel": normal(D**-0.5), r"lfm_conv(_1)?/conv_kernel": normal(3**-0.5),
    })],
    "qwen3_next": [UNTIED, FLAT, NORMED, (FLA, delta("gdn") | {
        r"gdn(_\d)?/(a|g|o)/kernel": normal(D**-0.5), r"gdn(_\d)?/dt_bias": Start("step"),
        r"gdn(_\d)?/A_log": Start("exp_uniform", mean=8.0, std=16 / 12**0.5),
    })],
    "kimi_linear": [UNTIED, FLAT, KDA, ("transformers, KimiLinearPreTrainedModel: initializer_range for 1 / sqrt(inputs)", {
        "mla/(q|kv_down)/kernel": normal(D**-0.5), "mla/[kv]_up": normal(32**-0.5), "mla/kv_norm/scale": ONE,
        "mla/o/kernel": normal(96**-0.5),
    })],
    "granite_hybrid": [TIED, FLAT, ("state-spaces/mamba, mamba_ssm/modules/mamba2.py, Mamba2; two additions a layer", {
        "mamba2/in/kernel": uniform(D**-0.5), "mamba2/conv_(kernel|bias)": uniform(4**-0.5), "mamba2/dt_bias": Start("step"),
        "mamba2/A_log": Start("exp_uniform", mean=8.5, std=15 / 12**0.5), "mamba2/(D|norm_scale)": ONE,
        "mamba2/out/kernel": uniform((8 * 256) ** -0.5),
    })],
}  # fmt: skip

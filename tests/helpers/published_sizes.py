"""Numbers of parameters of published models. Numbers are from released checkpoints or the paper's tables. Texts are names of
sizes, which are rounded and sometimes exclude the embedding. None: only a name is published, and it is far off (RetNet counts
neither embedding nor head)."""

PUBLISHED = {
    "gdn": {"1.3b": None},  # a width and a depth, but no count
    "gla": {"340m": None, "1.3b": None},
    "gpt2": {"124m": 124_439_808, "355m": 354_823_168, "774m": 774_030_080, "1.5b": 1_557_611_200},
    "granite_hybrid": {"350m": "340M", "1b": "1.5B", "3b": "3.2B", "7b-a1b": "7B", "32b-a9b": "32B"},
    "griffin": {"100m": None, "200m": None, "400m": None, "1.3b": "1.3B", "3b": "3B", "7b": "7B", "14b": "14B"},
    "h3": {"125m": "125M", "355m": "355M", "1.3b": "1.3B", "2.7b": "2.7B"},
    "hyena": {"125m": "125M", "125m-slim": "125M", "153m": "153M", "355m": "355M", "1.3b": "1.3B"},
    "jamba": {"v0.1": 51_570_323_328, "1.5-large": "398B"},
    "kimi_linear": {"48b-a3b": "48B"},
    "lfm2": {"350m": 354_483_968, "700m": 742_489_344, "1.2b": 1_170_340_608, "2.6b": 2_569_272_320},
    "llama": {
        "7b": 6_738_415_616, "13b": 13_015_864_320, "33b": 32_528_943_616, "65b": 65_285_660_672, "2-7b": 6_738_415_616,
        "2-13b": 13_015_864_320, "2-70b": 68_976_648_192, "smollm2-135m": 134_515_008, "smollm2-360m": 361_821_120,
        "smollm2-1.7b": 1_711_376_384,
    },
    "mamba": {
        "130m": 129_135_360, "370m": 371_516_416, "790m": 793_204_224, "1.4b": 1_372_178_432, "2.8b": 2_768_345_600,
        "falcon-7b": 7_272_665_088,
    },
    "mamba2": {"130m": 128_989_632, "370m": "370M", "780m": 780_161_280, "1.3b": "1.3B", "2.7b": 2_702_599_680},
    "mixtral": {"8x7b": 46_702_792_704, "8x22b": 140_630_071_296},
    "neox": {
        "70m": 70_426_624, "160m": 162_322_944, "410m": 405_334_016, "1b": 1_011_781_632, "1.4b": 1_414_647_808,
        "2.8b": 2_775_208_960, "6.9b": 6_857_302_016, "12b": 11_846_072_320, "20b": 20_554_567_680,
    },
    "pangu": {"1b": "1B", "7b": "7B", "pro-tiny": "1B"},
    "qwen3_next": {"80b-a3b": 79_674_391_296},
    "retnet": {"1.3b": None, "2.7b": "2.7B", "6.7b": "6.7B"},
    "rwkv4": {
        "169m": 169_342_464, "430m": 430_397_440, "1.5b": 1_515_106_304, "3b": 2_984_627_200, "7b": 7_392_649_216, "14b": "14B",
    },
    "rwkv5": {"0.4b": 461_721_600, "1.5b": 1_577_754_624, "3b": 3_062_999_040, "7b": 7_518_044_160},
    "rwkv6": {"1.6b": 1_599_873_024, "3b": 3_099_863_040, "7b": 7_635_746_816},
    "rwkv7": {"0.1b": 191_034_624, "0.4b": 450_767_872, "1.5b": 1_527_404_544, "2.9b": 2_947_735_040},
    "s4d": {"wikitext": None},
    "samba": {"421m": "421M", "1.3b": "1.3B"},
    "stripedhyena": {"7b": "7.65B"},
    "switch": {"base-8": None, "base-64": None, "base-128": None, "base-256": None, "large-128": None},  # without the encoder
    "transformer": {"125m": "125M", "350m": "350M", "1.3b": "1.3B"},
}  # fmt: skip


def allowed(figure: int | str) -> tuple[float, float]:
    """(figure, relative tolerance): 0.5 % for a number, 5 % for a name."""
    if isinstance(figure, int):
        return figure, 0.005
    return float(figure[:-1]) * {"M": 1e6, "B": 1e9}[figure[-1]], 0.05

"""Subjects of the laws by name, made once per process so that tests share compiled programs."""

import functools

import pytest

from jaxseq import testing

# Options of mixers that are tested in addition to the defaults: no architecture in the default run uses them.
MIXER_OPTIONS = {  # named by the mixer and one more word
    "attention sink": {"sink": True, "cap": 5.0, "kv_heads": 2},
    "forgetting_attention pro": {
        "qk_norm": True, "output_norm": True, "output_gate": True, "kv_shift": True, "kv_heads": 2,
    },
    "gdn value_heads": {"heads": 2, "value_heads": 4, "value_size": 5},
    "mamba selected_norm": {"selected_norm": "scaled"},
    "mla query_rank": {"query_rank": 6, "rotary": False},
    "moe bias": {"bias": True},
    "native_sparse_attention paper": {
        "block": 4, "compressed_block": 2, "stride": 1, "selected": 4, "window": 3, "learned": True, "hidden": 3,
        "separate": True,
    },
    "normed_attention joint": {"joint": True, "kv_heads": 2},
    "normed_attention gated": {"gated": True, "kv_heads": 2},
    "shared_moe router": {"router": "sigmoid", "groups": 2, "shared_gate": True},
}  # fmt: skip

# An op of each kind: of state, and of what a form computes.
KINDS = {"attention", "dplr_ssm", "long_conv", "lstm", "running_mean", "short_conv", "wkv7"}


def cells(package: str, names: tuple[str, ...], laws, *, slow=lambda name, law: False) -> list:
    """All pairs of a name and a law; one worker runs all laws of a name. slow(name, law): whether the pair is a slow test."""

    def marks(name, law):
        return [pytest.mark.xdist_group(f"{package}/{name}"), *([pytest.mark.slow] if slow(name, law) else [])]

    return [pytest.param(name, law, marks=marks(name, law), id=f"{name}-{law}") for name in names for law in laws]


# Laws of ops that kernels must satisfy; those that take minutes in interpret mode are separate. Not `loops`: a kernel's steps are
# those of its grid; `summary` and `example` do not concern forms, and the cases of `stress` are too long.
KERNELS = {"quick": ("unit", "padding", "causality", "spec"), "long": ("split", "none", "reset", "gradient", "dtype")}


@functools.cache
def of_op(name: str):
    return [subject for subject in testing.subjects(name) if subject.kind == "op"]


def check(record_property, subject, law: str):
    """Check the law and record its largest error for the table; if it raises, only the failure is recorded."""
    error = float("nan")
    try:
        error = testing.check_law(subject, law)
    finally:
        record_property("law", (subject.name, law, error))

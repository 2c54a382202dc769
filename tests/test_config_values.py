"""Every field of every config: values of another type or out of range are refused in one line that names the field."""

import functools
import math
import sys

import pytest

import jaxseq
from jaxseq import ranges, registry
from jaxseq.config import from_dict, to_dict

module = sys.modules["jaxseq.config"]  # `jaxseq.config` is the function


def fields() -> dict[str, tuple[str, object]]:
    """{section.field, with all mixers as one section: (a config that has it, its dotted name there)}"""
    found = {}
    for name in registry.names("configs"):
        for section, values in jaxseq.config(name).to_dict().items():
            for key, value in values.items():
                inner = {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
                for dotted in inner:
                    place = "mixers" if "." in dotted else section  # fields with the same name have the same range
                    found.setdefault(f"{place}.{dotted.rpartition('.')[2]}", (name, f"{section}.{dotted}"))
    return found


FIELDS = fields()
WRONG = ("1e", [1], True, -1e31, 1e13, math.nan, None)


@functools.cache
def editable(name: str):
    return jaxseq.config(name).copy_and_resolve_references().unlock()


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_a_field_takes_nothing_that_it_cannot_mean(field):
    name, key = FIELDS[field]
    *path, last = key.split(".")
    place = config = editable(name)
    for part in path:
        place = place[part]
    kind, before, refused = default_type(name, key), place[last], 0
    for value in WRONG:
        try:
            with config.ignore_type():
                place[last] = value
            module.check(config)
            found = place[last]
        except jaxseq.UserError as error:
            refused += 1
            assert (last in str(error) or str(value) in str(error)) and "\n" not in str(error), (key, value, str(error))
            continue
        finally:
            with config.ignore_type():
                place[last] = before
        if found is not None:  # else the field may be empty
            assert type(found) is kind, (key, value)
            assert kind not in (int, float) or -1e30 <= found <= 1e30, (key, value)
    assert refused >= {int: 5, float: 4, bool: 5, str: 5}[kind], f"{key} takes almost anything"


default = functools.cache(jaxseq.config)


def default_type(name: str, key: str) -> type:
    *path, last = key.split(".")
    place = default(name)
    for part in path:
        place = place[part]
    return place.get_ref(last).get_type()


@pytest.mark.parametrize(("key", "value"), [("model.width", "x"), ("train.lr", [1]), ("data.seed", True), ("train.steps", None)])
def test_a_config_json_with_a_wrong_type(key, value):
    data = to_dict(jaxseq.config("transformer"))
    section, last = key.split(".")
    data[section][last] = value
    with pytest.raises(jaxseq.UserError, match=key):
        from_dict(data)


@pytest.mark.parametrize("name", registry.names("configs"))
def test_what_the_built_in_configs_say_is_in_range(name):
    for size in ("", *getattr(registry.load("configs", name), "SIZES", {})):
        config = jaxseq.config(f"{name}:{size}" if size else name)
        assert to_dict(from_dict(to_dict(config))) == to_dict(config)


@pytest.mark.parametrize(
    ("field", "value"),
    [("model.width", 1e9), ("model.width", 0), ("model.attention.window", 0), ("model.attention.theta", "nan"),
     ("model.dropout", 2), ("train.lr", "none"), ("train.lr", -1), ("train.steps", 0), ("train.clip", "inf"), ("mesh.data", 0),
     ("train.seed", -1), ("model.stack", "9999999999*(attention)")],
)  # fmt: skip
def test_overrides_are_held_to_the_same(field, value):
    with pytest.raises(jaxseq.UserError, match=field):
        jaxseq.config("transformer", **{field: value})


@pytest.mark.parametrize("data", [[], 3, None, {"model": 3}, {"model": {"kind": ["lm"]}}, {"model": {"stack": 3}}, {"x": {}},
                                  {"model": {"attention": {"a.b": 1}}}, {"model": {"a.b": {}}}, {"train": {"lr": {".": 1}}}])
def test_a_config_json_that_is_none(data):
    with pytest.raises(jaxseq.UserError):
        from_dict(data)


def test_ranges():
    assert 1 in ranges.Range(0, 1) and 1 not in ranges.Range(0, 1, ")") and 0 not in ranges.Range(0, 1, "()")
    assert math.nan not in ranges.Range(-1e30, 1e30)
    assert ranges.check("x.steps", 3.0, int, False) == 3 and ranges.check("x.lr", 1, float, False) == 1.0
    own = {"steps": ranges.Range(0, 1)}  # a range declared by a mixer
    with pytest.raises(jaxseq.UserError, match="x.steps=3"):
        ranges.check("x.steps", 3, int, False, own)

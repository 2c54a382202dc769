"""Configs of older schemas keep their meaning, even if defaults have changed."""

import json

import pytest
from helpers.places import FILES

import jaxseq
from jaxseq import schemas
from jaxseq.config import from_dict, to_dict
from jaxseq.errors import UserError
from jaxseq.train.workdirs import HARMLESS, check_config, flat, write_config

OLD = json.loads((FILES / "old_runs" / "defaults_0.json").read_text("utf-8"))


@pytest.mark.parametrize("name", OLD)
def test_an_older_run_of_every_built_in_config_goes_on_by_its_name(name):
    """If this fails, a default has changed: raise SCHEMA in jaxseq/schemas.py, or list the field in one of its steps."""
    run = flat(to_dict(from_dict(OLD[name])))
    today = flat(to_dict(jaxseq.config(name)))
    own = schemas.own_defaults(run, today, since=0)
    merged = flat(to_dict(jaxseq.config(name, **own)))
    harmful = {key for key in run if merged.get(key) != run[key] and not key.startswith((*HARMLESS, "data.tokenizer"))}
    assert not harmful
    assert "model.embedding_std" in own and not schemas.own_defaults(run, today, since=schemas.SCHEMA)


def test_later_fields_of_an_old_config_get_what_was_computed_then():
    old = {"model": {"stack": "2*(attention:local swiglu)", "attention:local": {"heads": 2}, "swiglu": {"initial": "llama"}}}
    model = schemas.migrate(old)["model"]
    assert model["attention:local"] == {"heads": 2, "initial": "gpt2"} and model["swiglu"] == {"initial": "llama"}
    assert model["scaled_embedding"] is False and "initial" not in old["model"]["attention:local"]
    today = old | {"schema": schemas.SCHEMA}
    assert schemas.migrate(today) == old and len(schemas.STEPS) == schemas.SCHEMA
    assert to_dict(from_dict(today))["schema"] == schemas.SCHEMA


@pytest.mark.parametrize("number", [schemas.SCHEMA + 1, -1, "1", 0.5, True, None])
def test_a_number_of_no_known_version_is_refused_in_a_line(number):
    with pytest.raises(UserError, match="schema") as refused:
        from_dict({"schema": number})
    assert "\n" not in str(refused.value) and ("pip install" in str(refused.value)) == (number == schemas.SCHEMA + 1)


def test_a_workdir_tells_which_version_began_it_after_it_was_written_again(tmp_path):
    path, config = tmp_path / "config.json", jaxseq.config("transformer")
    write_config(tmp_path, config)
    assert schemas.begun(json.loads(path.read_text())) == schemas.SCHEMA
    path.write_text(json.dumps(OLD["transformer"]))
    for _ in range(2):
        write_config(tmp_path, config)
        data = json.loads(path.read_text())
        assert (data["schema"], schemas.begun(data)) == (schemas.SCHEMA, 0)
    check_config(tmp_path, config, trained=True)
    path.write_text(json.dumps(data | {"schema": schemas.SCHEMA + 1}))
    with pytest.raises(UserError, match="newer jaxseq"):
        check_config(tmp_path, config, trained=True)

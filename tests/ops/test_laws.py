"""Every op against every law. New op files are found automatically. The law of hard inputs has its own file, test_stress.py."""

import pytest
from helpers.laws import cells, check, of_op

from jaxseq import registry, testing


@pytest.mark.cell
@pytest.mark.parametrize("name, law", cells("ops", registry.names("ops"), [law for law in testing.LAWS["op"] if law != "stress"]))
def test_law(name, law, record_property):
    for subject in of_op(name):
        check(record_property, subject, law)

"""Every op against every law. New op files are found automatically. The law of hard inputs has its own file, test_stress.py."""

import pytest
from helpers.laws import KINDS, cells, check, of_op

from jaxseq import registry, testing

LAWS = [law for law in testing.LAWS["op"] if law != "stress"]
SLOW = ("dtype", "none")  # for an op of each kind in the default run


@pytest.mark.cell
@pytest.mark.parametrize(
    "name, law", cells("ops", registry.names("ops"), LAWS, slow=lambda name, law: law in SLOW and name not in KINDS)
)
def test_law(name, law, record_property):
    for subject in of_op(name):
        check(record_property, subject, law)

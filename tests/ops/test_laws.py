"""Every op against every law. New op files are found automatically."""

import pytest
from helpers.laws import cells, check, of_op

from jaxseq import registry, testing


@pytest.mark.cell
@pytest.mark.parametrize("name, law", cells("ops", registry.names("ops"), testing.LAWS["op"]))
def test_law(name, law, record_property):
    for subject in of_op(name):
        check(record_property, subject, law)

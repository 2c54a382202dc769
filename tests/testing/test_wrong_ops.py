"""Every law fails for the ops that break it: a law that cannot fail proves nothing. The default run breaks one op of each kind;
the others are slow tests."""

import pytest
from helpers.laws import KINDS, cells, of_op

from jaxseq import registry, testing
from jaxseq.testing.wrong import wrong_ops

NAMES = registry.names("ops")


def test_every_law_has_a_wrong_op():
    some_op = registry.load("ops", NAMES[0])
    assert {law for law, _ in wrong_ops(some_op)} == set(testing.LAWS["op"])
    assert {registry.load("ops", name).CUT for name in KINDS} == {registry.load("ops", name).CUT for name in NAMES}


@pytest.mark.parametrize("name, law", cells("ops", NAMES, testing.LAWS["op"], slow=lambda name, law: name not in KINDS))
def test_wrong_op_is_caught(name, law):
    subject = of_op(name)[0]
    wrong = [op for broken, op in wrong_ops(subject.op) if broken == law]
    assert wrong
    for op in wrong:
        with pytest.raises(testing.LawBroken, match=f"law '{law}'"):
            testing.check_law(subject.variant(op), law)

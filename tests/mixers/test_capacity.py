"""The capacity of the states of all mixers."""

import pytest

from jaxseq import registry
from jaxseq.errors import UserError


@pytest.mark.parametrize("name", registry.names("mixers"))
def test_a_mixer_that_must_know_its_context_says_how_much_is_left(name):
    """Without it, tokens beyond the capacity would silently overwrite others."""
    mixer = registry.load_class("mixers", name)(width=16, layers=2)
    try:
        mixer.init_state(2, None)
    except UserError:
        left_B = mixer.remaining_capacity(mixer.init_state(2, 5))
        assert left_B is not None and left_B.shape == (2,) and (left_B == 5).all()
    else:
        assert mixer.remaining_capacity(mixer.init_state(2, 5)) is None

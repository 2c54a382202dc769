"""`ring:int8` sets a field of every attention that can have it, and names the other mixers with a state."""

import jax
import pytest

import jaxseq
from jaxseq import UserError, recipes
from jaxseq.compress._work import Work


def applied(stack: str, recipe: str = "ring:int8") -> Work:
    config = jaxseq.config("transformer", **{"model.stack": stack, "model.width": 16, "model.vocab": 11})
    ((module, argument),) = recipes.steps("compress", recipe)
    return module.apply(Work(config, {"embedding": 1}, lambda line: None, None), argument)


def test_what_has_a_ring_gets_it():
    made = applied("2*(attention mlp) + (differential_attention mamba big_bird mlp)")
    model = made.config.model
    assert model.attention.ring == model.differential_attention.ring == "int8" and model.big_bird.ring == ""
    assert [prefix for prefix, _ in made.left] == ["blocks_1/mamba", "blocks_1/big_bird"] and made.params == {"embedding": 1}
    ring, _ = jax.eval_shape(lambda: made.model.init_state(1, 8)).segments[0]
    assert ring.k_BGSK.dtype == "int8"


@pytest.mark.parametrize(
    ("stack", "recipe", "told"),
    [
        ("1*(mamba)", "ring:int8", r"changes nothing of this model \(Mamba has no ring\)"),
        ("1*(attention)", "ring", "write ring:int8"),
        ("1*(attention)", "ring:int4", "write ring:int8"),
    ],
)
def test_what_is_refused(stack, recipe, told):
    with pytest.raises(UserError, match=told):
        applied(stack, recipe)

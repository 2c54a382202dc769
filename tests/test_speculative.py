"""Speculative decoding: the tokens, or their distribution, are the model's own; rejected tokens leave no trace."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.compiler import compiled
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxseq
from jaxseq import generation, sampling, speculative
from jaxseq.data import ByteTokenizer

GREEDY, SAMPLED = {"temperature": 0}, {"temperature": 0.9, "top_k": 8, "top_p": 0.95}
# Full attention, whose count is lowered. States that are computed again: convolution inputs with a recurrence, a matrix, a
# recurrence with gates that depend on it, the inputs of a long convolution, a window of keys that are soon overwritten.
TARGETS = {name: (name, {}) for name in ("transformer", "mamba", "rwkv7", "lstm", "hyena")}
TARGETS["window"] = ("transformer", {"attention.window": 8})
VOCAB = 12


@functools.cache
def tiny(name: str, **settings):
    """(model, params) of one block."""
    settings = {"vocab": VOCAB, "width": 16, "stack": re.sub(r"\d+\*", "1*", jaxseq.config(name).model.stack)} | settings
    model = jaxseq.build(jaxseq.config(name, **{f"model.{field}": value for field, value in settings.items()}))
    params = model.init(jax.random.key(1), jnp.zeros((1, 2), jnp.int32))["params"]
    return model, shaken(params, lambda x, noise: 2 * x + 0.2 * noise)  # far from uniform, and nothing is zero


def shaken(params, change):
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    return structure.unflatten([change(x, jax.random.normal(key, x.shape)) for x, key in zip(leaves, keys, strict=True)])


@functools.cache
def alike(name: str, **settings):
    """A draft model that often chooses as `tiny(name)` does."""
    model, params = tiny(name, **settings)
    return model, shaken(params, lambda x, noise: x * (1 + 0.05 * noise))


def prompts():
    random = np.random.default_rng(0)
    return [random.integers(0, VOCAB, n).tolist() for n in (1, 9, 40)]


def run(target, draft, prompts, **options):
    """(ids of each row, the sums of their Drafts)."""
    ids, drafts = [[] for _ in prompts], []
    for piece in generation.stream(*target, prompts, draft=draft, **options):
        ids[piece.row] += piece.tokens
        drafts += [piece.drafts] if piece.end else []
    return ids, generation.Drafts(*map(sum, zip(*drafts, strict=True)))


def assert_likeliest(target, prompts, ids):
    """Each token has the largest logit, up to rounding, in a plain call with the whole sequence."""
    model, params = target
    whole = [[*prompt, *row[:-1]] for prompt, row in zip(prompts, ids, strict=True)]
    tokens = jnp.array([row + [0] * (max(map(len, whole)) - len(row)) for row in whole])
    logits, _ = jax.jit(lambda params, tokens: model.apply({"params": params}, tokens, form="parallel"))(params, tokens)
    for prompt, row, logits_TV in zip(prompts, ids, np.asarray(logits), strict=True):
        logits_TV = logits_TV[len(prompt) - 1 :][: len(row)]
        np.testing.assert_allclose(logits_TV[np.arange(len(row)), row], logits_TV.max(axis=1), atol=1e-4)


# Slow tests: states of rwkv7 are of the kinds of mamba's, and the state of lstm is simpler.
ALIKE = ("rwkv7", "lstm")


@pytest.mark.parametrize("target", [pytest.param(n, marks=[pytest.mark.slow] if n in ALIKE else []) for n in TARGETS])
def test_greedy_tokens_are_the_models_own(target):
    """With proposals of which some are accepted and some are rejected."""
    name, settings = TARGETS[target]
    model, draft = tiny(name, **settings), alike(name, **settings)
    ids, drafts = run(model, draft, prompts(), max_tokens=30, draft_tokens=3, **GREEDY)
    assert [len(row) for row in ids] == [30] * 3 and drafts.tokens == 90
    assert 0.1 < drafts.accepted / drafts.proposed < 0.95
    assert_likeliest(model, prompts(), ids)


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_row_alone_and_in_company(options):
    options = options | {"rows": 3, "max_tokens": 20}
    target, draft = tiny("mamba"), alike("mamba")
    together, _ = run(target, draft, prompts(), seed=7, **options)
    assert len({tuple(ids) for ids in together}) == 3
    for i, prompt in enumerate(prompts()):
        assert run(target, draft, [prompt], seed=7 + i, **options)[0] == [together[i]]
    for max_tokens in (1, 6):  # less than a round; not a multiple of the tokens of a round
        fewer, drafts = run(target, draft, prompts(), seed=7, **options | {"max_tokens": max_tokens})
        assert fewer == [ids[:max_tokens] for ids in together] and drafts.tokens == 3 * max_tokens


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_draft_that_equals_the_model_proposes_its_tokens(options):
    """All are accepted, and they are those of plain decoding with the same seed."""
    target = tiny("transformer")
    ids, drafts = run(target, target, prompts(), max_tokens=23, seed=3, **options)
    assert drafts == (3 * 5, 3 * 23, 3 * (4 * 4 + 3), 3 * (4 * 4 + 3))
    assert ids == jaxseq.generate(*target, prompts(), max_tokens=23, seed=3, **options)


def test_programs_are_compiled_once(caplog):
    """Also for parameters of a checkpoint, which are on a mesh."""
    model, params = tiny("transformer")
    params = jax.device_put(params, NamedSharding(Mesh(np.array(jax.devices()[:1]), ("data",)), PartitionSpec()))
    programs = compiled(lambda: run((model, params), (model, params), [[1] * 9], max_tokens=40), caplog)
    assert (programs["decode"], programs["_prefill"]) == (1, 1)


def test_stop_ids_and_strings_end_a_row():
    target, draft, options = tiny("mamba"), alike("mamba"), {"max_tokens": 30, "draft_tokens": 3, **GREEDY}
    (ids,), _ = run(target, draft, prompts()[:1], **options)
    assert run(target, draft, prompts()[:1], stop=[ids[17]], **options)[0] == [ids[: ids.index(ids[17])]]
    for last in range(10, 14):  # wherever in a round
        text = bytes(ids[last - 2 : last + 1])
        stop = {"stop": text.decode(), "tokenizer": ByteTokenizer()}
        pieces = list(generation.stream(*target, prompts()[:1], draft=draft, **stop, **options))
        assert sum((piece.tokens for piece in pieces), []) == ids[: bytes(ids).index(text)]
        assert pieces[-1].end == "stop" and pieces[-1].drafts.calls > 0


def test_no_position_beyond_the_learned_ones_is_read():
    target, prompt = tiny("gpt2", max_positions=24), prompts()[1]
    (ids,), _ = run(target, alike("transformer"), [prompt], max_tokens=16, **GREEDY)
    assert_likeliest(target, [prompt], [ids])
    with pytest.raises(jaxseq.UserError, match="24 positions that the draft model has learned"):
        jaxseq.generate(*tiny("transformer"), [prompt], draft=target, max_tokens=17)


SMALL = {"vocab": 4, "width": 8}
FLAT, SHARP = {"temperature": 1.0}, {"temperature": 0.7, "top_k": 3, "top_p": 0.9}
NUMBER = 3  # tokens whose joint distribution is tested
ROWS, SAMPLES = 2000, 8000


def exact(options) -> np.ndarray:
    """The probabilities of all sequences of NUMBER tokens after the prompt [0], by plain calls of the model."""
    model, params = tiny("transformer", **SMALL)
    tokens = np.array(list(itertools.product(range(4), repeat=NUMBER)))
    logits, _ = model.apply({"params": params}, jnp.array([[0, *row[:-1]] for row in tokens]), form="parallel")
    settings = options["temperature"], options.get("top_k", 0), options.get("top_p", 1.0)
    p_NTV = jax.nn.softmax(sampling.filtered(logits, sampling.Sampling(*settings, None, None)))
    return np.prod(np.take_along_axis(np.asarray(p_NTV), tokens[..., None], axis=2)[..., 0], axis=1)


def deviation(options) -> float:
    """Pearson's chi-square of sampled sequences: by how many of its standard deviations it is above its expectation."""
    options = {"max_tokens": NUMBER, "draft_tokens": 2, "rows": ROWS} | options
    ids, drafts = run(tiny("transformer", **SMALL), tiny("lstm", **SMALL), [[0]] * SAMPLES, **options)
    assert 0.2 < drafts.accepted / drafts.proposed < 0.9
    counts = np.bincount(np.array(ids) @ 4 ** np.arange(NUMBER)[::-1], minlength=4**NUMBER)
    wanted = SAMPLES * exact(options)
    assert counts[wanted == 0].sum() == 0
    rare = wanted < 5
    counts, wanted = (np.append(x[~rare], x[rare].sum()) for x in (counts, wanted))
    degrees = np.sum(wanted > 0) - 1
    return (np.sum((counts - wanted) ** 2 / np.maximum(wanted, 1e-9)) - degrees) / np.sqrt(2 * degrees)


@pytest.mark.parametrize("options", [pytest.param(FLAT, id="flat", marks=pytest.mark.slow), pytest.param(SHARP, id="sharp")])
def test_samples_have_the_models_distribution(options):
    assert abs(deviation(options)) < 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("rest", lambda right, p_BV, q_BV: p_BV),  # a rejected token is replaced by a sample of p
        ("verify", lambda right, p_BTV, q_BTV, *rest: right(p_BTV, q_BTV / 1.3, *rest)),  # too much is accepted
    ],
)
def test_other_rules_have_other_distributions(name, wrong, monkeypatch):
    monkeypatch.setattr(speculative, name, functools.partial(wrong, getattr(speculative, name)))
    speculative.decode.clear_cache()
    try:
        assert deviation(FLAT) > 10
    finally:
        speculative.decode.clear_cache()


@pytest.mark.parametrize(
    ("name", "vocab", "draft_tokens", "words"),
    [("lstm", VOCAB, 0, "draft_tokens=0"), ("lstm", 13, 4, "vocabulary of 13"), ("bert", VOCAB, 4, "causal language model")],
)
def test_draft_models_that_do_not_fit(name, vocab, draft_tokens, words):
    model = jaxseq.build(jaxseq.config(name, **{"model.vocab": vocab}))
    with pytest.raises(jaxseq.UserError, match=words):
        jaxseq.generate(*tiny("lstm"), [[1]], max_tokens=2, draft=(model, None), draft_tokens=draft_tokens)

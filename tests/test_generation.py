"""Generation: rows are independent; sampling filters; stop strings; decoded tokens are those of the whole sequence."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.compiler import compiled
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxseq
from jaxseq import _streamed_text, generation, sampling
from jaxseq._narrow import narrowed
from jaxseq.data import ByteTokenizer
from jaxseq.models.lm import LM

TOKENIZER = ByteTokenizer()
PROMPT = [256, *b"The people of the United States "]
GREEDY, SAMPLED = {"temperature": 0}, {"temperature": 0.9, "top_k": 50, "top_p": 0.95}
LENGTHS = (2, 33, 5, 140)  # the last needs larger buffers in full attention


@functools.cache
def tiny(name: str):
    stack = re.sub(r"\d+\*", "2*", jaxseq.config(name).model.stack)
    config = jaxseq.config(name, **{"model.width": 32, "model.stack": stack})
    model = jaxseq.build(config)
    params = model.init(jax.random.key(1), jnp.zeros((1, 2), jnp.int32))["params"]
    return model, jax.tree.map(lambda x: 2 * x, params)  # far from uniform


def prompts():
    random = np.random.default_rng(0)
    return [[256, *random.integers(0, 256, n - 1)] for n in LENGTHS]


@pytest.mark.parametrize("name", ["transformer", "mamba", "rwkv4"])  # a ring buffer of keys, sums, a state that is not unique
@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_row_alone_and_in_company(name, options):
    model, params = tiny(name)
    options = options | {"rows": 4}
    together = jaxseq.generate(model, params, prompts(), max_tokens=20, seed=7, **options)
    assert [len(ids) for ids in together] == [20] * len(LENGTHS)
    assert len({tuple(ids) for ids in together}) == len(LENGTHS)
    for i, prompt in enumerate(prompts()):
        assert jaxseq.generate(model, params, [prompt], max_tokens=20, seed=7 + i, **options) == [together[i]]
    turned = jaxseq.generate(model, params, prompts()[::-1], max_tokens=20, seeds=[10, 9, 8, 7], **options)
    assert turned == together[::-1]


@pytest.mark.parametrize("length", [1, 100])  # without a prefill, and with several segments
def test_each_program_is_compiled_once(length, caplog):
    """Also for parameters of a checkpoint, which are on a mesh."""
    model, params = tiny("transformer")
    params = jax.device_put(params, NamedSharding(Mesh(np.array(jax.devices()[:1]), ("data",)), PartitionSpec()))
    programs = compiled(lambda: jaxseq.generate(model, params, [[1] * length], max_tokens=40), caplog)
    assert (programs["_decode"], programs["_prefill"]) == (1, int(length > 1))


# Slow tests: their mixers' states are tested here with another architecture; the laws test their recurrent form.
ALIKE = (
    *("gdn", "gla", "granite_hybrid", "gru", "jamba", "kimi_linear", "lfm2", "llama", "minlstm", "mixtral", "pangu"),
    *("h3", "kda", "qwen3_next", "rwkv5", "rwkv6", "s4d", "samba", "sru", "stripedhyena", "switch"),
    *("lstm", "mamba2", "neox", "dsa", "infini", "nsa"),
)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in ALIKE else []) for n in jaxseq.names()])
def test_greedy_tokens_are_those_of_the_whole_sequence(name):
    model, params = tiny(name)
    prompt = prompts()[1]
    (ids,) = jaxseq.generate(model, params, [prompt], max_tokens=30, temperature=0)
    logits, _ = jax.jit(model.apply, static_argnames="form")({"params": params}, jnp.array([prompt + ids[:-1]]), form="parallel")
    logits = logits[0, len(prompt) - 1 :]
    chosen = jnp.take_along_axis(logits, jnp.array(ids)[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(chosen, logits.max(axis=1), atol=1e-4)


def test_one_prompt_is_one_row_of_nearly_the_exact_size(monkeypatch):
    sizes = []
    init_state = LM.init_state
    monkeypatch.setattr(LM, "init_state", lambda self, *sizes_: sizes.append(sizes_) or init_state(self, *sizes_))
    model, params = tiny("transformer")
    jaxseq.generate(model, params, [[256] * 600], max_tokens=40)
    assert sizes[-1] == (1, 640)
    jaxseq.generate(model, params, [[256], [256]], max_tokens=2)
    assert sizes[-1] == (2, 128)
    jaxseq.generate(model, params, [[256]] * 9, max_tokens=2)
    assert sizes[-1] == (4, 128)
    for tokens in (*range(1, 5000, 37), 33_000, 65_537, 10**6 + 1):
        slots = generation.slots(tokens)
        assert tokens <= slots <= max(1.126 * tokens, tokens + 128)
    assert len({generation.slots(n) for n in range(2**16, 2**17)}) <= 9  # few programs


def primitives(jaxpr, inside=()):
    """Names of the primitives in a jaxpr, each with those of the enclosing equations."""
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name, inside
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "jaxpr") or hasattr(x, "eqns")):
            if hasattr(inner := getattr(value, "jaxpr", value), "eqns"):
                yield from primitives(inner, (*inside, eqn.primitive.name))


def test_nothing_is_sorted_unless_top_k_or_top_p_asks():
    jaxpr = jax.make_jaxpr(sampling.keep_top)(jnp.zeros((1, 8)), jnp.int32(0), jnp.float32(1)).jaxpr
    sorts = [inside for name, inside in primitives(jaxpr) if name == "sort"]
    assert sorts and all("cond" in inside for inside in sorts)


@pytest.mark.parametrize("name", ["transformer", "mamba", pytest.param("rwkv7", marks=pytest.mark.slow)])
def test_a_bfloat16_model_decodes_with_bfloat16_weights(name):
    model, params = tiny(name)
    half = model.clone(dtype=jnp.bfloat16, blocks=tuple(
        block.clone(dtype=jnp.bfloat16, mixers=tuple(mixer.clone(dtype=jnp.bfloat16) for mixer in block.mixers))
        for block in model.blocks
    ))  # fmt: skip
    weights = generation.compute_weights(half, params)
    kernels = [x.dtype for path, x in jax.tree_util.tree_leaves_with_path(weights) if path[-1].key == "kernel"]
    assert set(kernels) == {jnp.dtype(jnp.bfloat16)}
    tokens = jnp.array([PROMPT])
    for form in ("recurrent", "chunkwise"):
        one, other = (half.apply({"params": p}, tokens, form=form) for p in (params, weights))
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), one, other))  # bitwise
    assert generation.compute_weights(model, params) is params
    assert len(jaxseq.generate(half, params, [PROMPT], max_tokens=3)[0]) == 3


def test_narrowing_spares_what_is_used_in_float32():
    w = {"cast": jnp.ones(3), "both": jnp.ones(3), "sliced": jnp.ones((2, 3)), "carried": jnp.ones(3), "wide": jnp.ones(3)}

    def call(w, x):
        half = lambda a: a.astype(jnp.bfloat16)  # noqa: E731
        y = half(w["cast"][::-1]) * x + half(w["both"]) + w["both"] + w["wide"]
        carried, _ = jax.lax.scan(lambda c, row: (c + half(c) * half(row), None), w["carried"], w["sliced"])
        return y, carried

    found = narrowed(w, (call, (jnp.bfloat16(1),)))
    assert {name for name, x in found.items() if x.dtype == jnp.bfloat16} == {"cast", "sliced"}


def test_a_long_prompt_is_fed_in_pieces():
    model, params = tiny("retnet")
    prompt = [256, *np.random.default_rng(1).integers(0, 256, 310)]
    (ids,) = jaxseq.generate(model, params, [prompt], max_tokens=1, temperature=0)
    logits, _ = model.apply({"params": params}, jnp.array([prompt]), form="parallel")
    assert logits[0, -1, ids[0]] > logits[0, -1].max() - 1e-4


def test_more_prompts_than_rows():
    model, params = tiny("retnet")
    many = [[256, i] for i in range(5)]
    assert jaxseq.generate(model, params, many, max_tokens=3, rows=2) == [
        jaxseq.generate(model, params, [p], max_tokens=3, rows=2, seed=i)[0] for i, p in enumerate(many)
    ]
    assert jaxseq.generate(model, params, [], max_tokens=3) == []


def test_a_second_call_compiles_nothing():
    model, params = tiny("retnet")
    jaxseq.generate(model, params, [PROMPT], max_tokens=5, top_k=3, rows=2)
    before = generation._decode._cache_size(), generation._prefill._cache_size()
    jaxseq.generate(model, params, [PROMPT[:7], PROMPT], max_tokens=9, top_k=9, top_p=0.5, temperature=0.3, seed=5)
    assert (generation._decode._cache_size(), generation._prefill._cache_size()) == before


def test_stream_and_callback_agree_with_the_result():
    model, params = tiny("retnet")
    got, texts, ends = [[], []], ["", ""], ["", ""]
    options = dict(max_tokens=40, tokenizer=TOKENIZER, seed=3)
    for piece in generation.stream(model, params, [PROMPT, PROMPT], **options):
        got[piece.row] += piece.tokens
        texts[piece.row] += piece.text
        ends[piece.row] = piece.end
    heard = [[], []]
    result = jaxseq.generate(model, params, [PROMPT, PROMPT], on_tokens=lambda row, ids: heard[row].extend(ids), **options)
    assert got == heard == result
    assert [text.rstrip("\ufffd") for text in texts] == [TOKENIZER.decode(ids).rstrip("\ufffd") for ids in result]
    assert all(end in ("stop", "length") for end in ends)


def test_stop_ids_and_strings_end_a_row():
    model, params = tiny("transformer")
    (ids,) = jaxseq.generate(model, params, [PROMPT], max_tokens=40, seed=1)
    first = {token: ids.index(token) for token in ids}
    stop = ids[20]
    assert jaxseq.generate(model, params, [PROMPT], max_tokens=40, seed=1, stop=[stop]) == [ids[: first[stop]]]
    text = bytes(i for i in ids if i < 128).decode()  # a stop string of two successive characters
    pair = next(text[i : i + 2] for i in range(10, 30) if text[i : i + 2].encode() in bytes(ids))
    pieces = list(generation.stream(model, params, [PROMPT], max_tokens=40, seed=1, stop=pair, tokenizer=TOKENIZER))
    whole = TOKENIZER.decode(ids)
    assert "".join(p.text for p in pieces) == whole[: whole.index(pair)]
    assert sum((p.tokens for p in pieces), []) == ids[: bytes(ids).index(pair.encode())]
    assert pieces[-1].end == "stop"


def feed(text: bytes, *stops: str, every: int = 1) -> tuple[list[str], _streamed_text.Row]:
    row, out = _streamed_text.Row(0, TOKENIZER, {256}, stops), []
    for i, token in enumerate(text):
        if not row.end:
            row.push(token)
        if (i + 1) % every == 0:
            out.append(row.take().text)
    if not row.end:
        row.finish("length")
    return [*out, row.take().text], row


def test_stop_strings_across_tokens():
    assert feed(b"one two three", "two")[0][:5] == ["o", "n", "e", " ", ""]
    for every in (1, 2, 5, 100):
        for stops, wanted in ((["two"], "one "), (["xyz", "o t"], "one tw"), (["e t", "wo"], "on"), (["two t", "wo"], "one t")):
            pieces, row = feed(b"one two three", *stops, every=every)
            assert "".join(pieces) == wanted == TOKENIZER.decode(row.tokens)
        assert "".join(feed(b"one two thr", "three", every=every)[0]) == "one two thr"  # held back, then returned
        accented = "caf\u00e9 \u2713 noir".encode()
        assert "".join(feed(accented, "\u2713", every=every)[0]) == "caf\u00e9 "
        assert "".join(feed(accented[:4], "x", every=every)[0]) == "caf"  # an incomplete character at the end is left out
        assert "".join(feed(b"caf\xc3 noir", "x", every=every)[0]) == "caf\ufffd noir"  # but kept inside the text
    assert _streamed_text.held_back("ab\n", ["\n\nQ", "zz"]) == 1


def test_keep_top_in_the_documented_order():
    logits = jnp.log(jnp.array([[0.1, 0.4, 0.2, 0.3]]))

    def kept(**options):
        return np.flatnonzero(np.isfinite(sampling.keep_top(logits, **options)[0])).tolist()

    assert kept() == [0, 1, 2, 3]
    assert kept(top_k=2) == [1, 3]
    assert kept(top_p=0.65) == [1, 3]
    assert kept(top_p=0.75) == [1, 2, 3]
    assert kept(top_k=2, top_p=0.55) == [1]  # 0.4 / 0.7 = 0.57: renormalised after top-k
    assert kept(top_p=1e-9) == [1]
    ties = sampling.keep_top(jnp.zeros((1, 4)), top_k=2)
    assert np.isfinite(ties[0]).tolist() == [True, True, False, False]


def test_samples_follow_the_distribution():
    logits = jnp.broadcast_to(jnp.log(jnp.array([0.1, 0.4, 0.2, 0.3])), (20000, 4))
    keys = jax.random.split(jax.random.key(0), len(logits))

    def shares(temperature, top_k=0, top_p=1.0):
        how = sampling.Sampling(np.float32(temperature), np.int32(top_k), np.float32(top_p), None, None)
        return np.bincount(sampling.sample(logits, keys, how), minlength=4) / len(logits)

    np.testing.assert_allclose(shares(1), [0.1, 0.4, 0.2, 0.3], atol=0.015)
    np.testing.assert_allclose(shares(0.5), np.array([1, 16, 4, 9]) / 30, atol=0.015)
    np.testing.assert_allclose(shares(1, top_k=2), [0, 4 / 7, 0, 3 / 7], atol=0.015)
    np.testing.assert_allclose(shares(1e-30), [0, 1, 0, 0])


def test_pieces_depend_on_each_length_alone():
    def own(prompts, row):
        return [(t[row][p[row] >= 0].tolist(), t.shape[1]) for t, p in generation.pieces(prompts) if (p[row] >= 0).any()]

    ragged = [np.arange(n) for n in (0, 600, 33, 256, 7)]
    for row, prompt in enumerate(ragged):
        assert own(ragged, row) == own([prompt], 0)
        assert sum((tokens for tokens, _ in own(ragged, row)), []) == prompt.tolist()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": "x"}, "tokenizer"),
        ({"stop": [""], "tokenizer": TOKENIZER}, "empty"),
        ({"stop": [999]}, "999"),
        ({"seeds": [1, 2]}, "seeds"),
        ({"rows": 0}, "rows"),
    ],
)
def test_bad_settings_are_one_line(options, words):
    model, params = tiny("retnet")
    with pytest.raises(jaxseq.UserError, match=words):
        jaxseq.generate(model, params, [PROMPT], **{"max_tokens": 2, **options})


@pytest.mark.parametrize(("prompt", "words"), [([], "empty"), ([257], "257"), ([-1], "-1")])
def test_bad_prompts_are_one_line(prompt, words):
    model, params = tiny("retnet")
    with pytest.raises(jaxseq.UserError, match=words):
        jaxseq.generate(model, params, [prompt], max_tokens=2)

"""Text generation: prefill in any form, then token by token in the recurrent form, in one compiled loop.

For a given `rows`, the tokens of a row depend only on its prompt, its seed and the settings, not on the other prompts. No array
shape depends on the other rows: batches always have `rows` rows (the last batch is filled with idle rows), prompts are fed in
segments of fixed lengths, and rows that need attention buffers of different sizes run in different batches. The random key of a
token is fold_in(key(seed of the row), number of the token). The backend must also compute each row of a matrix product
independently of the other rows. The CPU does, and tests check it bit for bit. With kernels that are autotuned per process, or
with another value of `rows`, rounding may change the choice between two tokens with almost equal logits. Logits are compared
in the accumulation dtype (at least float32).

Temperature, top-k and top-p: `jaxseq.sampling`.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq import forms, speculative
from jaxseq._decoding import BLOCK, Carry, Drafts, until_done
from jaxseq._narrow import narrowed
from jaxseq._streamed_text import NewTokens, Row
from jaxseq.errors import UserError
from jaxseq.models.lm import LM, LMState
from jaxseq.ops._time import PAD
from jaxseq.sampling import Sampling, sample, token_keys
from jaxseq.shards import beside

PIECES = (256, 32)  # segment lengths of the prefill; memory is linear in the first, padding is less than the last
ROWS = 4  # maximum rows of a batch, unless the caller sets `rows`
SLOTS = 128  # buffer sizes are multiples of it, or of 1/16 of a power of two if larger, so that few programs are compiled


@functools.partial(jax.jit, static_argnames=("model", "form"), donate_argnames="state")
def _prefill(model: LM, form: forms.Form, params: Any, state: LMState, tokens_BT: jax.Array, pos_BT: jax.Array) -> LMState:
    return model.apply({"params": params}, tokens_BT, state=state, pos=pos_BT, form=form, method="hidden")[1]


@functools.partial(jax.jit, static_argnames=("model", "greedy"), donate_argnames="carry")
def _decode(model: LM, greedy: bool, params: Any, carry: Carry, sampling: Sampling, max_tokens: jax.Array):
    """At most BLOCK more tokens of each row: (carry, ids [B, BLOCK]; -1: no token)."""

    def step(carry):
        pos_BT = jnp.where(carry.done_B, PAD, carry.state.next_pos_B)[:, None]
        logits_BTV, state = model.apply(
            {"params": params}, carry.token_B[:, None], state=carry.state, pos=pos_BT, form="recurrent"
        )
        token_B = sample(logits_BTV[:, 0], token_keys(sampling.seed_B, carry.number_B), sampling, greedy)
        number_B = carry.number_B + ~carry.done_B
        done_B = carry.done_B | sampling.stop_V[token_B] | (number_B >= max_tokens)
        return Carry(state, token_B, done_B, number_B), jnp.where(carry.done_B, -1, token_B)[:, None]

    return until_done(step, carry, BLOCK, 1)


def pieces(prompts: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Split the prompts into segments (tokens, pos) [B, T]: first long ones, then short ones for the rest.

    The segments of a row depend only on its own length; segments beyond its end are padding, which does not change the state.
    """
    done = np.zeros(len(prompts), int)
    for length in PIECES:
        last = length == PIECES[-1]
        ends = np.array([len(prompt) if last else len(prompt) // length * length for prompt in prompts])
        while (done < ends).any():
            tokens = np.zeros((len(prompts), length), np.int32)
            pos = np.full((len(prompts), length), PAD, np.int32)
            for row, prompt in enumerate(prompts):
                part = prompt[done[row] : min(done[row] + length, ends[row])]
                tokens[row, : len(part)] = part
                pos[row, : len(part)] = done[row] + np.arange(len(part))
                done[row] += len(part)
            yield tokens, pos


def stream(
    model: LM, params: Any, prompts: Sequence[Sequence[int]], *,
    max_tokens: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
    seed: int = 0, seeds: Sequence[int] | None = None, stop: Iterable[int | str] = (), tokenizer: Any = None,
    form: forms.Form = "auto", rows: int | None = None, draft: tuple[LM, Any] | None = None, draft_tokens: int = 4,
) -> Iterator[NewTokens]:  # fmt: skip
    """Yield new tokens and text as they are generated; arguments and errors as in `generate`, checked before the first token."""
    rows = max(1, min(len(prompts), ROWS)) if rows is None else rows
    stop_ids, stop_strings = _stops(model, stop, tokenizer)
    pairs = [(model, params)] if draft is None else [(model, params), draft]
    if draft is not None:
        speculative.check(model, draft[0], draft_tokens)
    _check([lm for lm, _ in pairs], prompts, max_tokens, temperature, top_k, top_p, rows)
    seeds = [seed + i for i in range(len(prompts))] if seeds is None else list(seeds)
    if len(seeds) != len(prompts):
        raise UserError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one seed per prompt, or only `seed`")
    stop_V = np.zeros(model.vocab, bool)
    stop_V[list(stop_ids)] = True
    form, greedy = forms.freeze(form), temperature == 0
    pairs = [(lm, compute_weights(lm, own, form)) for lm, own in pairs]
    if draft is None:
        decode = functools.partial(_decode, model, greedy, pairs[0][1])
    else:
        decode = functools.partial(speculative.decode, model, draft[0], draft_tokens, form, greedy, *(own for _, own in pairs))
    settings = np.float32(temperature or 1), np.int32(top_k), np.float32(top_p)

    def batches():
        for context, numbers in _groups([lm for lm, _ in pairs], prompts, max_tokens, rows):
            group = [np.asarray(prompts[i], np.int32) for i in numbers]
            seed_B = np.array([seeds[i] % 2**32 for i in numbers] + [0] * (rows - len(numbers)), np.uint32)
            texts = [Row(i, tokenizer, stop_ids, stop_strings, prompts[i]) for i in numbers]
            sampling = Sampling(*settings, seed_B, stop_V)
            carry = _start(pairs, form, group, rows, context)
            yield from _continue(decode, pairs[0][1], carry, sampling, texts, max_tokens)

    return batches()


def generate(
    model: LM, params: Any, prompts: Sequence[Sequence[int]], *,
    max_tokens: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
    seed: int = 0, seeds: Sequence[int] | None = None, stop: Iterable[int | str] = (), tokenizer: Any = None,
    form: forms.Form = "auto", rows: int | None = None, draft: tuple[LM, Any] | None = None, draft_tokens: int = 4,
    on_tokens: Callable[[int, list[int]], None] | None = None,
) -> list[list[int]]:  # fmt: skip
    """Generate token ids for each prompt: a list of new ids per prompt, without the prompt.

    Args:
        prompts: token ids, of any lengths, at least one each. A document begins with the id `tokenizer.boundary`.
        max_tokens: maximum number of new tokens per row.
        temperature: 0 selects the token with the largest logit (the lowest id in a tie); otherwise logits are divided by it.
        top_k, top_p: applied after the temperature, in this order; see `jaxseq.sampling.keep_top`. 0 and 1 disable them.
        seed, seeds: row i uses the seed `seeds[i]`, by default seed + i. With the same seed and `rows`, a prompt gets the same
            ids when it is generated alone.
        stop: ids, and strings (these need `tokenizer`). The output ends before the first one that appears. A token in which a
            stop string begins is kept whole; the text of `stream` is cut exactly.
        tokenizer: its `ends` also end a row: `boundary`, and the end ids of a generation_config.json next to it.
        form: form of the prefill; a name or one name per mixer label. New tokens use the recurrent form, but a draft model's
            tokens are checked in this form.
        draft, draft_tokens: (model, params) of a smaller model with the same vocabulary, which proposes draft_tokens tokens at a
            time; see `jaxseq.speculative`. The ids have the same distribution. With temperature 0 they are the same, if rounding
            does not change the choice between two almost equal logits.
        rows: rows of a compiled batch; more prompts run in several batches. Default: the number of prompts, at most 4. Rounding
            may differ between values of `rows`.
        on_tokens: called with (row, new ids) every few tokens.

    Raises UserError for values out of range, for a draft model that does not fit, and for prompts that are empty or contain ids
    outside the vocabulary.
    """
    out: list[list[int]] = [[] for _ in prompts]
    for piece in stream(
        model, params, prompts, max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, seeds=seeds,
        stop=stop, tokenizer=tokenizer, form=form, rows=rows, draft=draft, draft_tokens=draft_tokens,
    ):  # fmt: skip
        out[piece.row] += piece.tokens
        if on_tokens and piece.tokens:
            on_tokens(piece.row, piece.tokens)
    return out


def compute_weights(model: LM, params: Any, form: forms.Form = "auto") -> Any:
    """Cast weights once to the dtype to which the model casts them at each use. Weights used in float32 are not changed, and
    results are the same bit for bit."""
    if model.dtype == jnp.float32:
        return params
    params = jax.tree.map(jnp.asarray, params)
    state = jax.eval_shape(lambda: model.init_state(1, SLOTS))

    def call(form):
        def run(params, tokens_BT, state):
            return model.apply({"params": params}, tokens_BT, state=state, form=form)

        return run

    def tokens(length):
        return jax.ShapeDtypeStruct((1, length), jnp.int32)

    prefills = [(call(forms.freeze(form)), (tokens(length), state)) for length in PIECES]
    return narrowed(params, (call("recurrent"), (tokens(1), state)), *prefills)


def _stops(model: LM, stop: Iterable[int | str], tokenizer: Any) -> tuple[set[int], list[str]]:
    stop = [stop] if isinstance(stop, str) else list(stop)
    strings = [s for s in stop if isinstance(s, str)]
    ids = {int(s) for s in stop if not isinstance(s, str)}
    ends = {i for i in tokenizer.ends if i < model.vocab} if tokenizer else set()  # the model cannot generate other ids
    if strings and tokenizer is None:
        raise UserError("stop strings need a tokenizer to decode the text; give tokenizer= as well, or stop ids")
    if "" in strings:
        raise UserError("a stop string is empty; leave it out, or name the text to stop at")
    if bad := [i for i in ids if not 0 <= i < model.vocab]:
        raise UserError(f"the stop id {bad[0]} is outside the model's vocabulary of {model.vocab}")
    return ids | ends, strings


def _check(models: Sequence[LM], prompts, max_tokens, temperature, top_k, top_p, rows) -> None:
    if max_tokens < 1:
        raise UserError(f"max_tokens={max_tokens} is not positive; set it to 1 or more")
    if not 0 <= temperature < math.inf:
        raise UserError(f"temperature={temperature} is out of range; 0 selects the likeliest token, 1 samples as trained")
    if top_k < 0:
        raise UserError(f"top_k={top_k} is negative; 0 keeps all tokens")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p={top_p} is out of range; it is a probability above 0, and 1 keeps all tokens")
    if rows < 1:
        raise UserError(f"rows={rows} is not positive; set it to 1 or more")
    vocab = models[0].vocab
    for number, prompt in enumerate(prompts):
        for name, model in zip(("this model", "the draft model"), models, strict=False):
            if model.capacity is not None and len(prompt) + max_tokens - 1 > model.capacity:
                raise UserError(
                    f"prompt {number} of {len(prompt)} tokens plus max_tokens={max_tokens} exceed the {model.capacity} "
                    f"positions that {name} has learned; lower max_tokens, or shorten the prompt"
                )
        ids = np.asarray(prompt)
        if ids.size == 0:
            raise UserError(f"prompt {number} is empty; give at least one token, such as the tokenizer's boundary")
        if ids.min() < 0 or ids.max() >= vocab:
            bad = ids[(ids < 0) | (ids >= vocab)][0]
            raise UserError(f"prompt {number} contains the id {bad}, outside the model's vocabulary of {vocab}")


def slots(tokens: int) -> int:
    """Buffer size of full attention for this many tokens: at most an eighth more, and at least SLOTS."""
    step = max(SLOTS, 2 ** math.ceil(math.log2(max(tokens, 1))) // 16)
    return -(-tokens // step) * step


def _groups(models: Sequence[LM], prompts, max_tokens: int, rows: int) -> list[tuple[int | None, list[int]]]:
    """(slots of full attention, prompt numbers) of each batch; the rows of a batch need buffers of the same size."""
    endless = all(jax.eval_shape(lambda lm=lm: lm.remaining_capacity(lm.init_state(1, 1))) is None for lm in models)
    groups: dict[int | None, list[int]] = {}
    for number, prompt in enumerate(prompts):
        groups.setdefault(None if endless else slots(len(prompt) + max_tokens), []).append(number)
    return [(context, n[i : i + rows]) for context, n in groups.items() for i in range(0, len(n), rows)]


def _read(model: LM, params, form, prompts: Sequence[np.ndarray], rows: int, context: int | None) -> LMState:
    """State after all tokens of each prompt but the last. Rows without a prompt are idle."""
    state = beside(params, model.init_state(rows, context))
    for tokens, pos in pieces([prompt[:-1] for prompt in prompts] + [np.zeros(0, np.int32)] * (rows - len(prompts))):
        state = _prefill(model, form, params, state, tokens, pos)
    return state


def _start(pairs, form, prompts: Sequence[np.ndarray], rows: int, context: int | None) -> Carry:
    """The loop's first state, from the prompts; `pairs` are the model and perhaps the draft model, with their weights."""
    state, *draft = [_read(model, params, form, prompts, rows, context) for model, params in pairs]
    last_B = np.zeros(rows, np.int32)
    last_B[: len(prompts)] = [prompt[-1] for prompt in prompts]
    rest = jnp.array(last_B), jnp.arange(rows) >= len(prompts), jnp.zeros(rows, jnp.int32)
    if draft:
        rest += draft[0], Drafts(*jnp.zeros((len(Drafts._fields), rows), jnp.int32))
    return Carry(state, *beside(pairs[0][1], rest))


def _continue(decode, params, carry: Carry, sampling: Sampling, texts: list[Row], max_tokens: int) -> Iterator[NewTokens]:
    done = np.array(carry.done_B)
    while not done.all():
        carry, ids_BT = decode(carry, sampling, np.int32(max_tokens))
        drafts = carry.drafts and np.array(carry.drafts)
        for i, (row, ids) in enumerate(zip(texts, np.asarray(ids_BT).tolist(), strict=False)):
            if row.end:
                continue
            for token in ids:
                if token >= 0 and not row.end:
                    row.push(token)
            if not row.end and len(row.tokens) == max_tokens:
                row.finish("length")
            if (piece := row.take()).tokens or piece.text or piece.end:
                yield piece._replace(drafts=Drafts(*drafts[:, i].tolist()) if carry.drafts and piece.end else None)
        done[: len(texts)] = [bool(row.end) for row in texts]
        carry = carry._replace(done_B=beside(params, jnp.array(done)))  # a copy, because the next call may overwrite it

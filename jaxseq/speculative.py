"""Speculative decoding: a small draft model proposes tokens one by one, and the model checks all of them in one call
(Leviathan et al. 2023, arXiv:2211.17192, algorithm 1; Chen et al. 2023, arXiv:2302.01318, algorithm 2).

Let x_1 … x_k be the proposals, q_i the draft's distribution from which x_i was drawn and p_i the model's, both after temperature,
top-k and top-p. Proposal x_i is accepted with probability min(1, p_i(x_i) / q_i(x_i)). Instead of the first rejected proposal a
token is drawn from max(p_i - q_i, 0), normalised; if all are accepted, one more token is drawn from p_{k+1}. The tokens then have
the distribution of the model alone (Leviathan et al., appendix A.1), whatever the draft model is. A greedy choice is a
distribution with a single token, so the same rule gives the model's greedy tokens.

A row's tokens depend only on its prompt, its seed and the settings, as in `jaxseq.generation`. Token number n is drawn with the
key that it has there, both by the draft model and after k accepted proposals: a draft model that equals the model gives the
tokens of plain decoding. Acceptance, and the token that replaces a proposal, have other keys. A later round may propose number n
again with the same key, but only if no token that was generated depends on the earlier proposal.

Rejected tokens leave no trace in the states (`jaxseq.models.state.rewind`): in full attention the count of tokens is lowered; all
other states are computed again from the accepted tokens, in a second call of the model, unless all rows accepted all tokens.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxseq import forms
from jaxseq._decoding import BLOCK, Carry, Drafts, until_done
from jaxseq.errors import UserError
from jaxseq.models.lm import LM, LMState
from jaxseq.models.state import rewind
from jaxseq.ops._time import PAD
from jaxseq.sampling import Sampling, draw, filtered, sample, token_keys

ACCEPT, REPLACE = 2**32 - 1, 2**32 - 2  # numbers that no token has, for the keys of other purposes


def check(model: LM, draft: Any, draft_tokens: int) -> None:
    """Raises UserError if `draft` cannot propose tokens for `model`."""
    if draft_tokens < 1:
        raise UserError(f"draft_tokens={draft_tokens} is not positive; set it to 1 or more")
    if not isinstance(draft, LM):
        raise UserError(f"the draft model is a {type(draft).__name__}; only a causal language model can propose tokens")
    if draft.vocab != model.vocab:
        raise UserError(
            f"the draft model has a vocabulary of {draft.vocab}, the model one of {model.vocab}; use one with the same tokenizer"
        )


@functools.partial(jax.jit, static_argnames=("model", "draft", "draft_tokens", "form", "greedy"), donate_argnames="carry")
def decode(
    model: LM, draft: LM, draft_tokens: int, form: forms.Form, greedy: bool, params: Any, draft_params: Any, carry: Carry,
    sampling: Sampling, max_tokens: jax.Array,
) -> tuple[Carry, jax.Array]:  # fmt: skip
    """Some rounds of proposals, about BLOCK tokens of each row: (carry, ids [B, T]; -1: no token).

    form: of the call that checks the proposals, and of the call that recomputes a state.
    """

    def step(carry: Carry) -> tuple[Carry, jax.Array]:
        place_T = jnp.arange(draft_tokens + 1)
        number_BT = carry.number_B[:, None] + place_T  # of the token that follows each of the tokens read
        read_BT = ~carry.done_B[:, None] & (number_BT < max_tokens)
        pos_BT = jnp.where(read_BT, carry.state.next_pos_B[:, None] + place_T, PAD)
        tokens_BT, q_BTV, draft_after = _propose(draft, draft_params, greedy, carry, sampling, number_BT, pos_BT)
        logits_BTV, after = model.apply({"params": params}, tokens_BT, state=carry.state, pos=pos_BT, form=form)
        p_BTV = jax.nn.softmax(filtered(logits_BTV, sampling, greedy))
        new_BT, accepted_B = verify(p_BTV, q_BTV, tokens_BT[:, 1:], sampling.seed_B, number_BT)
        kept_BT = read_BT & (place_T <= accepted_B[:, None])
        kept_B = jnp.sum(kept_BT, axis=1)  # of the tokens read; as many are new
        state = rewind(model, params, carry.state, after, tokens_BT, kept_B, form=form)
        draft_state = rewind(draft, draft_params, carry.draft, draft_after, tokens_BT, kept_B, form=form)

        stops_BT = kept_BT & sampling.stop_V[new_BT]
        new_BT = jnp.where(kept_BT & (jnp.cumsum(stops_BT, axis=1) <= stops_BT), new_BT, -1)  # nothing after a stop id
        token_B = jnp.take_along_axis(new_BT, accepted_B[:, None], axis=1)[:, 0]
        number_B = carry.number_B + kept_B
        done_B = carry.done_B | jnp.any(stops_BT, axis=1) | (number_B >= max_tokens)
        drafts = Drafts(
            calls=carry.drafts.calls + ~carry.done_B,
            tokens=number_B,
            proposed=carry.drafts.proposed + jnp.sum(read_BT[:, :-1], axis=1),
            accepted=carry.drafts.accepted + jnp.minimum(accepted_B, jnp.sum(read_BT[:, :-1], axis=1)),
        )
        return Carry(state, token_B, done_B, number_B, draft_state, drafts), new_BT

    return until_done(step, carry, max(1, BLOCK // (draft_tokens + 1)), draft_tokens + 1)


def _propose(
    draft: LM, params: Any, greedy: bool, carry: Carry, sampling: Sampling, number_BT: jax.Array, pos_BT: jax.Array
) -> tuple[jax.Array, jax.Array, LMState]:
    """(last token and proposals [B, T], distributions of the proposals [B, T - 1, V], the draft's state after all of them)."""

    def call(state, token_B, pos_B, method=None):
        return draft.apply({"params": params}, token_B[:, None], state=state, pos=pos_B[:, None], form="recurrent", method=method)

    def step(loop, xs):
        state, token_B = loop
        number_B, pos_B = xs
        logits_BTV, state = call(state, token_B, pos_B)
        new_B = sample(logits_BTV[:, 0], token_keys(sampling.seed_B, number_B), sampling, greedy)
        return (state, new_B), (new_B, jax.nn.softmax(filtered(logits_BTV[:, 0], sampling, greedy)))

    xs = number_BT.T[:-1], pos_BT.T[:-1]
    (state, last_B), (new_TB, q_TBV) = jax.lax.scan(step, (carry.draft, carry.token_B), xs)
    _, state = call(state, last_B, pos_BT[:, -1], "hidden")  # as if all are accepted
    return jnp.concatenate([carry.token_B[:, None], new_TB.T], axis=1), jnp.moveaxis(q_TBV, 0, 1), state


def verify(
    p_BTV: jax.Array, q_BTV: jax.Array, proposals_BT: jax.Array, seed_B: jax.Array, number_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(tokens [B, T], accepted_B): of each row first the accepted proposals, then a token that is drawn; the rest has no meaning.

    p_BTV: the model's distributions. q_BTV, proposals_BT: the draft's, one fewer, and what was drawn from them. number_BT: the
    numbers of the tokens.
    """
    rows, last = jnp.arange(p_BTV.shape[0]), p_BTV.shape[1] - 1
    base_B = token_keys(seed_B, jnp.full_like(seed_B, ACCEPT))
    keys_BT = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(base_B, number_BT[:, :-1])
    u_BT = jax.vmap(jax.vmap(jax.random.uniform))(keys_BT)
    at = lambda x_BTV: jnp.take_along_axis(x_BTV, proposals_BT[..., None], axis=-1)[..., 0]  # noqa: E731
    accepts_BT = u_BT * at(q_BTV) < at(p_BTV[:, :-1])
    accepted_B = jnp.sum(jnp.cumprod(accepts_BT, axis=1), axis=1)

    q_BTV = jnp.pad(q_BTV, ((0, 0), (0, 1), (0, 0)))  # nothing was proposed for the last: it is drawn from p
    number_B = number_BT[rows, accepted_B]
    other_B = jax.vmap(jax.random.fold_in)(token_keys(seed_B, jnp.full_like(seed_B, REPLACE)), number_B)
    keys_B = jnp.where(accepted_B == last, token_keys(seed_B, number_B), other_B)
    token_B = draw(jnp.log(rest(p_BTV[rows, accepted_B], q_BTV[rows, accepted_B])), keys_B)
    new_BT = jnp.pad(proposals_BT, ((0, 0), (0, 1)))
    return new_BT.at[rows, accepted_B].set(token_B), accepted_B


def rest(p_BV: jax.Array, q_BV: jax.Array) -> jax.Array:
    """max(p - q, 0), not normalised: what the accepted proposals lack of p. p, if rounding leaves nothing."""
    rest_BV = jnp.maximum(p_BV - q_BV, 0)
    return jnp.where(jnp.any(rest_BV > 0, axis=-1, keepdims=True), rest_BV, p_BV)

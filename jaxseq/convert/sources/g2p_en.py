"""g2p-en 2.1.0, English spelling to sound (checkpoint20.npz in its wheel): GRU encoder and decoder in torch's layout."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import base, finish
from jaxseq.convert._table import Entry, linear, reshaped, same
from jaxseq.models.seq2seq_rnn import Seq2SeqRNN, greedy

LETTERS = ("<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz")
_VOWELS = {"AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW"}
_SOUNDS = {"B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N", "NG", "P", "R", "S", "SH", "T", "TH", "UW", "V", "W"}
_SOUNDS |= {"Y", "Z", "ZH"} | {f"{vowel}{stress}" for vowel in _VOWELS for stress in range(3)}
PHONEMES = ("<pad>", "<unk>", "<s>", "</s>", *sorted(_SOUNDS))  # ARPAbet; one vowel also occurs without stress
LONGEST = 20  # the maximum number of phonemes of a word, as in the package


def recognises(theirs: dict, names: set[str]) -> bool:
    return {"enc_emb", "enc_w_ih", "dec_w_hh", "fc_w"} <= names


def infer(shapes: Mapping[str, Sequence[int]]) -> dict:
    (source_vocab, width), (vocab, hidden) = shapes["enc_emb"], shapes["fc_w"]
    return {"source_vocab": source_vocab, "vocab": vocab, "width": width, "hidden": hidden}


def config(theirs: dict) -> ConfigDict:
    cfg = base("seq2seq_rnn")
    cfg.model.cell = "gru"
    for field in ("source_vocab", "vocab", "width", "hidden"):
        cfg.model[field] = theirs[field]
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    if not isinstance(model, Seq2SeqRNN) or model.cell != "gru":
        return None
    return {field: getattr(model, field) for field in ("source_vocab", "vocab", "width", "hidden")}


def entries(theirs: dict) -> list[Entry]:
    width, hidden, table = theirs["width"], theirs["hidden"], [same("source_embedding", "enc_emb"), same("embedding", "dec_emb")]
    for ours, name in {"encoder": "enc", "decoder": "dec"}.items():
        table.append(linear(f"{ours}/in/kernel", f"{name}_w_ih", shape=(width, 3, hidden)))
        table.append(linear(f"{ours}/recurrent", f"{name}_w_hh", shape=(hidden, 3, hidden)))
        table.append(reshaped(f"{ours}/in_bias", f"{name}_b_ih", (3, hidden), (3 * hidden,)))
        table.append(reshaped(f"{ours}/recurrent_bias", f"{name}_b_hh", (3, hidden), (3 * hidden,)))
    return [*table, linear("head/kernel", "fc_w"), same("head/bias", "fc_b")]


def phonemes(model: Seq2SeqRNN, params: Any, words: Sequence[str]) -> list[list[str]]:
    """The network's phonemes for each word; letters other than a to z become the unknown token."""
    numbers = {letter: n for n, letter in enumerate(LETTERS)}
    rows = [[*(numbers.get(letter, numbers["<unk>"]) for letter in word.lower()), numbers["</s>"]] for word in words]
    length = max(map(len, rows))
    source_BT = jnp.asarray([row + [0] * (length - len(row)) for row in rows], jnp.int32)
    pos_BT = jnp.asarray([[*range(len(row)), *[-1] * (length - len(row))] for row in rows], jnp.int32)
    start, stop = PHONEMES.index("<s>"), PHONEMES.index("</s>")
    said_BT = greedy(model, params, source_BT, start, stop, LONGEST, pos_BT)
    return [[PHONEMES[n] for n in row if n != stop] for row in said_BT.tolist()]

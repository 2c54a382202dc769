"""BigBird: transformers' BigBirdModel, BigBirdForMaskedLM and BigBirdForPreTraining, with block-sparse attention.

The next-sentence head of BigBirdForPreTraining becomes our classifier with two classes. Outputs equal those of transformers in
evaluation for rows without padding of any length. What differs:

- In evaluation each random block of transformers is the first block (`model.random="first"`). In training they are drawn, there
  by numpy for each length of a row, here from the number of a block and that of all blocks: these are other blocks.
- transformers counts padding: its last block, which is global, is that of the padded row, and attention is full if the padded row
  is short. Here padding has no effect. A model of transformers that has read a short row keeps full attention from then on.
- Embeddings have dropout after their norm, not before it.
"""

from collections.abc import Iterable

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import base, finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry
from jaxseq.convert.sources import hf_bert
from jaxseq.convert.sources.hf_bert import biased, embedded
from jaxseq.errors import UserError
from jaxseq.models.sparse_encoder import SparseEncoder

HEADS = {  # masked_head, pooler, classifier
    "BigBirdModel": (False, True, False),
    "BigBirdForMaskedLM": (True, True, False),
    "BigBirdForPreTraining": (True, True, True),
}


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "big_bird"


def rename(names: set[str]) -> dict[str, str]:
    return {name: name for name in names if not name.endswith(("position_ids", "embeddings.token_type_ids"))}


def complete(theirs: dict, names: Iterable[str]) -> dict:
    """Adds the heads that the file has, because the class in a published config does not say which."""
    names = {name.removeprefix("bert.") for name in names}
    if any(name.startswith(("classifier.", "qa_classifier.", "qa_outputs.")) for name in names):
        return theirs
    masked, two = any(name.startswith("cls.predictions.") for name in names), "cls.seq_relationship.weight" in names
    kind = "BigBirdForPreTraining" if masked and two else "BigBirdForMaskedLM" if masked else "BigBirdModel"
    return theirs | {"architectures": [kind], "add_pooling_layer": "pooler.weight" in names}


def _heads(theirs: dict) -> tuple[bool, bool, int]:
    """(masked_head, pooler, classes)"""
    kind = (theirs.get("architectures") or ["BigBirdModel"])[0]
    if kind not in HEADS:
        raise UserError(f"hf/big_bird reads no {kind}; it reads: {', '.join(HEADS)}")
    masked, pooler, classifier = HEADS[kind]
    return masked, classifier or theirs.get("add_pooling_layer", pooler), 2 if classifier else 0


def config(theirs: dict) -> ConfigDict:
    theirs = {"block_size": 64, "num_random_blocks": 3, "layer_norm_eps": 1e-12, "type_vocab_size": 2} | theirs
    supported = dict(attention_type="block_sparse", use_bias=True, rescale_embeddings=False, is_decoder=False)
    _fields.wanted("hf/big_bird", theirs, position_embedding_type="absolute", **supported)
    masked, pooler, classes = _heads(theirs)
    cfg = base("sparse_encoder")
    cfg.model.update(
        vocab=theirs["vocab_size"], width=theirs["hidden_size"], layers=theirs["num_hidden_layers"],
        heads=theirs["num_attention_heads"], hidden=theirs["intermediate_size"], max_positions=theirs["max_position_embeddings"],
        types=theirs["type_vocab_size"], norm_eps=theirs["layer_norm_eps"],
        activation=_fields.choice("hf/big_bird", theirs, "hidden_act", hf_bert.ACTIVATIONS, "gelu_new"),
        masked_head=masked, pooler=pooler, classes=classes or None, attention="blocks", random="first",
        block_size=_fields.number(theirs, "block_size", _fields.SIZE),
        random_blocks=_fields.number(theirs, "num_random_blocks", _fields.Number(0, 1 << 16)),
    )  # fmt: skip
    cfg.train.objective = "masked"
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    if not isinstance(model, SparseEncoder) or model.attention != "blocks" or model.distinct or model.embedding_width:
        return None
    kinds = {(masked, pooler, classes): name for name, (masked, _, classes) in HEADS.items() for pooler in (False, True)}
    theirs = hf_bert.described(model, "big_bird", kinds)
    if not theirs or model.random != "first" or model.first_position:
        return None
    return theirs | {
        "add_pooling_layer": model.pooler,
        "attention_type": "block_sparse",
        "attention_probs_dropout_prob": 0.0,
        "block_size": model.block_size,
        "num_random_blocks": model.random_blocks,
        "rescale_embeddings": False,
        "use_bias": True,
    }


def aliases(theirs: dict) -> dict:
    return hf_bert.TIED if _heads(theirs)[0] else {}


def entries(theirs: dict) -> list[Entry]:
    masked, pooler, classes = _heads(theirs)
    prefix = "bert." if masked else ""
    table = embedded(f"{prefix}embeddings") + hf_bert.encoder_layers(theirs, prefix, hf_bert.PROJECTIONS)
    table += biased("pool", f"{prefix}pooler") if pooler else []
    table += hf_bert.masked_head("cls.predictions") if masked else []
    return table + (biased("classifier", "cls.seq_relationship") if classes else [])

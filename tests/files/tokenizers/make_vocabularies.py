"""Makes the folders gpt2_parts and llama_model: tokenizers in the files of older checkpoints, with the ids of transformers.

  python tests/files/tokenizers/make_vocabularies.py      (needs transformers, sentencepiece, protobuf)

gpt2_parts has the vocab.json and merges.txt of gpt2.json; llama_model has a SentencePiece tokenizer.model.
"""

import io
import json
from pathlib import Path

import sentencepiece
import transformers

HERE = Path(__file__).parent
TEXTS = json.loads((HERE / "ids.json").read_text("utf-8"))["texts"]
MORE = "The people of the United States of America, in the year 1862, have the power to make the laws."
CORPUS = [*TEXTS, MORE, "日本の人。"] * 4


def gpt2(folder):
    model = json.loads((HERE / "gpt2.json").read_text("utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    config = {"model_type": "gpt2"}
    (folder / "config.json").write_text(json.dumps(config))


def llama(folder):
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in CORPUS for line in text.split("\n") if line), model_writer=out, model_type="bpe",
        vocab_size=400, byte_fallback=True, character_coverage=0.98, remove_extra_whitespaces=False, minloglevel=2,
        normalization_rule_name="identity", split_digits=True,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(out.getvalue())
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": True, "eos_token": "</s>", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def main():
    for name, make in {"gpt2_parts": gpt2, "llama_model": llama}.items():
        folder = HERE / name
        folder.mkdir(exist_ok=True)
        make(folder)
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        ids = {"plain": [theirs(text, add_special_tokens=False).input_ids for text in TEXTS],
               "prompt": [theirs(text).input_ids for text in TEXTS]}  # fmt: skip
        if name == "llama_model":
            library = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
            ids["sentencepiece"] = [library.encode(text) for text in TEXTS]
        (folder / "ids.json").write_text(json.dumps(ids) + "\n")


main()

"""A small config and small corpora for the tests of jaxseq.data."""

import json

from jaxseq.config import base


def data_config(**overrides):
    """The default config with batch 4 and length 16; overrides: fields of the data section, or "train__batch"."""
    config = base()
    for name, value in {"train__batch": 4, "train__length": 16, **overrides}.items():
        section, _, field = name.rpartition("__")
        config[section or "data"][field] = value
    return config.lock()


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(texts)))
    return str(path)


def texts_of(lengths):
    """Documents of the given lengths in characters, all of them different."""
    return ["".join(chr(33 + (7 * i + 3 * j + j * j // 5) % 90) for j in range(n)) for i, n in enumerate(lengths)]


def lossy_tokenizer(folder, change):
    """A lossy tokenizer file: without an id for "e", or without capitals."""
    import tokenizers

    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "the": 1, "cat": 2, "sat": 3}, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    model.decoder = tokenizers.decoders.Metaspace()
    if change == "dropped":
        model = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate("thca s")}, []))
        model.decoder = tokenizers.decoders.Fuse()
    if change == "lower":
        model = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate("thecas T")}, []))
        model.normalizer, model.decoder = tokenizers.normalizers.Lowercase(), tokenizers.decoders.Fuse()
    model.save(str(folder / "lossy.json"))
    return str(folder / "lossy.json")

"""A small config and small corpora for the tests of jaxseq.data."""

import json

from jaxseq.config import base


def data_config(**overrides):
    """The default config with batch 4 and length 16; overrides are of the data section, or "train__batch"."""
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

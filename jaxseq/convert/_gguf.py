"""GGUF files through the `gguf` package: metadata as the config, tensors dequantised to float32 when they are read."""

from pathlib import Path

import numpy as np

from jaxseq.convert._files import Tensors
from jaxseq.errors import UserError


class Quantized(Tensors):
    """Of {name: gguf's ReaderTensor}; GGUF writes shapes with the fastest axis first."""

    def shape(self, name):
        return tuple(int(n) for n in reversed(self.parts[name].shape))

    def __getitem__(self, name):
        from gguf import dequantize

        part = self.parts[name]
        return np.asarray(dequantize(part.data, part.tensor_type), np.float32).reshape(self.shape(name))


def open(path: Path) -> tuple[dict, Quantized]:
    """({key: value} of the metadata, lazy tensors)"""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise UserError("reading GGUF needs the gguf package; pip install 'jaxseq[gguf]'") from None
    try:
        reader = GGUFReader(path)
        metadata = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    except (ValueError, OSError, IndexError, KeyError) as error:
        raise UserError(f"{path} is no whole GGUF file ({error}); fetch it again") from error
    return metadata, Quantized({tensor.name: tensor for tensor in reader.tensors})

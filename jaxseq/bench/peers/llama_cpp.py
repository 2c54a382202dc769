"""llama.cpp on the CPU, by llama-cpp-python: models of Llama's family as a GGUF file, in float32 or as many bits as our weights.

Keys and values are kept in float32, as ours are. Nothing is trained.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from jaxseq import convert, weights
from jaxseq.errors import UserError

PACKAGES = {"llama_cpp": "llama-cpp-python", "gguf": "gguf"}
SOURCE = "gguf/llama"
LONGEST = 2**20  # tokens, as the file says; rotations have no largest position
KINDS = {"int8": "Q8_0", "w8a8": "Q8_0", "fp8": "Q8_0", "int4": "Q4_0", "nf4": "Q4_0"}  # {kind of our weights: type in GGUF}


class LlamaCpp:
    def __init__(self, folder: tempfile.TemporaryDirectory, vocab: int):
        self.folder, self.vocab = folder, vocab  # the folder is deleted with the peer
        self.random = np.random.default_rng(0)

    def opened(self, context: int, every: bool = False) -> Any:
        """The model for texts of up to `context` tokens. every: it keeps the logits of all tokens. Raises UserError if llama.cpp
        refuses it."""
        import llama_cpp

        cores = os.cpu_count() or 1
        try:
            return llama_cpp.Llama(
                str(Path(self.folder.name) / "model.gguf"), n_ctx=context, n_threads=cores, n_threads_batch=cores,
                type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, logits_all=every, verbose=False,
            )  # fmt: skip
        except ValueError as error:
            raise UserError(f"llama.cpp cannot open it: {str(error).splitlines()[0]}") from None

    def logits(self, tokens_BT: np.ndarray) -> np.ndarray:
        llama, rows = self.opened(tokens_BT.shape[1], every=True), []
        for tokens_T in tokens_BT:
            llama.reset()
            llama.eval(tokens_T.tolist())
            rows.append(np.array(llama.scores[: len(tokens_T)], np.float32))
        return np.stack(rows)

    def training(self, rows: int, length: int) -> NoReturn:
        raise UserError("llama.cpp trains no models")

    def reading(self, length: int) -> Callable[[], None]:
        return self.generating(length, 1)

    def generating(self, length: int, steps: int) -> Callable[[], None]:
        import llama_cpp

        llama, prompt = self.opened(length + steps), self.random.integers(0, self.vocab, length).tolist()

        def call() -> None:
            llama.reset()
            tokens = prompt
            for _ in range(steps):
                llama.eval(tokens)
                last = llama_cpp.llama_get_logits_ith(llama.ctx, -1)
                tokens = [int(np.ctypeslib.as_array(last, (self.vocab,)).argmax())]

        return call


def open(model: Any, params: Any) -> LlamaCpp:
    folder = tempfile.TemporaryDirectory()
    write(Path(folder.name) / "model.gguf", model, params)
    return LlamaCpp(folder, model.vocab)


def write(path: Path, model: Any, params: Any) -> None:
    """A GGUF file without a tokenizer. Matrices have the bits of our quantized weights, if there are any; those whose rows GGUF
    cannot divide into blocks are in float32. Raises UserError for other models than Llama's family."""
    import gguf

    metadata = convert.describe(SOURCE, model)
    writer = gguf.GGUFWriter(path, metadata.pop("general.architecture"))
    writer.add_context_length(LONGEST)
    writer.add_tokenizer_model("no_vocab")
    size = metadata["llama.rope.dimension_count"]
    writer.add_key_length(size)
    writer.add_value_length(size)
    kinds = {float: gguf.GGUFValueType.FLOAT32, int: gguf.GGUFValueType.UINT32}
    for key, value in metadata.items():
        if type(value) in kinds:
            writer.add_key_value(key, value, kinds[type(value)])
    of_matrices = _type_of(params)
    for name, array in convert.to_state_dict(SOURCE, model, params).items():
        kind = gguf.GGMLQuantizationType[of_matrices if array.ndim == 2 else "F32"]
        if array.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
            kind = gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(np.asarray(array, np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _type_of(params: Any) -> str:
    """The GGUF type of the most common kind of quantized weights."""
    nodes = jax.tree.leaves(params, is_leaf=weights.is_weight)
    found = [KINDS[node.kind] for node in nodes if isinstance(node, weights.QuantizedWeight)]
    return max(set(found), key=found.count) if found else "F32"

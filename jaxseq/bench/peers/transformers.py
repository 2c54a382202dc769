"""transformers with PyTorch on the CPU: the folder that jaxseq exports, opened by AutoModelForCausalLM, in float32."""

import os
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxseq import convert
from jaxseq.errors import UserError

PACKAGES = {"transformers": "transformers", "torch": "torch"}


class Peer:
    def __init__(self, model: Any):
        import torch

        torch.set_num_threads(os.cpu_count() or 1)
        self.torch, self.model = torch, model
        self.random = torch.Generator().manual_seed(0)

    def tokens(self, rows: int, length: int) -> Any:
        return self.torch.randint(0, self.model.config.vocab_size, (rows, length), generator=self.random)

    def logits(self, tokens_BT: np.ndarray) -> np.ndarray:
        with self.torch.no_grad():
            return self.model.eval()(self.torch.from_numpy(tokens_BT.astype(np.int64)), use_cache=False).logits.numpy()

    def training(self, rows: int, length: int) -> Callable[[], None]:
        model = self.model.train()
        optimizer = self.torch.optim.AdamW(model.parameters(), lr=1e-4)
        tokens = self.tokens(rows, length)

        def call() -> None:
            model(tokens, labels=tokens, use_cache=False).loss.backward()
            self.torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        return call

    def reading(self, length: int) -> Callable[[], None]:
        return self.generating(length, 1)

    def generating(self, length: int, steps: int) -> Callable[[], None]:
        model, tokens = self.model.eval(), self.tokens(1, length)
        count = {"max_new_tokens": steps, "min_new_tokens": steps, "do_sample": False, "pad_token_id": 0}
        return lambda: model.generate(tokens, attention_mask=self.torch.ones_like(tokens), **count)


def open(model: Any, params: Any) -> Peer:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        convert.save_pretrained(folder, model, params)
        try:
            theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
        except (ValueError, KeyError) as error:  # a model type that this version does not have
            raise UserError(f"transformers cannot open it: {str(error).splitlines()[0]}") from None
    theirs.generation_config.eos_token_id = None  # random weights would end a text early
    return Peer(theirs)

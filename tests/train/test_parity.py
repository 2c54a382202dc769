"""Twenty training steps from the same weights in transformers or torchscale and here. Skipped unless torch, transformers and
torchscale are installed."""

import json
import types

import jax
import numpy as np
import pytest

from jaxseq import convert
from jaxseq.convert import from_state_dict, to_state_dict
from jaxseq.train.step import prepare

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

STEPS, BATCH, LENGTH, VOCAB = 20, 4, 24, 61
ALLOWED = 1e-5  # of the loss
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": VOCAB}
KINDS = {
    "hf/gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": VOCAB}),
    "hf/llama": ("Llama", SIZE | {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}),
    "hf/gpt_neox": ("GPTNeoX", SIZE | {"num_attention_heads": 4, "intermediate_size": 64}),
    "hf/mamba": ("Mamba", SIZE | {"state_size": 8}),
    "hf/mamba2": ("Mamba2", SIZE | {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8}),
    "blinkdl/rwkv4": ("Rwkv", SIZE | {"attention_hidden_size": 32, "intermediate_size": 64, "context_length": LENGTH}),
}
HEADS = {"GPT2": "GPT2LMHeadModel"}  # the others are …ForCausalLM
RENAMED = {  # names in memory -> names in files, where they differ
    "hf/gpt_neox": (("lm_head.", "embed_out."),),
    "blinkdl/rwkv4": (
        ("rwkv.", ""), ("embeddings.", "emb."), (".pre_ln.", ".ln0."), ("attention.", "att."), ("feed_forward.", "ffn."),
        ("time_mix_key", "time_mix_k"), ("time_mix_value", "time_mix_v"), ("time_mix_receptance", "time_mix_r"),
    ),
}  # fmt: skip
RETNET = {
    "vocab_size": VOCAB, "decoder_embed_dim": 32, "decoder_value_embed_dim": 64, "decoder_ffn_embed_dim": 48,
    "decoder_layers": 2, "decoder_retention_heads": 2,
}  # fmt: skip


def tensors(source: str, theirs) -> dict[str, "torch.nn.Parameter"]:
    """Their parameters by the names that jaxseq.convert uses."""
    found = {}
    for name, parameter in theirs.named_parameters():
        for memory, file in RENAMED.get(source, ()):
            name = name.replace(memory, file)
        found[name] = parameter
    return found


class TorchscaleRetNet(torch.nn.Module):
    """torchscale's decoder, called like transformers' models."""

    def __init__(self):
        from torchscale.architecture.config import RetNetConfig
        from torchscale.architecture.retnet import RetNetDecoder

        super().__init__()
        self.config = RetNetConfig(**RETNET)
        self.config.to_dict = lambda: {k: v for k, v in vars(self.config).items() if not callable(v)}
        self.decoder = RetNetDecoder(self.config, embed_tokens=torch.nn.Embedding(VOCAB, RETNET["decoder_embed_dim"]))

    def named_parameters(self, *args, **kwargs):
        return self.decoder.named_parameters(*args, **kwargs)

    def forward(self, input_ids, use_cache):
        return types.SimpleNamespace(logits=self.decoder(input_ids)[0])


def rows() -> np.ndarray:
    """[steps, B, T + 1]: each token is the one before plus 1 or 2, which can be learnt."""
    draw = np.random.default_rng(0)
    return (draw.integers(1, 3, (STEPS, BATCH, LENGTH + 1)).cumsum(-1) + draw.integers(VOCAB, size=(STEPS, BATCH, 1))) % VOCAB


def configured(source: str, theirs) -> tuple:
    """Our config for their model and its training, and its parameters."""
    fields = theirs.config.to_dict()
    arrays = {name: p.detach().numpy().copy() for name, p in tensors(source, theirs).items()}
    if source.startswith("blinkdl"):
        fields = convert._source(source).infer({name: x.shape for name, x in arrays.items()})
    fields = json.loads(json.dumps(fields, default=str))
    config = convert._source(source).config(fields)
    model, params = from_state_dict(source, fields, arrays)
    with config.unlocked():
        config.model.logit_penalty = 0.0  # RWKV's L2Wrap, which transformers omits
        config.train.update(steps=STEPS, batch=BATCH, length=LENGTH, lr=3e-3, warmup=5, weight_decay=0.1, clip=1.0)
        config.train.form = "parallel"
    return config, model, params


def by_tensor(source: str, model, boxes, value) -> dict[str, float]:
    """{their name: `value` of the box of our parameter}"""
    is_box = lambda leaf: hasattr(leaf, "decay")  # noqa: E731
    filled = jax.tree.map(lambda box: np.full(box.value.shape, value(box), np.float32), boxes, is_leaf=is_box)
    return {name: float(x.ravel()[0]) for name, x in to_state_dict(source, model, filled).items()}


def theirs_losses(source: str, theirs, decay: dict[str, float], multiple: dict[str, float], rates, train) -> list[float]:
    groups = [
        {"params": [p], "weight_decay": train.weight_decay * decay[name], "multiple": multiple[name]}
        for name, p in tensors(source, theirs).items()
    ]
    optimizer = torch.optim.AdamW(groups, lr=train.lr, betas=(train.beta1, train.beta2), eps=train.eps)
    losses = []
    for tokens, rate in zip(torch.tensor(rows()), rates, strict=True):
        logits = theirs(input_ids=tokens[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB), tokens[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), train.clip)
        for group in optimizer.param_groups:
            group["lr"] = float(rate) * group["multiple"]
        optimizer.step()
        losses.append(loss.item())
    return losses


def reference(source: str) -> "torch.nn.Module":
    if source == "torchscale/retnet":
        pytest.importorskip("torchscale")
        return TorchscaleRetNet()
    name, fields = KINDS[source]
    kind = getattr(transformers, HEADS.get(name, f"{name}ForCausalLM"))
    return kind(getattr(transformers, f"{name}Config")(**fields))


@pytest.mark.parametrize("source", [*KINDS, "torchscale/retnet"])
def test_twenty_steps_follow_the_reference(source):
    torch.manual_seed(0)
    theirs = reference(source).train()
    for module in theirs.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    config, model, params = configured(source, theirs)
    trainer = prepare(config, jax.devices()[:1])
    boxes = trainer.model.boxed()["params"]
    decay, multiple = (by_tensor(source, model, boxes, value) for value in (lambda box: box.decay, lambda box: box.lr))
    wanted = theirs_losses(source, theirs, decay, multiple, [trainer.schedule(i) for i in range(STEPS)], config.train)

    state, step, got = trainer.init({"params": params}), trainer.compile(), []
    for tokens in rows().astype(np.int32):
        pos = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (BATCH, LENGTH))
        weights = np.ones((BATCH, LENGTH), np.float32)
        batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "pos": pos, "weights": weights}
        state, metrics = step(state, batch)
        got.append(float(metrics["loss"]))
    assert got[-1] < got[0] - 0.1
    np.testing.assert_allclose(got, wanted, rtol=ALLOWED)

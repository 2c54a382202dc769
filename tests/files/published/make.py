"""Writes the folders next to it with transformers' `save_pretrained`: tiny models with random weights, in one file and in about
four shards, with the inputs and outputs of the model in outputs.npz.

Run with torch and transformers: python tests/files/published/make.py [NAME ...]
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import transformers as tf

HERE = Path(__file__).parent
VOCAB = 48
COMMON = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "intermediate_size": 24}
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
T5 = {"vocab_size": VOCAB, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}
LLAMA = COMMON | HEADS | {"num_key_value_heads": 2, "rms_norm_eps": 1e-5}
GPT2 = {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32, "bos_token_id": 1, "eos_token_id": 2}
NEOX = COMMON | HEADS | {"rotary_pct": 0.5, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2}
MAMBA = COMMON | ENDS | {"state_size": 4, "num_hidden_layers": 2}
MAMBA2 = MAMBA | {"num_heads": 4, "head_dim": 8, "n_groups": 2, "chunk_size": 4}
KIMI = {
    "num_key_value_heads": 4,
    "num_hidden_layers": 2,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 2,
    "v_head_dim": 4,
    "moe_intermediate_size": 8,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "linear_head_dim": 4,
    "linear_num_heads": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "mlp_layer_types": ["sparse", "sparse"],
}  # a dense model has names in files that the authors' files do not have
QWEN3_NEXT = {
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 3,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 12,
    "mlp_only_layers": [1],
    "layer_types": ["linear_attention", "full_attention"],
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 4.0}
DEEPSEEK = {
    "num_key_value_heads": 4,
    "num_hidden_layers": 3,
    "kv_lora_rank": 8,
    "q_lora_rank": 12,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 8,
    "v_head_dim": 4,
    "moe_intermediate_size": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "rope_parameters": YARN | {"mscale": 0.8, "mscale_all_dim": 0.8},
}
OLMO_HYBRID = {
    "num_hidden_layers": 3,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 3,
    "rope_parameters": {"rope_theta": None, "rope_type": "default"},
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
MINIMAX = {
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "num_hidden_layers": 3,
    "layer_types": ["full_attention", "linear_attention", "full_attention"],
    **{
        f"{kind}_{factor}_factor": value
        for kind in ("full_attn", "linear_attn", "mlp")
        for factor, value in (("alpha", 1.5), ("beta", 0.5))
    },
}
NEMOTRON_H = {
    "head_dim": 6,
    "ssm_state_size": 4,
    "mamba_num_heads": 4,
    "mamba_head_dim": 10,
    "n_groups": 2,
    "chunk_size": 4,
    "layers_block_type": ["linear_attention", "mlp", "linear_attention", "full_attention", "mlp"],
}
GRANITE = {
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "mamba_n_heads": 4,
    "mamba_n_groups": 2,
    "mamba_d_state": 4,
    "mamba_chunk_size": 4,
    "shared_intermediate_size": 24,
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.3,
    "residual_multiplier": 0.7,
    "logits_scaling": 1.5,
}
FALCON_H1 = {
    "mamba_d_ssm": 24,
    "mamba_n_heads": 4,
    "mamba_n_groups": 2,
    "mamba_d_state": 4,
    "mamba_chunk_size": 4,
    "mamba_norm_before_gate": False,
    "embedding_multiplier": 3.0,
    "lm_head_multiplier": 0.6,
    "key_multiplier": 0.7,
    "attention_in_multiplier": 1.2,
    "attention_out_multiplier": 0.8,
    "ssm_in_multiplier": 1.1,
    "ssm_out_multiplier": 0.9,
    "mlp_multipliers": [1.3, 0.7],
    "ssm_multipliers": [1.2, 0.9, 0.8, 1.1, 0.7],
    "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"},
}
BERT = COMMON | HEADS | {"max_position_embeddings": 32}
ALBERT = {"embedding_size": 8, "num_hidden_layers": 4, "num_hidden_groups": 2}
LONGFORMER = BERT | {"attention_window": 4, "type_vocab_size": 1, "pad_token_id": 1}
BIG_BIRD = BERT | {"sep_token_id": 3, "block_size": 2, "num_random_blocks": 1}  # sparse for more than 14 tokens
FUNNEL = {"vocab_size": VOCAB, "d_model": 16, "n_head": 4, "d_head": 6, "d_inner": 24, "block_sizes": [2, 1, 2]}
VIT = HEADS | {"hidden_size": 16, "num_hidden_layers": 2, "image_size": 8, "patch_size": 4}

MODELS = {
    "llama": ("LlamaForCausalLM", LLAMA | {"rope_theta": 500000.0}),
    "llama_tied": ("LlamaForCausalLM", LLAMA | {"tie_word_embeddings": True, "attention_bias": True, "head_dim": 6}),
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "gpt2_bare": ("GPT2Model", GPT2 | {"n_inner": 40}),
    "gpt2_untied": ("GPT2LMHeadModel", GPT2 | {"tie_word_embeddings": False, "activation_function": "relu"}),
    "gpt_neox": ("GPTNeoXForCausalLM", NEOX),
    "gpt_neox_tied": ("GPTNeoXForCausalLM", NEOX | {"tie_word_embeddings": True, "use_parallel_residual": False}),
    "mixtral": ("MixtralForCausalLM", LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 5}),
    "mamba": ("MambaForCausalLM", MAMBA),
    "mamba_untied": ("MambaForCausalLM", MAMBA | {"tie_word_embeddings": False, "expand": 3, "time_step_rank": 2}),
    "mamba2": ("Mamba2ForCausalLM", MAMBA2),
    "mamba2_tied": ("Mamba2ForCausalLM", MAMBA2 | {"tie_word_embeddings": True, "time_step_limit": (0.01, 0.2)}),
    "falcon_mamba": ("FalconMambaForCausalLM", MAMBA),
    "rwkv": ("RwkvForCausalLM", COMMON | {"intermediate_size": 24, "context_length": 32}),
    "lfm2": ("Lfm2ForCausalLM", COMMON | HEADS | ENDS | {"num_key_value_heads": 2, "num_hidden_layers": 4, "norm_eps": 1e-5,
             "block_multiple_of": 8, "layer_types": ["conv", "full_attention"] * 2, "full_attn_idxs": [1, 3]}),
    "kimi_linear": ("KimiLinearForCausalLM", LLAMA | ENDS | KIMI),
    "qwen3_next": ("Qwen3NextForCausalLM", LLAMA | ENDS | QWEN3_NEXT),
    "deepseek_v3": ("DeepseekV3ForCausalLM", LLAMA | ENDS | DEEPSEEK),
    "olmo_hybrid": ("OlmoHybridForCausalLM", LLAMA | ENDS | OLMO_HYBRID),
    "minimax": ("MiniMaxForCausalLM", LLAMA | ENDS | MINIMAX),
    "recurrent_gemma": ("RecurrentGemmaForCausalLM", LLAMA | ENDS | {"num_hidden_layers": 3, "lru_width": 24,
                        "attention_window_size": 5, "num_key_value_heads": 1}),
    "nemotron_h": ("NemotronHForCausalLM", COMMON | HEADS | ENDS | NEMOTRON_H | {"num_key_value_heads": 2}),
    "granite_moe_hybrid": ("GraniteMoeHybridForCausalLM", LLAMA | ENDS | GRANITE | {"num_local_experts": 0,
                           "tie_word_embeddings": True}),
    "granite_moe_hybrid_experts": ("GraniteMoeHybridForCausalLM", LLAMA | ENDS | GRANITE | {"num_local_experts": 4,
                                   "intermediate_size": 8, "position_embedding_type": "rope"}),
    "falcon_h1": ("FalconH1ForCausalLM", LLAMA | ENDS | FALCON_H1),
    "falcon_h1_normed": ("FalconH1ForCausalLM", LLAMA | ENDS | FALCON_H1 | {"mamba_rms_norm": True}),
    "mistral": ("MistralForCausalLM", LLAMA | ENDS | {"sliding_window": 5, "rope_parameters": LINEAR}),
    "qwen2": ("Qwen2ForCausalLM", LLAMA | ENDS | {"tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 5,
              "max_window_layers": 1}),
    "qwen3": ("Qwen3ForCausalLM", LLAMA | ENDS | {"head_dim": 8, "rope_parameters": YARN}),
    "phi3": ("Phi3ForCausalLM", LLAMA | ENDS | {"partial_rotary_factor": 0.5}),
    "gemma": ("GemmaForCausalLM", LLAMA | ENDS | {"head_dim": 6}),
    "gemma2": ("Gemma2ForCausalLM", LLAMA | ENDS | {"head_dim": 6, "query_pre_attn_scalar": 12, "sliding_window": 5,
               "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gpt_oss": ("GptOssForCausalLM", LLAMA | ENDS | {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2,
                "sliding_window": 5, "swiglu_limit": 0.5, "rope_parameters": YARN | {"truncate": False}}),
    "olmo2": ("Olmo2ForCausalLM", LLAMA | ENDS),
    "diffllama": ("DiffLlamaForCausalLM", LLAMA | ENDS | {"attention_bias": True}),
    "opt_350m": ("OPTForCausalLM", COMMON | ENDS | {"num_attention_heads": 4, "ffn_dim": 24, "max_position_embeddings": 32,
                 "word_embed_proj_dim": 8, "do_layer_norm_before": False}),
    "bert": ("BertModel", BERT),
    "bert_masked": ("BertForMaskedLM", BERT),
    "bert_pretraining": ("BertForPreTraining", BERT),
    "bert_classifier": ("BertForSequenceClassification", BERT | {"num_labels": 3}),
    "albert": ("AlbertForMaskedLM", BERT | ALBERT),
    "albert_bare": ("AlbertModel", BERT | ALBERT),
    "albert_classifier": ("AlbertForSequenceClassification", BERT | ALBERT | {"num_labels": 3}),
    "longformer": ("LongformerForMaskedLM", LONGFORMER),
    "longformer_bare": ("LongformerModel", LONGFORMER | {"type_vocab_size": 2}),
    "longformer_classifier": ("LongformerForSequenceClassification", LONGFORMER | {"num_labels": 3, "hidden_act": "relu"}),
    "big_bird": ("BigBirdForMaskedLM", BIG_BIRD),
    "big_bird_bare": ("BigBirdModel", BIG_BIRD | {"num_random_blocks": 2}),
    "big_bird_pretraining": ("BigBirdForPreTraining", BIG_BIRD),
    "funnel": ("FunnelForMaskedLM", FUNNEL | {"num_decoder_layers": 1}),
    "funnel_bare": ("FunnelModel", FUNNEL | {"block_repeats": [1, 2, 2], "num_decoder_layers": 2, "hidden_act": "relu"}),
    "funnel_base": ("FunnelBaseModel", FUNNEL | {"pooling_type": "max"}),
    "funnel_classifier": ("FunnelForSequenceClassification", FUNNEL | {"num_labels": 3}),
    "vit": ("ViTForImageClassification", VIT | {"num_labels": 5}),
    "vit_bare": ("ViTModel", VIT),
    "t5": ("T5ForConditionalGeneration", T5),
    "t5_gated": ("T5ForConditionalGeneration", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": ("MT5ForConditionalGeneration", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "switch": ("SwitchTransformersForConditionalGeneration", T5 | {"num_experts": 2, "num_sparse_encoder_layers": 1,
               "num_sparse_decoder_layers": 1, "num_decoder_layers": 2, "expert_capacity": 64}),
}  # fmt: skip


def build(name: str):
    kind, fields = MODELS[name]
    kind = getattr(tf, kind)
    model = kind(kind.config_class(**fields)).eval()
    with torch.no_grad():  # initial biases of 0 and scales of 1 would hide exchanged names
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def inputs(model) -> dict:
    if "image_size" in model.config.to_dict():
        return {"pixel_values": torch.randn(2, 3, 8, 8)}
    tokens = torch.randint(3, VOCAB, (2, 9))
    if model.config.is_encoder_decoder:
        return {"input_ids": tokens, "decoder_input_ids": torch.randint(3, VOCAB, (2, 6))}
    if model.config.model_type == "longformer":
        return {"input_ids": tokens, "global_attention_mask": torch.tensor([[1] + 8 * [0], 5 * [0] + [1] + 2 * [0] + [1]])}
    if model.config.model_type == "funnel":  # an even number of tokens; type 2 is that of [CLS]
        return {"input_ids": torch.randint(3, VOCAB, (2, 14)), "token_type_ids": torch.tensor([[2] + 6 * [0] + 7 * [1]] * 2)}
    if model.config.model_type in ("bert", "albert", "big_bird"):
        tokens = torch.randint(3, VOCAB, (2, 23)) if model.config.model_type == "big_bird" else tokens
        types = (torch.arange(tokens.shape[1]) > 4).long()
        return {"input_ids": tokens, "token_type_ids": types.expand(tokens.shape).contiguous()}
    return {"input_ids": tokens}


OUTPUTS = ("logits", "prediction_logits", "seq_relationship_logits", "last_hidden_state", "pooler_output")


def make(name: str) -> None:
    torch.manual_seed(sum(map(ord, name)))
    model, folder = build(name), HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    total = sum(parameter.nbytes for parameter in model.parameters())
    model.save_pretrained(folder / "shards", max_shard_size=total // 3)
    given = inputs(model)
    with torch.no_grad():
        found = model(**given)
    arrays = {key: getattr(found, key).numpy() for key in OUTPUTS if getattr(found, key, None) is not None}
    np.savez_compressed(folder / "outputs.npz", **{key: value.numpy() for key, value in given.items()}, **arrays)
    index = json.loads((folder / "shards" / "model.safetensors.index.json").read_text())
    print(name, len(set(index["weight_map"].values())), "shards", total, "bytes", {k: v.shape for k, v in arrays.items()})


if __name__ == "__main__":
    for wanted in sys.argv[1:] or MODELS:
        make(wanted)

"""Defaults of the config's sections data, train, mesh and eval. Those of the section model are in jaxseq/models."""

from ml_collections.config_dict import placeholder


def sections() -> dict[str, dict]:
    """{section: {field: default}}; a placeholder is a field of that type that is empty. New objects in each call."""
    return {
        "data": {
            "source": "sotu",  # sotu, dna; guessed from data.path: text, jsonl, csv, fasta, table, tokens, folder
            "path": placeholder(str),
            "field": "text",
            "label": "label",  # field that holds the label, for train.objective=classification
            "side": placeholder(int),  # pixels per side to resize images to; empty: the model's size, or none
            # auto: that of train.init or train.distill_teacher, else byte; byte; or the path of a tokenizers JSON file or an RWKV
            # vocabulary (.txt)
            "tokenizer": "auto",
            "validation_every": 20,
            "stream": False,  # train while the data is read; see jaxseq.data.streaming
            "prefetch": 4,
            "seed": 0,
            "cache": placeholder(str),
            "skip_records": 0,  # number of damaged records to skip in each corpus; one more is an error
            "cache_gb": 20.0,  # size of the token cache; beyond it the least recently used entries are deleted
        },
        "train": {
            "objective": "next_token",
            "corruption": 0.15,  # fraction of tokens hidden by the objectives masked and span
            "mean_span": 3.0,  # mean length of a span in tokens, for the objective span
            "smoothing": 0.0,  # label smoothing, for classification
            "steps": 1000,
            "batch": 16,  # rows, over all processes
            "length": 256,  # tokens per row
            "accumulate": 1,
            "lr": 1e-3,
            "lr_source": "",  # source of the learning rate, for the record
            "lr_width": placeholder(int),  # model.width at which lr was tuned; empty: use lr at any width
            "schedule": "cosine",  # cosine, linear, wsd, constant
            "warmup": 50,  # steps
            "decay_steps": placeholder(int),  # length of the schedule in steps; empty: train.steps
            "decay_fraction": 0.2,  # fraction of decay_steps in which wsd decays
            "final_lr": 0.1,  # as a fraction of lr
            "beta1": 0.9,
            "beta2": 0.95,
            "eps": 1e-8,
            "weight_decay": 0.1,
            "clip": 1.0,
            "skip": 0,  # number of bad steps to skip in the whole run, see jaxseq.train.guard
            "skip_norm": 0.0,  # gradient norm above which a step is bad; 0: only a gradient that is not finite is bad
            "rewind": 0,  # number of rewinds to the last checkpoint after a bad step; the bad data are then skipped
            "spike": 0.0,  # a loss above this multiple of the median of recent losses is a spike; 0: off
            "seed": 0,
            "form": "auto",
            "init": placeholder(str),  # a workdir; start from its weights
            "init_allow": "",  # comma-separated model fields that may differ from those of train.init
            "init_layers": "",  # start from some layers of train.init: even (at equal distances), or their numbers such as 0,3,6
            "distill_teacher": placeholder(str),  # a workdir; the teacher of the objective distillation
            "distill_cache": placeholder(str),  # a folder of `jaxseq teach`: the teacher's logits, in place of the teacher
            "distill_alpha": 0.5,  # weight of the teacher's distribution; the text itself has 1 - distill_alpha
            "distill_temperature": 1.0,  # of both distributions
            "distill_kind": "forward",  # KL divergence: forward (teacher || student) or reverse (student || teacher)
            "distill_top_k": 0,  # forward: only the teacher's k most likely tokens, renormalised; 0: all
            "lora_rank": 0,  # rank of adapters (LoRA) for the linear maps of train.init; 0: train all weights
            "lora_alpha": 16.0,  # adapters are scaled by lora_alpha / lora_rank
            "lora_magnitude": False,  # also train the norm of each output's weights (DoRA)
            "lora_targets": "",  # comma-separated parts of the paths of the maps with adapters; empty: all
            "rounding": "",  # int8, w8a8, int4, nf4, fp8: quantization-aware training; empty: none
            "log_every": 10,
            "logger": placeholder(str),  # additional logger: wandb
            "checkpoint_every": 200,
            "keep": 2,
            "eval_every": 0,  # steps; 0: at the end only
            "precision": "default",
        },
        "mesh": {"data": 1, "fsdp": 1, "sequence": 1, "tensor": 1, "expert": 1},
        "eval": {
            "batch": 8,  # documents evaluated at the same time
            "length": 256,  # tokens per segment
            "documents": 0,  # 0: all
            "tokens": 1_000_000,  # approximate number of tokens scored during training; 0: the whole split
            "carry_state": True,  # from segment to segment
            "context": placeholder(int),  # reset the state after this many tokens; empty: never, see evaluation
        },
    }

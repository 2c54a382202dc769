"""Convert a trained Hyena to modal form: approximately the same model, with a state and a decoding step of constant size.

Each filter is approximated by a sum of exponentials (arXiv:2310.18780). For each number of modes in --state, the errors of the
filters and the logits are printed. The model with the most modes is written to --out, a workdir for `generate` and `eval`.
"""

import argparse
import sys
from typing import Any

from jaxseq.cli import _paths
from jaxseq.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of a training run")
    parser.add_argument("--step", type=int, help="checkpoint to take (default: the latest)")
    parser.add_argument("--out", required=True, metavar="DIR", help="the new workdir")
    parser.add_argument("--state", default="8,16,32", metavar="N,…", help="complex modes per channel (default: 8,16,32)")
    parser.add_argument("--steps", type=int, default=500, help="gradient steps to refine the fit (default: 500)")
    parser.add_argument("--rows", type=int, default=8, help="held-out rows on which logits are compared (default: 8)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    sizes, target = _sizes(args.state), _paths.new_folder(args.out, "--out")
    for name in ("steps", "rows"):
        if getattr(args, name) < (name == "rows"):
            raise UserError(f"--{name}={getattr(args, name)} is too small; give a positive number")
    import jax

    from jaxseq import data, modal, train
    from jaxseq.cli.list import human, state_bytes

    model, params, config = train.load(args.workdir, args.step)
    modal.modal_config(config, sizes[0])  # fails early if the model has no hyena mixer
    corpus = data.corpus(config.data, data.tokenizer(config.data))
    tokens_BT = _tokens(corpus, config.train.length, args.rows)
    wanted_BTV = modal.log_probabilities(model, params, tokens_BT)
    before, report, best = state_bytes(model, config.train.length), [], None
    for modes in sizes:
        best = modal.convert(config, params, modes, args.steps)
        got_BTV = modal.log_probabilities(best.model, best.params, tokens_BT)
        entry = {"state": modes, **_filters(best.errors), **modal.logit_error(wanted_BTV, got_BTV)}
        report.append(entry | {"state_bytes": state_bytes(best.model, config.train.length)})
        print(
            f"{modes:4} modes: filters {entry['filter_error']:.2%} off (the worst {entry['worst_filter_error']:.2%}), logits "
            f"{entry['logit_error']:.2%}, {entry['divergence']:.2e} nats a token; state {human(report[-1]['state_bytes'], 'B')}",
            file=sys.stderr,
        )
    train.save_params(target, best.config, best.params)
    print(
        f"{target}: {sizes[-1]} modes, state {human(before, 'B')} before; try: jaxseq generate --workdir={target}",
        file=sys.stderr,
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(best.params))
    return {"workdir": str(target), "state": sizes[-1], "parameters": count, "state_bytes_before": before, "sizes": report}


def _sizes(text: str) -> list[int]:
    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError:
        sizes = [0]
    if sizes[0] < 1:
        raise UserError(f"--state={text} is not a list of positive numbers; write it like --state=8,16,32")
    return sizes


def _tokens(corpus, length: int, rows: int):
    """The beginnings of held-out documents [rows, length], or of training documents if those are too short."""
    import numpy as np

    found = []
    for split in ("validation", "train"):
        for _, ids, _ in corpus.documents(split):
            found += [np.asarray(ids[:length], np.int32)] if len(ids) >= length else []
            if len(found) == rows:
                return np.stack(found)
    if not found:
        raise UserError(
            f"no document has {length} tokens to compare logits on; train on longer ones, or with a shorter train.length"
        )
    return np.stack(found)


def _filters(errors) -> dict[str, float]:
    import numpy as np

    every = np.concatenate([error.ravel() for error in errors.values()])
    layers = {name: [float(row.mean()) for row in error] for name, error in errors.items()}
    return {"filter_error": float(every.mean()), "worst_filter_error": float(every.max()), "layers": layers}

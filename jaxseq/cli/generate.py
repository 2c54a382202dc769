"""Write text with a trained model.

The tokenizer puts its own start tokens before every prompt; --prompt= is an empty prompt, which begins a document. The text ends
at the end of the document or before a --stop string. With one prompt, text is printed as it is generated; with several, each
text is printed when it is finished, below a line --- with its prompt. An incomplete character at the end is not printed. With
--chat, each prompt is a user's message, and the checkpoint's chat template makes the text that the model continues.

The tokens for a prompt do not depend on the other prompts, at equal --rows (and --seed, for prompt 0).

With --draft, a smaller model with the same tokenizer proposes --draft_tokens tokens at a time, which the model checks in one call
(speculative decoding). The text has the same distribution as without it, and with --temperature=0 it is the same text. This is
faster if most proposals are accepted and the draft model is much faster. The share of accepted proposals is printed at the end.
"""

import argparse
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from jaxseq.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of a training run")
    parser.add_argument("--step", type=int, help="checkpoint to take (default: the latest)")
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="may be given several times")
    parser.add_argument(
        "--prompt_file", action="append", default=[], metavar="FILE",
        help="a UTF-8 file with one prompt, taken byte for byte (without a byte order mark); - for standard input",
    )  # fmt: skip
    parser.add_argument("--max_tokens", type=int, default=256, metavar="N", help="maximum number of new tokens (default: 256)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0: always the most likely token (default: 1)")
    parser.add_argument("--top_k", type=int, default=0, metavar="K", help="only the K most likely tokens (default: 0, all)")
    parser.add_argument(
        "--top_p", type=float, default=1.0, metavar="P", help="only the most likely tokens, of total probability P (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="prompt i draws from seed + i (default: 0)")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end the text before TEXT; may be repeated")
    parser.add_argument("--chat", action="store_true", help="answer each prompt, using the checkpoint's chat template")
    parser.add_argument("--system", metavar="TEXT", help="with --chat: the system message before each prompt")
    parser.add_argument("--tokenizer", metavar="FILE", help="tokenizer to use instead of the run's, or if the run has none")
    parser.add_argument("--draft", metavar="DIR", help="workdir of a smaller model that proposes tokens (default: none)")
    parser.add_argument("--draft_tokens", type=int, default=4, metavar="K", help="tokens that it proposes at a time (default: 4)")
    parser.add_argument("--form", default="auto", help="form of the prefill (default: auto)")
    parser.add_argument("--rows", type=int, metavar="N", help="prompts per batch (default: all, but at most 4)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    prompts = _prompts(args)
    for text in args.stop:
        _hint("stop", text)
    from jaxseq import generation  # imported after the checks: loading takes seconds

    model, params, tokenizer = _load(args, "workdir", args.step)
    draft = _load(args, "draft") if args.draft else None
    if draft and draft[2].fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"--draft={args.draft} has the tokenizer {draft[2].name}, --workdir={args.workdir} has {tokenizer.name}; "
            "give a draft model with the same tokenizer, or name the tokenizer of both with --tokenizer"
        )
    ids = [_chat(tokenizer, prompt, args.system) if args.chat else tokenizer.prompt(prompt) for prompt in prompts]
    texts, tokens, drafts, clock = [""] * len(prompts), [[] for _ in prompts], [], _Clock()
    for piece in generation.stream(
        model, params, ids, max_tokens=args.max_tokens, temperature=args.temperature, top_k=args.top_k, top_p=args.top_p,
        seed=args.seed, stop=args.stop, tokenizer=tokenizer, form=args.form, rows=args.rows, draft=draft and draft[:2],
        draft_tokens=args.draft_tokens,
    ):  # fmt: skip
        clock.count(piece.row, len(piece.tokens))
        texts[piece.row] += piece.text
        tokens[piece.row] += piece.tokens
        drafts += [piece.drafts] if piece.drafts else []
        if not args.json:
            _show(piece, texts, prompts)
    seconds, rate = clock.read()
    fast = "" if rate is None else f", {rate:.0f} tokens/s once compiled"
    print(f"{sum(map(len, tokens))} tokens in {seconds:.1f} s{fast}", file=sys.stderr)
    result = {"prompts": prompts, "texts": texts, "tokens": tokens, "seconds": seconds, "tokens_per_second": rate}
    return result | (_report(drafts) if draft else {})


def _load(args, option: str, step: int | None = None) -> tuple[Any, Any, Any]:
    """(model, params in the dtypes in which they are used, tokenizer) of the language model in a workdir."""
    from jaxseq import data, generation, train
    from jaxseq.config import from_dict, to_dict

    workdir = getattr(args, option)
    model, params, config = train.load(workdir, step)
    if config.model.kind != "lm":
        raise UserError(f"--{option}={workdir} holds a model of kind {config.model.kind}; only causal LMs generate text")
    if args.tokenizer:
        config = from_dict(to_dict(config), **{"data.tokenizer": args.tokenizer})
    return model, generation.compute_weights(model, params, args.form), data.tokenizer(config.data)


def _report(drafts: list) -> dict[str, float]:
    """Prints and returns what came of the draft model's proposals, over all rows."""
    calls, tokens, proposed, accepted = map(sum, zip(*drafts, strict=True))
    share, mean = accepted / proposed, tokens / calls
    print(f"{share:.0%} of {proposed} proposals accepted, {mean:.2f} tokens per call of the model", file=sys.stderr)
    return {"acceptance_rate": share, "tokens_per_call": mean}


def _chat(tokenizer, prompt: str, system: str | None) -> list[int]:
    from jaxseq import chat

    first = [] if system is None else [{"role": "system", "content": system}]
    return chat.prompt(tokenizer, [*first, {"role": "user", "content": prompt}])


def _prompts(args) -> list[str]:
    if args.system is not None and not args.chat:
        raise UserError("--system is a message of a conversation; give --chat as well")
    for option in ("prompt", "stop"):
        setattr(args, option, [_text(option, word) for word in getattr(args, option)])
    args.system = args.system and _text("system", args.system)
    prompts = [*args.prompt, *map(_read, args.prompt_file)]
    if not prompts:
        raise UserError("no prompt was given; use --prompt=TEXT or --prompt_file=FILE, or --prompt= to begin a document")
    for text in args.prompt:
        _hint("prompt", text)
    return prompts


def _text(option: str, word: str) -> str:
    """An argument of the command line. Bytes that the locale cannot decode arrive as lone surrogates; they may be UTF-8."""
    try:
        return os.fsencode(word).decode("utf-8") if re.search("[\udc80-\udcff]", word) else word
    except UnicodeError:
        raise UserError(f"--{option}={word!r} is not UTF-8 text; convert it first") from None


def _hint(option: str, text: str) -> None:
    """Warns about a backslash and n: the shell does not turn them into a line break, which the user probably meant."""
    if re.search(r"\\[nrt]", text):
        mend = f"for a line break or a tab write --{option}=$'{text}'"
        print(f"--{option}={text} holds a backslash and a letter; {mend}", file=sys.stderr)


def _read(name: str) -> str:
    """The text of a file, with line ends unchanged and without a byte order mark."""
    try:
        return (sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"--prompt_file={name} cannot be read: {error.strerror}; give the path of a text file") from None
    except UnicodeDecodeError:
        raise UserError(f"--prompt_file={name} is not UTF-8 text; convert it first") from None


def _show(piece, texts: list[str], prompts: list[str]) -> None:
    if len(prompts) == 1:
        print(piece.text, end="\n" if piece.end else "", flush=True)
    elif piece.end:
        print(f"--- {prompts[piece.row]!r}\n{texts[piece.row]}", flush=True)


class _Clock:
    """Seconds since the start, and the decoding rate after compilation: the first tokens of each row wait for prefill and
    compiler, so they are not counted."""

    def __init__(self):
        self.start = self.last = time.perf_counter()
        self.rows: set[int] = set()
        self.tokens, self.seconds = 0, 0.0

    def count(self, row: int, tokens: int) -> None:
        now = time.perf_counter()
        if row in self.rows:
            self.tokens, self.seconds = self.tokens + tokens, self.seconds + now - self.last
        self.rows.add(row)
        self.last = now

    def read(self) -> tuple[float, float | None]:
        """(seconds, tokens per second, or None if nothing ran after compilation)."""
        return self.last - self.start, self.tokens / self.seconds if self.tokens and self.seconds else None

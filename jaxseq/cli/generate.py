"""Write text with a trained model.

One prompt's text is printed as it comes, that of several prompts when each is done. A document's boundary is put in front
of every prompt; the end of the document, or a --stop string, ends the text.
"""

import sys
import time
from pathlib import Path

from jaxseq.errors import UserError


def add_arguments(parser):
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of a training run")
    parser.add_argument("--step", type=int, help="checkpoint to take (default: the latest)")
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="may be given several times")
    parser.add_argument(
        "--prompt_file", action="append", default=[], metavar="FILE", help="a file that is one prompt, - for standard input"
    )
    parser.add_argument("--max_tokens", type=int, default=256, metavar="N", help="new tokens at most (default: 256)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0: always the likeliest token (default: 1)")
    parser.add_argument("--top_k", type=int, default=0, metavar="K", help="only the K likeliest tokens (default: 0, all)")
    parser.add_argument(
        "--top_p", type=float, default=1.0, metavar="P", help="only the likeliest tokens of total probability P (default: 1, all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="prompt i draws from seed + i (default: 0)")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end in front of TEXT; may be repeated")
    parser.add_argument("--form", default="auto", help="form of the prefill (default: auto)")


def run(args):
    prompts = _prompts(args)
    from jaxseq import data, generation, train  # after the check: loading takes seconds

    model, params, config = train.load(args.workdir, args.step)
    if config.model.kind != "lm":
        raise UserError(f"--workdir={args.workdir} holds a model of kind {config.model.kind}; only causal language models go on")
    tokenizer = data.tokenizer(config.data)
    ids = [tokenizer.prompt(prompt) for prompt in prompts]
    texts, tokens, clock = [""] * len(prompts), [[] for _ in prompts], _Clock()
    for piece in generation.stream(
        model, params, ids, max_tokens=args.max_tokens, temperature=args.temperature, top_k=args.top_k, top_p=args.top_p,
        seed=args.seed, stop=args.stop, tokenizer=tokenizer, form=args.form,
    ):  # fmt: skip
        clock.count(len(piece.tokens))
        texts[piece.row] += piece.text
        tokens[piece.row] += piece.tokens
        if not args.json:
            _show(piece, texts, prompts)
    seconds, rate = clock.read()
    print(f"{sum(map(len, tokens))} tokens in {seconds:.1f} s, {rate:.0f} tokens/s once compiled", file=sys.stderr)
    return {"prompts": prompts, "texts": texts, "tokens": tokens, "seconds": seconds, "tokens_per_second": rate}


def _prompts(args) -> list[str]:
    prompts = [*args.prompt, *map(_read, args.prompt_file)]
    if not prompts:
        raise UserError("there is no prompt; give --prompt=TEXT or --prompt_file=FILE")
    if "" in prompts:
        raise UserError(f"prompt {prompts.index('') + 1} is empty; give it at least one character")
    return prompts


def _read(name: str) -> str:
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text()
    except OSError as error:
        raise UserError(f"--prompt_file={name} cannot be read: {error.strerror}; give the path of a text file") from None
    except UnicodeDecodeError:
        raise UserError(f"--prompt_file={name} is not UTF-8 text; convert it first") from None


def _show(piece, texts: list[str], prompts: list[str]) -> None:
    if len(prompts) == 1:
        print(piece.text, end="\n" if piece.end else "", flush=True)
    elif piece.end:
        print(f"--- {prompts[piece.row]!r}", file=sys.stderr)
        print(texts[piece.row], flush=True)


class _Clock:
    """Seconds since the start, and the rate after the first tokens, which had to wait for the compiler."""

    def __init__(self):
        self.start = time.perf_counter()
        self.first = self.last = self.start
        self.tokens = self.first_tokens = 0

    def count(self, tokens: int) -> None:
        self.last = time.perf_counter()
        if not self.tokens:
            self.first, self.first_tokens = self.last, tokens
        self.tokens += tokens

    def read(self) -> tuple[float, float]:
        seconds = self.last - self.start
        if self.tokens > self.first_tokens:
            return seconds, (self.tokens - self.first_tokens) / max(self.last - self.first, 1e-9)
        return seconds, self.tokens / max(seconds, 1e-9)

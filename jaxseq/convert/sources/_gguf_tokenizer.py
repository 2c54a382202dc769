"""Converts the tokenizer in GGUF metadata to a tokenizers JSON file: byte-level BPE ("gpt2") and SentencePiece ("llama")."""

import json

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # token types
SPACE = "▁"


def _byte_level(use_regex: bool = True) -> dict:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _pattern(regex: str) -> list[dict]:
    return [{"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}, _byte_level(False)]


DIGITS = {"type": "Digits", "individual_digits": True}
LLAMA3 = _pattern(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {  # by tokenizer.ggml.pre
    "gpt-2": [_byte_level()],
    "smollm": [DIGITS, _byte_level()],
    "starcoder": [DIGITS, _byte_level()],
    "refact": [DIGITS, _byte_level()],
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
}
WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3")  # vocabulary words are one token, without merges; texts begin with bos


def tokenizer(theirs: dict) -> str | None:
    """A tokenizers JSON text; None for other kinds of tokenizer, which need a tokenizer.json beside the weights."""
    made = {"gpt2": _bpe, "llama": _sentencepiece}.get(theirs.get("tokenizer.ggml.model"), lambda *args: None)
    tokens = theirs.get("tokenizer.ggml.tokens")
    if not tokens:
        return None
    parts = made(theirs, tokens, theirs.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens)))
    if parts is None:
        return None
    whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None, "pre_tokenizer": None}
    return json.dumps(whole | {"post_processor": None} | parts, ensure_ascii=False)


def beside(theirs: dict) -> dict[str, str]:
    """{name: JSON text} of the files that other libraries keep beside a tokenizer.json."""
    tokens, made = theirs.get("tokenizer.ggml.tokens") or [], {}
    ids = {name: theirs.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot", "padding")}
    ids = {name: i for name, i in ids.items() if isinstance(i, int) and 0 <= i < len(tokens)}
    config = {f"{name}_token": tokens[ids[name]] for name in ("bos", "eos") if name in ids}
    if template := theirs.get("tokenizer.chat_template"):
        config["chat_template"] = template
    ends = list(dict.fromkeys(ids[name] for name in ("eos", "eot") if name in ids))
    generation = {"eos_token_id": ends[0] if len(ends) == 1 else ends} if ends else {}
    generation |= {"bos_token_id": ids["bos"]} if "bos" in ids else {}
    for name, value in (("tokenizer_config.json", config), ("generation_config.json", generation)):
        if value:
            made[name] = json.dumps(value, ensure_ascii=False, indent=2)
    return made


def _bpe(theirs: dict, tokens: list[str], kinds: list[int]) -> dict | None:
    name = theirs.get("tokenizer.ggml.pre", "gpt-2")
    pre = PRE_TOKENIZERS.get(name)
    if pre is None:
        return None
    added = [_added(i, tokens[i], kind) for i, kind in enumerate(kinds) if kind in (CONTROL, USER_DEFINED)]
    merges = [merge.split(" ", 1) for merge in theirs["tokenizer.ggml.merges"]]
    return {
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre},
        "post_processor": _ends(theirs, tokens, begins=name in WHOLE_WORDS),
        "decoder": _byte_level(),
        "model": _model(tokens, merges, ignore_merges=name in WHOLE_WORDS),
    }


def _sentencepiece(theirs: dict, tokens: list[str], kinds: list[int]) -> dict | None:
    """A SentencePiece model as BPE. It joins the neighbours whose joined piece scores best, so merges are ordered by score."""
    scores = theirs.get("tokenizer.ggml.scores")
    if scores is None:
        return None
    merges = _merges(tokens, scores, kinds)
    joined = {"".join(pair) for pair in merges}
    added = [
        _added(i, token, kind)
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (UNKNOWN, CONTROL) or (kind == USER_DEFINED and len(token) > 1 and token not in joined and " " not in token)
    ]
    unknown = next((tokens[i] for i, kind in enumerate(kinds) if kind == UNKNOWN), None)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    back = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    front = []
    if theirs.get("tokenizer.ggml.add_space_prefix", True):
        front = [{"type": "Prepend", "prepend": SPACE}]
        back.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [*front, replace]},
        "post_processor": _ends(theirs, tokens, begins=True),
        "decoder": {"type": "Sequence", "decoders": back},
        "model": _model(tokens, merges, unk_token=unknown, fuse_unk=True, byte_fallback=BYTE in kinds),
    }


def _merges(tokens: list[str], scores: list[float], kinds: list[int]) -> list[list[str]]:
    """All splits of a piece into two pieces, ordered by the score of the whole piece, best first."""
    ids = {token: i for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind in (NORMAL, USER_DEFINED)}
    found = []
    for token, i in ids.items():
        cuts = ((token[:at], token[at:]) for at in range(1, len(token)))
        found += [(-scores[i], ids[a], ids[b], [a, b]) for a, b in cuts if a in ids and b in ids]
    return [pair for *_, pair in sorted(found, key=lambda item: item[:3])]


def _added(i: int, token: str, kind: int) -> dict:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": i, "content": token, **flags, "special": kind in (UNKNOWN, CONTROL)}


def _model(tokens: list[str], merges: list[list[str]], **more) -> dict:
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: i for i, token in enumerate(tokens)},
    }
    return model | more | {"merges": merges}


def _ends(theirs: dict, tokens: list[str], begins: bool) -> dict | None:
    """The post-processor that adds bos before and eos after a text, as the file says. begins: the default for bos."""
    wanted = {"bos": theirs.get("tokenizer.ggml.add_bos_token", begins), "eos": theirs.get("tokenizer.ggml.add_eos_token", False)}
    ids = {name: theirs.get(f"tokenizer.ggml.{name}_token_id") for name, add in wanted.items() if add}
    ids = {name: i for name, i in ids.items() if isinstance(i, int) and 0 <= i < len(tokens)}
    if not ids:
        return None
    words = {name: tokens[i] for name, i in ids.items()}

    def around(*sequences: tuple[str, int]) -> list[dict]:
        parts = []
        for which, kind in sequences:
            bos = [{"SpecialToken": {"id": words["bos"], "type_id": kind}}] if "bos" in words else []
            eos = [{"SpecialToken": {"id": words["eos"], "type_id": kind}}] if "eos" in words else []
            parts += [*bos, {"Sequence": {"id": which, "type_id": kind}}, *eos]
        return parts

    special = {words[name]: {"id": words[name], "ids": [i], "tokens": [words[name]]} for name, i in ids.items()}
    return {
        "type": "TemplateProcessing",
        "single": around(("A", 0)),
        "pair": around(("A", 0), ("B", 1)),
        "special_tokens": special,
    }

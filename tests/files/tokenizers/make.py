"""Makes the tiny tokenizers of this folder and ids.json: ids of some texts by transformers and sentencepiece.

  python tests/files/tokenizers/make.py        (needs transformers, tokenizers and sentencepiece, which jaxseq does not)

Every kind of pipeline of published language models is here once, as the tokenizer.json that its library saves. For SentencePiece
models there are also the ids of the sentencepiece library. Run again only to change the set: training differs between versions of
these libraries.
"""

import io
import json
from pathlib import Path

import sentencepiece
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = Path(__file__).parent
CORPUS = [
    "The people of the United States of America, in the year 1862, have the power to make the laws.",
    "We the people hold these truths: that all the people are created equal, and that they have rights.",
    "He said that the war was over; they said it wasn't. I'll see what we've done in 1945 and 2024.",
    "日本語の文、日本の人。 Übergrößen café naïve",
    "def f(x):\n    return x + 1\n\n\nprint(f(2))  # the end",
] * 4
TEXTS = [
    "The people of America",
    " the people",
    "people  of\tthe\n\nlaws ",
    "they've said it's over, in 2024",
    "café naïve Übergröße",
    "日本語 and 😀!",
    "x",
    "",
    "<s> [CLS] <|endoftext|> </s>",
    "\u00a0wide\u3000space\r\nHELLO Hello",
]
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def special(*texts):
    return [AddedToken(text, normalized=False, special=True) for text in texts]


def bpe(vocab, tokens, regex=None):
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex is None)
    split = [pre_tokenizers.Split(Regex(regex), "isolated")] if regex else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=tokens, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def gpt2():
    tokenizer = bpe(340, special("<|endoftext|>"))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def llama3():
    """Whole words of the vocabulary are used without merges; one of them cannot be built by merges."""
    tokenizer = bpe(330, [], WORDS)
    data = json.loads(tokenizer.to_str())
    vocab = data["model"]["vocab"]
    vocab["ĠAmerica"] = len(vocab)
    data["model"]["ignore_merges"] = True
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokens = special("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    tokenizer.add_special_tokens(tokens)
    begin = "<|begin_of_text|>"
    template = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin}:1 $B:1", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def spm(kind, vocab, **more):
    """A SentencePiece model with byte fallback, trained by its library on the corpus."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in CORPUS for line in text.split("\n") if line), model_writer=out, model_type=kind,
        vocab_size=vocab, byte_fallback=True, character_coverage=0.98, remove_extra_whitespaces=False, minloglevel=2,
        normalization_rule_name="identity", split_digits=True, **more,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())


def pieces(model):
    return [(model.id_to_piece(i), model.get_score(i)) for i in range(model.get_piece_size())]


def merges(scored):
    """Merges of a SentencePiece BPE: every split of a piece into two others, in the order in which the pieces were made."""
    ids = {piece: i for i, (piece, _) in enumerate(scored)}
    found = []
    for piece, score in scored:
        cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if piece[:i] in ids and piece[i:] in ids]
        found += [(-score, ids[a], ids[b], (a, b)) for a, b in cuts]
    return [pair for *_, pair in sorted(found)]


def llama2(model):
    scored = pieces(model)
    vocab = {piece: i for i, (piece, _) in enumerate(scored)}
    tokenizer = Tokenizer(models.BPE(vocab, merges(scored), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(special("<unk>", "<s>", "</s>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def gemma(model):
    """No space is prepended, and several spaces may be one token."""
    scored = pieces(model)
    vocab = {piece: i for i, (piece, _) in enumerate(scored)}
    tokenizer = Tokenizer(models.BPE(vocab, merges(scored), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(special("<unk>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
    )
    return tokenizer


def t5(model):
    scored = pieces(model)
    unknown = model.unk_id()
    tokenizer = Tokenizer(models.Unigram(scored, unknown, True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(replacement="▁", prepend_scheme="always", split=False)]
    )
    tokenizer.add_special_tokens(special("<unk>", "<s>", "</s>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return tokenizer


def bert():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=tokens, show_progress=False))
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return tokenizer


def main():
    ids = {}
    # The token types and scores of GGUF are those of SentencePiece.
    llama = spm("bpe", 420, user_defined_symbols=["\n", "▁▁"])
    unigram = spm("unigram", 340)
    gemma_model = spm("bpe", 420, add_dummy_prefix=False, user_defined_symbols=["<start_of_turn>", "<end_of_turn>"],
                      bos_piece="<bos>", eos_piece="<eos>")  # fmt: skip
    made = {"gpt2": gpt2(), "llama3": llama3(), "llama2": llama2(llama), "gemma": gemma(gemma_model)}
    made |= {"t5": t5(unigram), "bert": bert()}
    for name, tokenizer in made.items():
        tokenizer.save(str(HERE / f"{name}.json"), pretty=False)
        theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(HERE / f"{name}.json"))
        ids[name] = {
            "plain": [theirs(text, add_special_tokens=False).input_ids for text in TEXTS],
            "prompt": [theirs(text).input_ids for text in TEXTS],
        }
    for name, model in {"llama2": llama, "gemma": gemma_model, "t5": unigram}.items():
        ids[name]["sentencepiece"] = [model.encode(text) for text in TEXTS]
        kinds = [
            2 if model.is_unknown(i) else 3 if model.is_control(i) else 5 if model.is_unused(i) else 6 if model.is_byte(i) else 1
            for i in range(model.get_piece_size())
        ]
        ids[name]["pieces"] = [[piece, score, kind] for (piece, score), kind in zip(pieces(model), kinds, strict=True)]
    for name, more in {"llama2": ("\n", "▁▁"), "gemma": ("<start_of_turn>", "<end_of_turn>")}.items():
        for entry in ids[name]["pieces"]:
            entry[2] = 4 if entry[0] in more else entry[2]
    (HERE / "ids.json").write_text(json.dumps({"texts": TEXTS, "ids": ids}, ensure_ascii=False) + "\n")


main()

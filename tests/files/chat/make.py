"""Writes expected.json: the output of transformers' apply_chat_template for some conversations with the templates in this folder.

  python tests/files/chat/make.py        (needs transformers, which jaxseq does not)
"""

import json
from pathlib import Path

import transformers

HERE = Path(__file__).parent
SYSTEM = {"role": "system", "content": "Be brief.\nAnswer."}
USER = {"role": "user", "content": " What is 1 < 2? Ünï \U0001f600 "}
ANSWER = {"role": "assistant", "content": ' It\'s "true" & so. '}
MORE = {"role": "user", "content": "Why?\n\n"}
SUM = {"name": "sum", "description": "Adds <a> & 'b', naïve", "parameters": {"b": [1, 2.5, None, True], "a": {}}}
TOOLS = [SUM, {"name": "no"}]
CASES = [
    {"messages": [USER], "add_generation_prompt": True},
    {"messages": [USER, ANSWER], "add_generation_prompt": False},
    {"messages": [SYSTEM, USER, ANSWER, MORE], "add_generation_prompt": True},
    {"messages": [SYSTEM, USER], "add_generation_prompt": True, "tools": TOOLS},
    {"messages": [USER, USER], "add_generation_prompt": True},
    {"messages": [USER, {"role": "judge", "content": "No."}], "add_generation_prompt": False},
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def rendered(tokenizer, template, case):
    try:
        return tokenizer.apply_chat_template(
            case["messages"], tools=case.get("tools"), chat_template=template, tokenize=False,
            add_generation_prompt=case["add_generation_prompt"],
        )  # fmt: skip
    except Exception as error:
        return {"error": str(error)}


def main():
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(HERE.parent / "tokenizers" / "llama2.json"), **SPECIAL)
    templates = {path.stem: path.read_text("utf-8") for path in sorted(HERE.glob("*.jinja"))}
    expected = {name: [rendered(tokenizer, text, case) for case in CASES] for name, text in templates.items()}
    text = json.dumps({"special": SPECIAL, "cases": CASES, "expected": expected}, ensure_ascii=False, indent=1)
    (HERE / "expected.json").write_text(text + "\n")


main()

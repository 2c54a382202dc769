"""Published weights, one file a source; "hf/llama" lives in hf_llama.py.

A source has

- `config(theirs) -> ConfigDict`, our config of the model that their config.json describes, or, for single layers,
  `module(theirs) -> nn.Module`;
- `describe(model) -> dict | None`, their config of one of our modules, None if it is of another kind;
- `entries(theirs) -> list[Entry]`, the table of names;
- `recognises(theirs, names) -> bool`, whether a folder with this config and these tensor names is one of its own;
- optional `aliases(theirs) -> dict`: names that repeat another tensor; `infer(shapes) -> dict`: their config from the shapes
  of the tensors, for formats that carry none; `complete(theirs, tensors) -> dict`: their config with what only the tensors
  tell (which heads there are, by their names); `rename(names) -> dict`: {the table's name: the file's} where spellings differ;
  `rank`: of sources that can hold a model, the one with the lowest is taken for export (default: 0);
  `tokenizer(theirs) -> str | None`: a tokenizers JSON text out of the metadata.
"""

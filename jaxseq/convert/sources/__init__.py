"""Sources: formats of published weights, one file each. The source "hf/llama" is hf_llama.py.

Here `theirs` is the config of a published model. A source has

- `config(theirs) -> ConfigDict`: the jaxseq config of the model; for single layers instead `module(theirs) -> nn.Module`;
- `describe(model) -> dict | None`: the published config of a jaxseq module, None if the source cannot describe it;
- `entries(theirs) -> list[Entry]`: the table of tensor names;
- `recognises(theirs, names) -> bool`: whether a folder with this config and these tensor names is in this format.

Optional functions:

- `aliases(theirs) -> dict`: names of tensors that repeat another tensor;
- `infer(shapes) -> dict`: `theirs` from the shapes of the tensors, for formats without a config;
- `complete(theirs, tensors) -> dict`: `theirs` with facts that only the tensors show (which heads there are, by their names);
- `rename(names) -> dict`: {name in the table: name in the file}, where they differ;
- `rank`: a number, default 0; of several sources that can describe a model, export uses the one with the lowest;
- `tokenizer(theirs) -> str | None`: a tokenizers JSON text from the metadata.
"""

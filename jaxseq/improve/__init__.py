"""One table of what the ways to improve a model gain and cost: sharing, pruning, quantization, distillation and others.

`rows` has the rows as data, `ways` makes a model from another one, `table` runs the rows, `verdicts` judges them, and `summary`
and `report` show them. Training and measuring are those of `jaxseq.compare`.
"""

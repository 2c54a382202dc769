"""Larger models from trained ones, by a recipe: steps joined by "+", such as "layers:2+channels:2".

Each step is a file of this folder, found by its name, with a function `apply(work, argument) -> work`. The larger model computes
the same logits as before, so that further training starts from there; `grow` compares them after each step.
"""

from jaxseq.grow._run import grow

__all__ = ["grow"]

"""Smaller models from trained ones, by a recipe: steps joined by "+", applied in order, such as "heads:0.25+wanda:0.5+int8".

Each step is a file of this folder, found by its name, with a function `apply(work, argument) -> work`; the argument is what
follows the first colon. A step changes the parameters and `config.model`; `work.left` names the parameters it did not change.
"""

from jaxseq.compress._gradual import gradual
from jaxseq.compress._run import apply, compared, compress, count

__all__ = ["apply", "compared", "compress", "count", "gradual"]

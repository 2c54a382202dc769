"""A trained Transformer as the start of a linear-time or hybrid model.

Each file of this folder without an underscore is something that attention can become, found by its name:

- `fields(mixer, argument)`: the fields of the new mixer in config.model. Raises UserError if the attention does not fit.
- `arrays(mixer, own, new)`: new parameters from those of the attention, {name: array} with a leading layer axis. new: the initial
  values, which stay where nothing is returned.
- `dropped(mixer)`: what the attention has and the new mixer does not, in words.
- `MIXER`: the name of the new mixer if it is not that of the file.
"""

from jaxseq.migrate._run import STAGES, migrate

__all__ = ["STAGES", "migrate"]
